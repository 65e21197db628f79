"""`srlhfv export --workdir=... --out=DIR`: write what a run trained as a Hugging Face folder.

Stages export by themselves to WORKDIR/export; this is for another dtype, shard size or place, and merges an adapter into its
backbone. --workdir may also be an export (such as WORKDIR/best_feasible) or a Hugging Face folder. Of a run that is not finished it
takes the newest checkpoint, as it is: an adapter stays one, and a guard's thresholds are not set yet.

With one score head (--head=reward of two) the folder is also a classifier of `transformers`, where it has one for the family.

--push=ORG/NAME uploads the folder to the Hugging Face hub, into a private repository unless --public is given; without --out the folder
is removed afterwards.
"""

import tempfile
from pathlib import Path

from absl import flags as absl_flags

from srlhfv_jax.cli import define, switches
from srlhfv_jax.errors import UserError


def main(argv: list[str]) -> None:
    command = define.define()
    command.text("workdir", None, "workdir of a stage, an export, or a Hugging Face folder")
    command.text("out", None, "folder to write, which must not exist yet")
    command.choice("dtype", "float32", ["float32", "bfloat16"], "dtype of the written tensors")
    command.real("shard_gb", 5.0, "largest file, in GB", 0.001)
    command.text("head", "", "the only score head to write; empty: all there are")
    command.text("push", "", "ORG/NAME on the Hugging Face hub to upload to; empty: nowhere")
    command.switch("public", False, "with --push: anybody may read it")
    values = command.values
    switches.read(values, "export", argv, __doc__)
    switches.required(values, *("workdir", "out")[: 1 if values.push else 2])
    if values.public and not values.push:
        raise UserError("--public says who may read what --push uploads: give --push=ORG/NAME too")
    from srlhfv_jax.hf import push
    from srlhfv_jax.runs import rewrite

    source = Path(values.workdir)
    if values.push:
        rewrite.check(source)
        push.check(values.push, public=values.public)
    if values.out is not None:
        _write(values, source, Path(values.out))
        return
    beside = source.absolute().parent
    with tempfile.TemporaryDirectory(prefix=".push-", dir=beside if beside.is_dir() else None) as folder:  # None: of a hub id
        _write(values, source, Path(folder) / values.push.rpartition("/")[2])


def _write(values: absl_flags.FlagValues, source: Path, out: Path) -> None:
    from srlhfv_jax.guard import train
    from srlhfv_jax.hf import push
    from srlhfv_jax.runs import rewrite

    size = int(values.shard_gb * 1e9)
    step = rewrite.rewrite(source, out, dtype=values.dtype, max_shard_bytes=size, head=values.head, complete=train.complete)
    unfinished = "" if step is None else f": the checkpoint of step {step}, of a run that is not finished"
    if values.out is not None:
        print(f"wrote {out}{unfinished}")
    if values.push:
        print(f"pushed to {push.push(out, values.push, public=values.public)}{unfinished}")
