"""`srlhfv export --workdir=... --out=DIR`: write what a run trained as a Hugging Face folder.

Stages export by themselves to WORKDIR/export; this is for another dtype, shard size or place, and merges an adapter into its
backbone. --workdir may also be an export (such as WORKDIR/best_feasible) or a Hugging Face folder. Of a run that is not finished it
takes the newest checkpoint, as it is: an adapter stays one, and a guard's thresholds are not set yet.
"""

from pathlib import Path

from srlhfv_jax.cli import define, switches


def main(argv: list[str]) -> None:
    command = define.define()
    command.text("workdir", None, "workdir of a stage, an export, or a Hugging Face folder")
    command.text("out", None, "folder to write, which must not exist yet")
    command.choice("dtype", "float32", ["float32", "bfloat16"], "dtype of the written tensors")
    command.real("shard_gb", 5.0, "largest file, in GB", 0.001)
    values = command.values
    switches.read(values, "export", argv, __doc__)
    switches.required(values, "workdir", "out")
    from srlhfv_jax.guard import train
    from srlhfv_jax.runs.rewrite import rewrite

    source, size = Path(values.workdir), int(values.shard_gb * 1e9)
    step = rewrite(source, Path(values.out), dtype=values.dtype, max_shard_bytes=size, complete=train.complete)
    print(f"wrote {values.out}" + ("" if step is None else f": the checkpoint of step {step}, of a run that is not finished"))
