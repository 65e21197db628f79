"""`srlhfv generate`: a policy's answer to one prompt, or to every row of a data set.

    srlhfv generate --policy=W/ppo_lag --prompt="What is this for?" --image=knife.png            prints {"answer": ...}

    srlhfv generate --policy=W/ppo_lag --data=W/data/test.parquet --out=answers.jsonl            one line for each row

A line of --out has the question, the answer, and the row's other columns under "meta"; of a row that the policy cannot read, the
reason under "dropped" in place of an answer. The reasons are counted at the end.
"""

import functools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from srlhfv_jax.cli import flags
from srlhfv_jax.config import DataConfig, MeshConfig, ModelConfig
from srlhfv_jax.errors import UserError

BATCHES_AT_ONCE = 8  # rows are read, answered and written in parts of so many batches


def main(argv: list[str]) -> None:
    values = _flags()
    flags.read(values, "generate", argv, __doc__)
    flags.required(values, "policy")
    if (values.prompt is None) == (values.data is None):
        raise UserError("srlhfv generate needs either --prompt (and --image), or --data and --out")
    if values.data is None:
        print(json.dumps(_one(values), ensure_ascii=False))
        return
    flags.required(values, "out")
    if values.image:
        raise UserError("--image goes with --prompt; rows of --data bring their own pictures (--image_dir)")
    out = Path(values.out)
    if out.exists():
        raise UserError(f"--out={out} exists: give a file that does not")
    dropped, count = _write(values, out)
    reasons = ", ".join(f"{reason} {number}" for reason, number in dropped.most_common()) or "none dropped"
    print(f"wrote {count} answers to {out}; {reasons}")


def _flags() -> absl_flags.FlagValues:
    values = absl_flags.FlagValues()
    text = functools.partial(absl_flags.DEFINE_string, flag_values=values)
    whole = functools.partial(absl_flags.DEFINE_integer, flag_values=values)
    text("policy", None, "workdir of a stage, export or Hugging Face folder")
    text("prompt", None, "the question")
    text("image", "", "file of its picture")
    text("data", None, "rows with a question (and picture): a TFDS folder, .parquet or .jsonl file, or a folder of them")
    text("out", None, "file of JSON lines to write, which must not exist yet")
    text("split", "", 'split of a TFDS data set, or a slice such as "[:500]"')
    text("image_dir", "", "where images named by relative paths lie; empty: beside the file")
    whole("max_pixels", 0, "most pixels of a picture; 0: the checkpoint's own limit", lower_bound=0)
    absl_flags.DEFINE_float("temperature", 1.0, "of the answers; 0 = greedy", lower_bound=0.0, flag_values=values)
    whole("prompt_length", 0, "longest prompt in tokens (P); 0: any", lower_bound=0)
    whole("response_length", 256, "longest answer in tokens (R)", lower_bound=1)
    whole("batch_size", 32, "prompts answered at once; one for --prompt", lower_bound=1)
    whole("seed", 0, "of the sampling")
    absl_flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of weights and activations", flag_values=values)
    return values


def _one(values: absl_flags.FlagValues) -> dict[str, Any]:
    """The answer to --prompt."""
    from srlhfv_jax.data import images
    from srlhfv_jax.data.drops import Unusable
    from srlhfv_jax.guard.verdict import Prompt

    image = Path(values.image)
    if values.image and not image.is_file():
        raise UserError(f"--image={image}: there is no such file")
    prompt = Prompt((image.read_bytes(),) if values.image else (), values.prompt)
    try:
        for encoded in prompt.images:
            images.decode(encoded)
    except Unusable as unusable:
        raise UserError(f"--image={image}: {unusable}") from unusable
    (found,) = _answers(_load(values, batch_size=1), [prompt], 0)
    if "dropped" in found:
        raise UserError(f"{values.policy} cannot read this prompt: {found['dropped']}")
    return found


def _write(values: absl_flags.FlagValues, out: Path) -> tuple[Counter[str], int]:
    """A line in `out` for each row of --data; returns the rows that cannot be read, by reason, and the number of answers."""
    from srlhfv_jax.data import sources
    from srlhfv_jax.guard.verdict import Prompt

    examples = sources.load_examples(_data(values, values.batch_size))
    print(f"{values.data}: {len(examples)} of {examples.source_rows} rows used; {sources.describe_drops(examples.drops)}")
    policy = _load(values, values.batch_size)
    dropped: Counter[str] = Counter()
    size = BATCHES_AT_ONCE * values.batch_size
    with out.open("w", encoding="utf-8") as file:
        for part, start in enumerate(range(0, len(examples), size)):
            rows = examples[start : start + size]
            found = _answers(policy, [Prompt(row.images, row.question) for row in rows], part)
            for row, answer in zip(rows, found, strict=True):
                dropped.update([answer["dropped"].partition(":")[0]] if "dropped" in answer else [])
                file.write(json.dumps({"question": row.question} | answer | {"meta": dict(row.meta)}, ensure_ascii=False) + "\n")
            print(f"  {start + len(rows)} of {len(examples)} rows", flush=True)
    return dropped, len(examples) - dropped.total()


def _answers(policy: Any, prompts: Sequence[Any], draw: int) -> list[dict[str, Any]]:
    """{"answer"} of each prompt, or {"dropped": why the policy cannot read it}."""
    from srlhfv_jax.stages import generating

    found = [{} if why is None else {"dropped": str(why)} for why in generating.unreadable(policy, prompts)]
    rows = [row for row, one in enumerate(found) if not one]
    if rows:
        for row, answer in zip(rows, generating.answers(policy, [prompts[row] for row in rows], draw), strict=True):
            found[row] = {"answer": answer}
    return found


def _load(values: absl_flags.FlagValues, batch_size: int) -> Any:
    from srlhfv_jax.parallel import hosts
    from srlhfv_jax.parallel.mesh import make_mesh
    from srlhfv_jax.stages import generating

    if hosts.process_count() > 1:
        raise UserError("srlhfv generate runs in one process: start it on one host")
    # One prompt goes to one device; more are shared out over all of them.
    mesh = make_mesh(MeshConfig(data=1 if batch_size == 1 else -1, fsdp=1, tensor=1))
    hosts.check_batch(batch_size, mesh, "--batch_size of")
    model = ModelConfig(dtype=values.dtype, param_dtype=values.dtype, remat="none", scan_unroll=1)
    return generating.load(
        values.policy, _data(values, batch_size), model, mesh, temperature=values.temperature, seed=values.seed
    )


def _data(values: absl_flags.FlagValues, batch_size: int) -> DataConfig:
    return DataConfig(
        path=values.data or "",
        split=values.split,
        image_dir=values.image_dir,
        prompt_length=values.prompt_length,
        response_length=values.response_length,
        batch_size=batch_size,
        workers=1,
        max_pixels=values.max_pixels,
        picture_buckets=1,
    )
