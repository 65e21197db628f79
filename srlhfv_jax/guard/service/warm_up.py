"""Programs of usual lengths, compiled before the first request comes."""

import dataclasses
import io
from typing import NamedTuple

import jax
from PIL import Image

from srlhfv_jax.data import chat, pictures
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.families import Reader
from srlhfv_jax.data.rows import Example, Prompt
from srlhfv_jax.evaluation import by_row, text_scores
from srlhfv_jax.guard.judge import Guard
from srlhfv_jax.hf.load import Pretrained
from srlhfv_jax.runs import few_shapes, inputs

WORD = "hello"
ANSWER = 2  # tokens of an answer, at least
SHAPES = ((28, 28), (28, 56), (56, 28), (28, 280), (280, 28))  # height and width of pictures in pixels


class _Asked(NamedTuple):
    """A checkpoint, and how it is asked."""

    checkpoint: Pretrained
    max_pixels: int
    system_prompt: str
    lengths: few_shapes.Lengths


def compile_all(
    guard: Guard, policy: by_row.RowPolicy | None, scorer: text_scores.TextScorer | None, lengths: few_shapes.Lengths
) -> int:
    """Ask each model a short question, without a picture and with one, padded to each of the sizes that holds it, and guard and
    scorer about a short answer too; returns the number of programs. Longer prompts and answers compile when they come.
    """
    programs = _compile_guard(guard, lengths)
    programs += 0 if policy is None else compile_policy(policy, lengths)
    programs += 0 if scorer is None else _compile_scorer(scorer, lengths)
    return programs


def compile_policy(policy: by_row.RowPolicy, lengths: few_shapes.Lengths) -> int:
    """A program that reads the prompt for each size, and one that draws on for each length: that is the same with pictures."""
    data = policy.data
    sizes = _sizes(_Asked(policy.checkpoint, data.max_pixels, data.system_prompt, policy.lengths), lengths, 0)
    for prompt, one in sizes:
        by_row.answer(policy._replace(lengths=one), [prompt], [by_row.Draw(seed=(0,), length=1)])
    return len(sizes) + len({one.prompt for _, one in sizes})


def _compile_guard(guard: Guard, lengths: few_shapes.Lengths) -> int:
    model = _Asked(guard.pretrained, guard.max_pixels, guard.system_prompt, guard.lengths)
    questions = _sizes(model, lengths, 0) if "input" in guard.thresholds else []
    answers = _sizes(model, lengths, ANSWER) if "output" in guard.thresholds else []
    with jax.set_mesh(guard.mesh):
        for prompt, one in questions:
            dataclasses.replace(guard, lengths=one).check_input([prompt.images], [prompt.question])
        for prompt, one in answers:
            dataclasses.replace(guard, lengths=one).check_output([prompt.images], [prompt.question], [WORD])
    return len(questions) + len(answers)


def _compile_scorer(scorer: text_scores.TextScorer, lengths: few_shapes.Lengths) -> int:
    data = scorer.data
    sizes = _sizes(_Asked(scorer.checkpoint, data.max_pixels, data.system_prompt, scorer.lengths), lengths, ANSWER)
    for prompt, one in sizes:
        text_scores.scores(scorer._replace(lengths=one), [Example(prompt.images, prompt.question, (WORD,))])
    return len(sizes)


def _sizes(model: _Asked, usual: few_shapes.Lengths, answer: int) -> list[tuple[Prompt, few_shapes.Lengths]]:
    """Prompts, each with a size to compile for. Where none of the usual lengths holds a picture, those of the model's own that do.

    Args:
        answer: tokens of an answer; 0: there is none.
    """
    reader = chat.codec(model.checkpoint.processor, model.max_pixels).reader
    question = Prompt((), WORD)
    sizes = [(question, one) for one in _each(model, question, usual, answer)]
    if reader is None:
        return sizes
    layouts = {shape: pictures.layout(reader, shape) for shape in SHAPES}
    least = min(SHAPES, key=lambda shape: layouts[shape].patches)
    pictured, picture = Prompt((grey(least),), WORD), (reader, layouts[least].patches)
    whole = model.lengths._replace(answer=usual.answer)
    return sizes + [
        (pictured, one)
        for one in _each(model, pictured, usual, answer, picture) or _each(model, pictured, whole, answer, picture)
    ]


def _each(
    model: _Asked, prompt: Prompt, lengths: few_shapes.Lengths, answer: int, picture: tuple[Reader, int] | None = None
) -> list[few_shapes.Lengths]:
    """`few_shapes.each` for a prompt; none where the model cannot read it."""
    example = Example(prompt.images, prompt.question, ())
    (size,) = inputs.sizes([example], model.checkpoint, model.max_pixels, system_prompt=model.system_prompt)
    return [] if isinstance(size, Unusable) else few_shapes.each(lengths, size, answer, picture)


def grey(shape: tuple[int, int]) -> bytes:
    """An encoded picture of (height, width) pixels."""
    out = io.BytesIO()
    Image.new("RGB", shape[::-1], "grey").save(out, format="PNG")
    return out.getvalue()
