"""`srlhfv generate`: a policy's answers, under a guard if one is given, to one prompt or to every row of a data set."""

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from srlhfv_jax.config import DataConfig, MeshConfig, inference
from srlhfv_jax.data import blind, images, sources
from srlhfv_jax.data.given import RowSettings, single_pass
from srlhfv_jax.data.rows import Example, Prompt, history_json, prompt_of
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation import answering, controls
from srlhfv_jax.guard import checks as guard_checks
from srlhfv_jax.guard.regenerate import Generate, guarded_generate
from srlhfv_jax.guard.verdict import guarded_json
from srlhfv_jax.parallel import hosts
from srlhfv_jax.parallel.mesh import make_mesh, one_device
from srlhfv_jax.runs import checkpoints

Answer = Callable[[Sequence[Prompt], int], list[dict[str, Any]]]  # (prompts, number of the call) -> a line for each

BATCHES_AT_ONCE = 8  # rows are read, answered and written in parts of so many batches


@dataclass(frozen=True, kw_only=True)
class Settings(RowSettings):
    """The flags of `srlhfv generate`, whose help says what each is, and their defaults."""

    policy: str
    guard: str = ""  # "" = none
    rounds: int = 5
    on_unsafe: str = "regenerate"
    check_input: bool = False
    feedback: bool = False
    prompt: str | None = None  # the question, or None: rows of `data`
    image: str = ""
    data: str | None = None
    out: str | None = None
    picture: str = "real"  # or another one in its place: "blank", "shuffled", "none"
    temperature: float = 1.0
    prompt_length: int = 0  # tokens (P); 0 = any
    response_length: int = 256  # tokens (R)
    batch_size: int = 32
    seed: int = 0
    dtype: str = "float32"


def answer_one(settings: Settings) -> dict[str, Any]:
    """The line for one prompt: {"answer", ...}.

    Raises:
        UserError: the prompt or its picture cannot be read.
    """
    hosts.initialize()
    image = images.read_given(settings.image, "--image")
    answer = _load(settings, batch_size=1 if hosts.process_count() == 1 else jax.device_count())
    (line,) = answer([Prompt(() if image is None else (image,), settings.prompt)], 0)
    if "dropped" in line:
        raise UserError(f"this prompt cannot be read: {line['dropped']}")
    return line


def answer_rows(settings: Settings) -> tuple[Counter[str], int]:
    """Write a line to `out` for each row of `data`; returns the rows that cannot be read, by reason, and the number of answers.

    Raises:
        UserError: `out` exists.
    """
    hosts.initialize()
    if settings.image:
        raise UserError("--image goes with --prompt; rows of --data bring their own pictures (--image_dir)")
    out = Path(settings.out)
    if hosts.from_first(int(out.exists())):  # of several processes the first one writes it
        raise UserError(f"--out={out} exists: give a file that does not")
    examples = sources.load_examples(_data(settings, settings.batch_size))
    print(f"{settings.data}: {len(examples)} of {examples.source_rows} rows used; {sources.describe_drops(examples.drops)}")
    shown = _pictures(settings, examples)
    answer = _load(settings, settings.batch_size)
    dropped: Counter[str] = Counter()
    size = BATCHES_AT_ONCE * settings.batch_size
    with (out if hosts.process_index() == 0 else Path(os.devnull)).open("w", encoding="utf-8") as file:
        for part, start in enumerate(range(0, len(examples), size)):
            rows = examples[start : start + size]
            lines = answer([prompt_of(row) for row in shown[start : start + size]], part)
            for row, line in zip(rows, lines, strict=True):
                dropped.update([line["dropped"].partition(":")[0]] if "dropped" in line else [])
                told = history_json(row.history) | {"question": row.question} | line | {"meta": dict(row.meta)}
                told |= {} if settings.picture == "real" else {blind.PICTURES: blind.digests(row)}
                file.write(json.dumps(told, ensure_ascii=False) + "\n")
            print(f"  {start + len(rows)} of {len(examples)} rows", flush=True)
    return dropped, len(examples) - dropped.total()


def _pictures(settings: Settings, examples: Sequence[Example]) -> Sequence[Example]:
    """The rows with the pictures that the policy sees."""
    match settings.picture:
        case "blank":
            return controls.blanked(examples)
        case "shuffled":
            return controls.shuffled(examples, settings.seed)
        case "none":
            return controls.Repictured(examples, lambda index: ())
    return examples


def _load(settings: Settings, batch_size: int) -> Answer:
    """Policy and guard as one function: a line ({"answer", ...} or {"dropped"}) for each prompt."""
    checkpoints.check_checkpoint(settings.policy, "--policy")
    if settings.guard:
        checkpoints.check_checkpoint(settings.guard, "--guard")
    mesh = one_device() if batch_size == hosts.process_count() == 1 else _all_devices(batch_size)
    data, model = _data(settings, batch_size), inference(settings.dtype)
    policy = answering.load_policy(settings.policy, data, model, mesh, temperature=settings.temperature, seed=settings.seed)
    checks = None
    if settings.guard:
        checks = guard_checks.load(settings.guard, mesh, dtype=settings.dtype, batch_size=batch_size)
        guard_checks.check_acts(settings.guard, checks, settings.check_input)

    def answers(prompts: Sequence[Prompt], part: int) -> list[dict[str, Any]]:
        def draw(some: Sequence[Prompt], number: int) -> list[str]:
            return answering.answer_prompts(policy, some, part * (settings.rounds + 1) + number)

        reasons = answering.unreadable(policy, prompts)
        if checks is not None:
            by_guard = checks.unreadable([(prompt, None) for prompt in prompts])
            reasons = [ours or theirs for ours, theirs in zip(reasons, by_guard, strict=True)]
        readable = [prompt for prompt, reason in zip(prompts, reasons, strict=True) if reason is None]
        lines = iter(_lines(settings, draw, checks, readable))
        return [next(lines) if reason is None else {"dropped": str(reason)} for reason in reasons]

    return answers


def _lines(
    settings: Settings, draw: Generate, checks: guard_checks.Checks | None, prompts: Sequence[Prompt]
) -> list[dict[str, Any]]:
    """The line for each prompt that can be read."""
    if checks is None:
        return [{"answer": text} for text in (draw(prompts, 0) if prompts else [])]
    guarded = guarded_generate(
        draw,
        checks.output,
        prompts,
        rounds=settings.rounds,
        feedback=settings.feedback,
        policy=settings.on_unsafe,
        check_input=checks.input if settings.check_input else None,
    )
    return list(map(guarded_json, guarded))


def _all_devices(batch_size: int) -> Mesh:
    mesh = make_mesh(MeshConfig(data=-1, fsdp=1, tensor=1))
    hosts.check_batch(batch_size, mesh, "--batch_size of")
    return mesh


def _data(settings: Settings, batch_size: int) -> DataConfig:
    lengths = dict(prompt_length=settings.prompt_length, response_length=settings.response_length)
    return single_pass(settings.data or "", settings, **lengths, batch_size=batch_size)
