"""`srlhfv weights merge`: policies between two checkpoints, an export each. The sum itself is in `weights/merge.py`."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from srlhfv_jax import files
from srlhfv_jax.errors import UserError, shown
from srlhfv_jax.hf import card, export, hub
from srlhfv_jax.hf.load import Pretrained, checkpoint_folder
from srlhfv_jax.parallel import hosts
from srlhfv_jax.runs import same_model
from srlhfv_jax.weights.merge import merge

RECORD = "merge.json"  # of a folder of merges: which two checkpoints they lie between
NUMBER = r"[0-9.eE+-]+"


def merge_policies(start: str, end: str, out: Path, shares: str) -> Iterator[Path]:
    """Write the policies (1 - q) start + q end to `out`/q0.25 and so on; gives each folder when it is written.

    The exports have config, tokenizer, processor and template of `start`. They are in float32, or in bfloat16 where both checkpoints
    are stored in it. Adapters are merged into their backbones first. All is checked before the first folder is given.

    Args:
        start, end: checkpoints: a Hugging Face folder or id, an export, or the workdir of a stage.
        out: a new folder, or one with merges of the same two: those of the same q are replaced.
        shares: values of q, "0.25,0.5,0.75".

    Raises:
        UserError: no such q, checkpoints that are not two of one architecture and tokenizer, an activated adapter, a revision, or another folder.
    """
    values = numbers(shares)
    _check_two(start, end)
    record = {name: str(checkpoint_folder(path).absolute()) for name, path in (("from", start), ("to", end))}
    _check_place(out, record)
    models = {f"--from={start}": start, f"--to={end}": end}
    same_model.check(models)
    a, b = same_model.in_memory(models, "merged")
    if hosts.process_index() == 0:
        out.mkdir(parents=True, exist_ok=True)
        files.write_text(out / RECORD, json.dumps(record, indent=2) + "\n")
    return (_write(out / f"q{text}", a, b, text, q, (start, end)) for text, q in values.items())


def numbers(shares: str) -> dict[str, float]:
    """The values of q by how they are written, which names their folders.

    Raises:
        UserError: none, one that is no number from 0 to 1, or one number twice.
    """
    values: dict[str, float] = {}
    for text in (part.strip() for part in shares.split(",")):
        try:
            q = float(text) if re.fullmatch(NUMBER, text) else None
        except ValueError:
            q = None
        if q is None or not 0 <= q <= 1:
            raise UserError(f"--q must be numbers from 0 to 1, such as 0.25,0.5,0.75, got {shown(text)}")
        if q in values.values():
            raise UserError(f"--q has {q:g} twice: give each number once")
        values[text] = q
    return values


def _check_two(start: str, end: str) -> None:
    folders = [checkpoint_folder(path) for path in (start, end)]
    if folders[0].resolve() == folders[1].resolve():
        raise UserError(f"--from={start} and --to={end} are one checkpoint: nothing lies between; give another one to --to")


def _check_place(out: Path, record: dict[str, str]) -> None:
    """Raise UserError where `out` is anything else than new, empty, or a folder of merges of these two."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file: give a folder")
    if not out.is_dir():
        return
    export.clear(out)
    for path in sorted(out.iterdir()):
        if path.name != RECORD and not (re.fullmatch(f"q{NUMBER}", path.name) and (out / RECORD).is_file()):
            raise UserError(f"--out={out} has {shown(path.name)}, which srlhfv weights merge did not write: give another folder")
    if (out / RECORD).is_file() and (before := files.read_json(out / RECORD, dict)) != record:
        between = " and ".join(shown(before.get(name)) for name in record)
        raise UserError(f"--out={out} has merges of {between}: give another folder")


def _write(folder: Path, a: Pretrained, b: Pretrained, text: str, q: float, names: tuple[str, str]) -> Path:
    readme = a.path / "README.md"
    text_of_card = card.merged(
        *map(hub.pinned, names),
        q=text,
        origin=card.base_named_in(readme.read_text("utf-8", "replace")) if readme.is_file() else "",
        sees=a.config.vision is not None,
    )
    return export.export_pretrained(folder, a.config, merge(a.params, b.params, q), base=a.path, card=text_of_card)
