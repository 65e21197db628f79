"""Programs of usual lengths, compiled before the first request comes."""

import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import jax
from PIL import Image

from srlhfv_jax.config import DataConfig
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.rows import Example, Prompt
from srlhfv_jax.evaluation import by_row, text_scores
from srlhfv_jax.guard.judge import Guard
from srlhfv_jax.hf.load import Pretrained
from srlhfv_jax.runs import few_shapes, inputs

WORD = "hello"
ANSWER = 2  # tokens of an answer, at least


def compile_all(
    guard: Guard, policy: by_row.RowPolicy | None, scorer: text_scores.TextScorer | None, lengths: few_shapes.Lengths
) -> int:
    """Ask each model a short question, without a picture and with one, padded to each of the lengths that holds it, and guard and
    scorer about a short answer too; returns the number of programs. Other lengths, and pictures of other sizes or several of them,
    compile when they come.
    """
    prompts = [Prompt((), WORD), Prompt((grey_square(),), WORD)]
    programs = 0
    for prompt in prompts:
        programs += _compile_guard(guard, prompt, lengths)
        programs += 0 if policy is None else _compile_policy(policy, prompt, lengths)
        programs += 0 if scorer is None else _compile_scorer(scorer, prompt, lengths)
    return programs


def grey_square() -> bytes:
    """An encoded picture."""
    out = io.BytesIO()
    Image.new("RGB", (224, 224), "grey").save(out, format="PNG")
    return out.getvalue()


def _compile_guard(guard: Guard, prompt: Prompt, lengths: few_shapes.Lengths) -> int:
    seen = dict(max_pixels=guard.max_pixels, system_prompt=guard.system_prompt)
    questions = _pairs(guard.pretrained, seen, prompt, lengths, 0) if "input" in guard.thresholds else []
    answers = _pairs(guard.pretrained, seen, prompt, lengths, ANSWER) if "output" in guard.thresholds else []
    with jax.set_mesh(guard.mesh):
        for one in questions:
            dataclasses.replace(guard, lengths=one).check_input([prompt.images], [prompt.question])
        for one in answers:
            dataclasses.replace(guard, lengths=one).check_output([prompt.images], [prompt.question], [WORD])
    return len(questions) + len(answers)


def _compile_policy(policy: by_row.RowPolicy, prompt: Prompt, lengths: few_shapes.Lengths) -> int:
    pairs = _pairs(policy.checkpoint, _seen(policy.data), prompt, lengths, 0)
    for one in pairs:
        by_row.answer(policy._replace(lengths=one), [prompt], [by_row.Draw(seed=(0,), length=1)])
    return len(pairs)


def _compile_scorer(scorer: text_scores.TextScorer, prompt: Prompt, lengths: few_shapes.Lengths) -> int:
    pairs = _pairs(scorer.checkpoint, _seen(scorer.data), prompt, lengths, ANSWER)
    for one in pairs:
        text_scores.scores(scorer._replace(lengths=one), [Example(prompt.images, prompt.question, (WORD,))])
    return len(pairs)


def _seen(data: DataConfig) -> dict[str, Any]:
    return dict(max_pixels=data.max_pixels, system_prompt=data.system_prompt)


def _pairs(
    model: Pretrained, seen: dict[str, Any], prompt: Prompt, lengths: few_shapes.Lengths, answer: int
) -> Sequence[few_shapes.Lengths]:
    """Lengths to compile for; none where the model sees no pictures and the prompt has one."""
    (size,) = inputs.sizes([Example(prompt.images, prompt.question, ())], model, **seen)
    return [] if isinstance(size, Unusable) else few_shapes.each(lengths, size, answer)
