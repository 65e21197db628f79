"""`srlhfv export --workdir=... --out=DIR`: write what a run trained as a Hugging Face folder.

Stages export by themselves to WORKDIR/export; this is for another dtype, shard size or place, and merges an adapter into its
backbone. --workdir may also be an export (such as WORKDIR/best_feasible) or a Hugging Face folder. Of a run that is not finished it
takes the newest checkpoint, as it is: an adapter stays one, and a guard's thresholds are not set yet.
"""

from pathlib import Path

from absl import flags as absl_flags

from srlhfv_jax import files
from srlhfv_jax.cli import flags
from srlhfv_jax.errors import UserError


def main(argv: list[str]) -> None:
    values = absl_flags.FlagValues()
    absl_flags.DEFINE_string("workdir", None, "workdir of a stage, an export, or a Hugging Face folder", flag_values=values)
    absl_flags.DEFINE_string("out", None, "folder to write, which must not exist yet", flag_values=values)
    absl_flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "dtype of the written tensors", flag_values=values)
    absl_flags.DEFINE_float("shard_gb", 5.0, "largest file, in GB", lower_bound=0.001, flag_values=values)
    flags.read(values, "export", argv, __doc__)
    flags.required(values, "workdir", "out")
    out = Path(values.out)
    if out.exists():
        raise UserError(f"--out={out} exists: give a folder that does not")
    from srlhfv_jax import hf
    from srlhfv_jax.hf import export, weights
    from srlhfv_jax.hf.heads import load_guard
    from srlhfv_jax.runs import unfinished

    export.clear(out.absolute().parent)
    if unfinished.is_unfinished(Path(values.workdir)):
        _unfinished(values, out)
        return
    model = hf.load_pretrained(Path(values.workdir), dtype=values.dtype)
    if model.config.activation:
        raise UserError(
            f"{values.workdir} is an activated adapter, which cannot be merged: it leaves the prompt to the backbone. Use its folder with peft"
        )
    guard, about_guard = None, None
    if (model.path / weights.GUARD_FILE).is_file():
        guard, about_guard = load_guard(model.config, model.path, None)
    hf.export_pretrained(
        out,
        model.config,
        model.params,
        base=model.path,
        heads=model.heads or None,
        meta=_about(model.path),
        guard=guard,
        guard_meta=about_guard,
        card=_card(model.path),
        max_shard_bytes=int(values.shard_gb * 1e9),
    )
    print(f"wrote {out}")


def _unfinished(values: absl_flags.FlagValues, out: Path) -> None:
    """The newest checkpoint of a run."""
    from srlhfv_jax import hf
    from srlhfv_jax.guard import train as guard
    from srlhfv_jax.runs import unfinished

    run = guard.complete(unfinished.read(Path(values.workdir)))
    hf.export_pretrained(
        out,
        run.config,
        run.tree.get("backbone"),
        base=run.base,
        adapter=run.tree.get("adapter"),
        heads=run.tree.get("heads"),
        meta=run.about,
        guard=run.tree.get("guard"),
        guard_meta=run.guard,
        dtype=values.dtype,
        max_shard_bytes=int(values.shard_gb * 1e9),
    )
    print(f"wrote {out}: the checkpoint of step {run.step}, of a run that is not finished")


def _about(folder: Path) -> dict:
    """What the source says of its heads."""
    path = folder / "score_heads.json"
    return files.read_json(path) if path.is_file() else {}


def _card(folder: Path) -> str | None:
    path = folder / "README.md"
    return path.read_text() if path.is_file() else None
