"""`srlhfv weights merge`: policies between two checkpoints, an export each. The sum itself is in `weights/merge.py`."""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from srlhfv_jax import files
from srlhfv_jax.data import chat
from srlhfv_jax.errors import UserError, shown
from srlhfv_jax.hf import card, export, hub, peft, revision, weights
from srlhfv_jax.hf.load import Pretrained, backbone_name, checkpoint_folder, load_config_and_processor, load_pretrained
from srlhfv_jax.models import vlm
from srlhfv_jax.models.config import VLMConfig, architecture
from srlhfv_jax.parallel import hosts, rules
from srlhfv_jax.weights.merge import difference, merge

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
    (config, processor), (config_of_end, processor_of_end) = map(load_config_and_processor, (start, end))
    _check_architecture(config, config_of_end, start, end)
    _check_tokens(processor, processor_of_end, start, end)
    dtype = "bfloat16" if {*_dtypes(start), *_dtypes(end)} == {"BF16"} else "float32"
    a, b = _in_memory(start, dtype), _in_memory(end, dtype)
    _check_architecture(a.config, b.config, start, end)  # again: whether the head is the embedding is seen in the weights
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
    for folder in folders:
        if peft.is_adapter(folder) and peft.activation(folder):
            raise UserError(
                f"{folder} is an activated adapter, which cannot be merged: it leaves the prompt to the backbone. Give whole weights, "
                "or an adapter that acts everywhere"
            )
        if revision.is_revised(folder):
            raise UserError(
                f"{folder} has a revision, which no weights can be merged with: it acts from the end of the prompt on. Give the policy that "
                "it was fitted on"
            )


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


def _check_architecture(a: VLMConfig, b: VLMConfig, start: str, end: str) -> None:
    """Raise UserError that names the first leaf, or else the first part of the config, in which two models differ."""
    facts = [_facts(dataclasses.asdict(architecture(config))) for config in (a, b)]
    if found := difference(_shapes(a), _shapes(b)) or difference(*facts):
        raise UserError(f"--from={start} and --to={end} have other architectures ({found}): give two that were trained from one")


def _shapes(config: VLMConfig) -> dict[str, list[int]]:
    shapes = jax.eval_shape(lambda: vlm.init(config, jax.random.key(0)))
    return {path: list(leaf.shape) for path, leaf in rules.leaves(shapes)}


def _facts(parts: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Parts of a config by name, "text.rope.theta"."""
    facts: dict[str, Any] = {}
    for name, value in parts.items():
        facts |= _facts(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return facts


def _check_tokens(a: Any, b: Any, start: str, end: str) -> None:
    ids = [chat.codec(processor).tokenizer.get_vocab() for processor in (a, b)]
    if found := difference(dict(sorted(ids[0].items())), ids[1]):
        raise UserError(f"--from={start} and --to={end} have other tokenizers ({found}): give two that were trained from one")


def _dtypes(path: str) -> set[str]:
    """Dtypes that a checkpoint is stored in, as safetensors names them; of an adapter, also those of what it lies over."""
    tensors, folder = weights.open_tensors(checkpoint_folder(backbone_name(path))), checkpoint_folder(path)
    if peft.is_adapter(folder):
        tensors |= weights.open_file(folder / weights.ADAPTER)
    return {tensor.dtype for tensor in tensors.values() if tensor.dtype in weights.FLOATS}


def _in_memory(path: str, dtype: str) -> Pretrained:
    """A checkpoint with its parameters on the host: the device holds one tree at a time."""
    model = load_pretrained(path, dtype=dtype)
    heads = [*sorted(model.heads), *(["guard"] if (model.path / weights.GUARD_FILE).is_file() else [])]
    if heads:
        hosts.say(f"{path} has heads ({', '.join(heads)}), which are not merged: what is written are policies alone")
    return model._replace(params=hosts.to_host(model.params))


def _write(folder: Path, a: Pretrained, b: Pretrained, text: str, q: float, names: tuple[str, str]) -> Path:
    readme = a.path / "README.md"
    text_of_card = card.merged(
        *map(hub.pinned, names),
        q=text,
        origin=card.base_named_in(readme.read_text("utf-8", "replace")) if readme.is_file() else "",
        sees=a.config.vision is not None,
    )
    return export.export_pretrained(folder, a.config, merge(a.params, b.params, q), base=a.path, card=text_of_card)
