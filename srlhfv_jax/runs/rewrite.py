"""`srlhfv export`: a trained checkpoint written anew as a Hugging Face folder."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from srlhfv_jax import files
from srlhfv_jax.errors import UserError
from srlhfv_jax.hf import export, revision, weights
from srlhfv_jax.hf.heads import load_guard
from srlhfv_jax.hf.load import checkpoint_folder, load_pretrained
from srlhfv_jax.runs import unfinished
from srlhfv_jax.runs.unfinished import Unfinished


def check(source: Path) -> None:
    """Raise UserError where there is no checkpoint to rewrite."""
    if not unfinished.is_unfinished(source):
        checkpoint_folder(source)


def rewrite(
    source: Path, out: Path, *, dtype: str, max_shard_bytes: int, head: str, complete: Callable[[Unfinished], Unfinished]
) -> int | None:
    """Write the checkpoint at `source` to the folder `out`; returns the step of a run that is not finished, else None.

    Args:
        source: workdir of a stage, export or Hugging Face folder; an adapter is merged into its backbone. Of a run that is not
            finished, the newest checkpoint, as it is.
        head: the only score head that is written; "": all there are.
        complete: adds what such a run has not made yet (`guard.train.complete`).

    Raises:
        UserError: `out` exists, there is no checkpoint, no such head, or an adapter or a revision that cannot be merged.
    """
    if out.exists():
        raise UserError(f"--out={out} exists: give a folder that does not")
    export.clear(out.absolute().parent)
    if unfinished.is_unfinished(source):
        run = unfinished.read(source)
        run = run._replace(tree=run.tree | {"heads": _chosen(run.tree.get("heads") or {}, head, source)}) if head else run
        return _unfinished(complete(run), out, dtype, max_shard_bytes)
    if revision.is_revised(checkpoint_folder(source)):
        raise UserError(
            f"{source} has a revision, which no weights can be merged with: it acts from the end of the prompt on. Copy its folder, or "
            "export the policy that it was fitted on"
        )
    model = load_pretrained(source, dtype=dtype)
    if model.config.activation:
        raise UserError(
            f"{source} is an activated adapter, which cannot be merged: it leaves the prompt to the backbone. Use its folder with peft"
        )
    has_guard = (model.path / weights.GUARD_FILE).is_file()
    guard, guard_meta = load_guard(model.config, model.path, None) if has_guard else (None, None)
    meta, card = model.path / weights.HEADS_META, model.path / "README.md"
    export.export_pretrained(
        out,
        model.config,
        model.params,
        base=model.path,
        heads=_chosen(model.heads, head, source) or None,
        meta=files.read_json(meta) if meta.is_file() else {},
        guard=guard,
        guard_meta=guard_meta,
        card=card.read_text().replace("library_name: peft\n", "library_name: transformers\n", 1) if card.is_file() else None,
        max_shard_bytes=max_shard_bytes,
    )
    for name in (weights.CERTIFICATE, *([weights.CALIBRATION] if head in ("", "cost") else [])):  # of these weights still
        if (model.path / name).is_file():
            shutil.copyfile(model.path / name, out / name)
    return None


def _chosen(heads: dict[str, Any], head: str, source: Path) -> dict[str, Any]:
    if head and head not in heads:
        raise UserError(
            f"{source} has no {head} head (it has {', '.join(sorted(heads)) or 'none'}): give one that it has to --head"
        )
    return {head: heads[head]} if head else heads


def _unfinished(run: Unfinished, out: Path, dtype: str, max_shard_bytes: int) -> int:
    export.export_pretrained(
        out,
        run.config,
        run.tree.get("backbone"),
        base=run.base,
        adapter=run.tree.get("adapter"),
        heads=run.tree.get("heads"),
        meta=run.about,
        chat_template=run.chat_template,
        guard=run.tree.get("guard"),
        guard_meta=run.guard,
        dtype=dtype,
        max_shard_bytes=max_shard_bytes,
    )
    return run.step
