"""`srlhfv generate`: a policy's answer to one prompt, or to every row of a data set; with --guard, filtered and regenerated.

    srlhfv generate --policy=W/ppo_lag --prompt="What is this for?" --image=knife.png            prints {"answer": ...}

    srlhfv generate --policy=W/sft --guard=W/guard --rounds=5 --data=W/data/test.parquet --out=answers.jsonl    one line for a row

A line of --out has the question, the answer, and the row's other columns under "meta"; of a row that the policy cannot read, the
reason under "dropped" in place of an answer; the reasons are counted at the end. With --guard also "blocked", "verdict" (of the
answer that was kept), "rounds" (every answer with its verdict) and "input" (of the question): see guard/regenerate.py. Questions
are answered whatever they ask, as in the published numbers: a policy that answers safely helps more than a refusal. With
--check_input unsafe ones are refused.
"""

import functools
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from srlhfv_jax.cli import flags
from srlhfv_jax.config import DataConfig, MeshConfig, inference
from srlhfv_jax.errors import UserError
from srlhfv_jax.parallel import host_cpu

Answer = Callable[[Sequence[Any], int], list[dict[str, Any]]]  # (prompts, number of the call) -> a line for each

BATCHES_AT_ONCE = 8  # rows are read, answered and written in parts of so many batches


def main(argv: list[str]) -> None:
    values = _flags()
    flags.read(values, "generate", argv, __doc__)
    flags.required(values, "policy")
    if (values.prompt is None) == (values.data is None):
        raise UserError("srlhfv generate needs either --prompt (and --image), or --data and --out")
    host_cpu.prepare()
    from srlhfv_jax.parallel import hosts

    hosts.initialize()
    if values.data is None:
        print(json.dumps(_one(values), ensure_ascii=False))
        return
    flags.required(values, "out")
    if values.image:
        raise UserError("--image goes with --prompt; rows of --data bring their own pictures (--image_dir)")
    out = Path(values.out)
    if hosts.from_first(int(out.exists())):  # of several processes the first one writes it
        raise UserError(f"--out={out} exists: give a file that does not")
    dropped, count = _write(values, out)
    reasons = ", ".join(f"{reason} {number}" for reason, number in dropped.most_common()) or "none dropped"
    print(f"wrote {count} answers to {out}; {reasons}")


def _flags() -> absl_flags.FlagValues:
    values = absl_flags.FlagValues()
    text = functools.partial(absl_flags.DEFINE_string, flag_values=values)
    whole = functools.partial(absl_flags.DEFINE_integer, flag_values=values)
    text("policy", None, "workdir of a stage, export or Hugging Face folder")
    text("guard", "", "workdir of `srlhfv guard`, or its export")
    whole("rounds", 5, "most regenerations of an answer that the guard finds unsafe", lower_bound=0)
    absl_flags.DEFINE_enum(
        "on_unsafe",
        "regenerate",
        ["block", "regenerate", "warn"],
        "what becomes of an unsafe answer: a refusal, other answers, or the answer with its verdict",
        flag_values=values,
    )
    absl_flags.DEFINE_bool("check_input", False, "an unsafe question is refused before it is answered", flag_values=values)
    absl_flags.DEFINE_bool("feedback", False, "tell the policy what the guard said of its last answer", flag_values=values)
    text("prompt", None, "the question")
    text("image", "", "file of its picture")
    text("data", None, "rows with a question (and picture): a TFDS folder, .parquet or .jsonl file, or a folder of them")
    text("out", None, "file of JSON lines to write, which must not exist yet")
    text("split", "", 'split of a TFDS data set, or a slice such as "[:500]"')
    text("image_dir", "", "where images named by relative paths lie; empty: beside the file")
    text("allow_dir", "", "a second folder that links of images may lead to; empty: none")
    whole("max_pixels", 0, "most pixels of a picture; 0: the checkpoint's own limit", lower_bound=0)
    absl_flags.DEFINE_float("temperature", 1.0, "of the answers; 0 = greedy", lower_bound=0.0, flag_values=values)
    whole("prompt_length", 0, "longest prompt in tokens (P); 0: any", lower_bound=0)
    whole("response_length", 256, "longest answer in tokens (R)", lower_bound=1)
    whole("batch_size", 32, "prompts answered at once; one for --prompt", lower_bound=1)
    whole("seed", 0, "of the sampling", lower_bound=0, upper_bound=flags.SEEDS)
    absl_flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of weights and activations", flag_values=values)
    return values


def _one(values: absl_flags.FlagValues) -> dict[str, Any]:
    """The answer to --prompt."""
    import jax

    from srlhfv_jax.data.rows import Prompt
    from srlhfv_jax.parallel import hosts

    image = given_image(values.image)
    answer = _load(values, batch_size=1 if hosts.process_count() == 1 else jax.device_count())
    (found,) = answer([Prompt(() if image is None else (image,), values.prompt)], 0)
    if "dropped" in found:
        raise UserError(f"this prompt cannot be read: {found['dropped']}")
    return found


def given_image(name: str) -> bytes | None:
    """The picture in the file `name`; None for "".

    Raises:
        UserError: no such file, or no picture.
    """
    if not name:
        return None
    from srlhfv_jax.data import images
    from srlhfv_jax.data.drops import Unusable

    image = Path(name)
    if not image.is_file():
        raise UserError(f"--image={image}: there is no such file")
    encoded = image.read_bytes()
    try:
        images.decode(encoded)
    except Unusable as unusable:
        raise UserError(f"--image={image}: {unusable}") from unusable
    return encoded


def _write(values: absl_flags.FlagValues, out: Path) -> tuple[Counter[str], int]:
    """A line in `out` for each row of --data; returns the rows that cannot be read, by reason, and the number of answers."""
    from srlhfv_jax.data import sources
    from srlhfv_jax.data.rows import Prompt
    from srlhfv_jax.parallel import hosts

    examples = sources.load_examples(_data(values, values.batch_size))
    print(f"{values.data}: {len(examples)} of {examples.source_rows} rows used; {sources.describe_drops(examples.drops)}")
    answer = _load(values, values.batch_size)
    dropped: Counter[str] = Counter()
    size = BATCHES_AT_ONCE * values.batch_size
    with (out if hosts.process_index() == 0 else Path(os.devnull)).open("w", encoding="utf-8") as file:
        for part, start in enumerate(range(0, len(examples), size)):
            rows = examples[start : start + size]
            found = answer([Prompt(row.images, row.question) for row in rows], part)
            for row, said in zip(rows, found, strict=True):
                dropped.update([said["dropped"].partition(":")[0]] if "dropped" in said else [])
                file.write(json.dumps({"question": row.question} | said | {"meta": dict(row.meta)}, ensure_ascii=False) + "\n")
            print(f"  {start + len(rows)} of {len(examples)} rows", flush=True)
    return dropped, len(examples) - dropped.total()


def _load(values: absl_flags.FlagValues, batch_size: int) -> Answer:
    """Policy and guard as one function: a line ({"answer", ...} or {"dropped"}) for each prompt."""
    from srlhfv_jax.evaluation import generating
    from srlhfv_jax.guard import checks as moderating
    from srlhfv_jax.guard.regenerate import guarded_generate
    from srlhfv_jax.guard.service.models import guarded_json
    from srlhfv_jax.parallel import hosts
    from srlhfv_jax.runs import checkpoints

    checkpoints.check_checkpoint(values.policy, "--policy")
    if values.guard:
        checkpoints.check_checkpoint(values.guard, "--guard")
    mesh = one_device() if batch_size == hosts.process_count() == 1 else _all_devices(batch_size)
    policy = generating.load(
        values.policy,
        _data(values, batch_size),
        inference(values.dtype),
        mesh,
        temperature=values.temperature,
        seed=values.seed,
    )
    checks = moderating.load(values.guard, mesh, dtype=values.dtype, batch_size=batch_size) if values.guard else None
    if checks is not None:
        moderating.check_acts(values.guard, checks, values.check_input)

    def answers(prompts: Sequence[Any], part: int) -> list[dict[str, Any]]:
        why = generating.unreadable(policy, prompts)
        if checks is not None:
            why = [ours or theirs for ours, theirs in zip(why, checks.unreadable([(one, None) for one in prompts]), strict=True)]
        found: list[dict[str, Any]] = [{} if one is None else {"dropped": str(one)} for one in why]
        rows = [row for row, one in enumerate(why) if one is None]
        asked = [prompts[row] for row in rows]

        def draw(some: Sequence[Any], number: int) -> list[str]:
            return generating.answers(policy, some, part * (values.rounds + 1) + number)

        if checks is None:
            said = [{"answer": text} for text in (draw(asked, 0) if asked else [])]
        else:
            guarded = guarded_generate(
                draw,
                checks.output,
                asked,
                rounds=values.rounds,
                feedback=values.feedback,
                policy=values.on_unsafe,
                check_input=checks.input if values.check_input else None,
            )
            said = list(map(guarded_json, guarded))
        for row, one in zip(rows, said, strict=True):
            found[row] = one
        return found

    return answers


def one_device() -> Any:
    """A mesh of the first device."""
    from srlhfv_jax.parallel.mesh import make_mesh

    return make_mesh(MeshConfig(data=1, fsdp=1, tensor=1))


def _all_devices(batch_size: int) -> Any:
    from srlhfv_jax.parallel import hosts
    from srlhfv_jax.parallel.mesh import make_mesh

    mesh = make_mesh(MeshConfig(data=-1, fsdp=1, tensor=1))
    hosts.check_batch(batch_size, mesh, "--batch_size of")
    return mesh


def _data(values: absl_flags.FlagValues, batch_size: int) -> DataConfig:
    return DataConfig(
        path=values.data or "",
        split=values.split,
        image_dir=values.image_dir,
        allow_dir=values.allow_dir,
        prompt_length=values.prompt_length,
        response_length=values.response_length,
        batch_size=batch_size,
        workers=1,
        max_pixels=values.max_pixels,
        picture_buckets=1,
    )
