"""The record of a policy's answers, which every judge reads.

`answering.sample_answers` makes it from rollouts; tests and outside tools can write one by hand. No tokens and no models here.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from srlhfv_jax.errors import UserError


class Answers(NamedTuple):
    """One answer per prompt of one policy."""

    prompts: Int[np.ndarray, "B"]  # index of the prompt in the list of examples it was sampled for
    texts: tuple[str, ...]  # without special tokens
    lengths: Int[np.ndarray, "B"]  # response tokens, the end-of-sequence token included
    ended: Bool[np.ndarray, "B"]  # false: cut at the longest response allowed
    temperature: float  # 0 = greedy


def make(
    prompts: Sequence[int], texts: Sequence[str], lengths: Sequence[int], ended: Sequence[bool], temperature: float
) -> Answers:
    """Answers from plain lists, checked.

    Raises:
        UserError: the lists differ in length.
    """
    sizes = (len(prompts), len(texts), len(lengths), len(ended))
    if len(set(sizes)) != 1:
        raise UserError(f"answers need one text, length and ended flag per prompt, got {sizes[0]} prompts and {sizes[1:]}")
    return Answers(
        prompts=np.asarray(prompts, np.int64),
        texts=tuple(texts),
        lengths=np.asarray(lengths, np.int64),
        ended=np.asarray(ended, bool),
        temperature=float(temperature),
    )


def aligned(answers: Answers, other: Answers) -> None:
    """Check that two policies answered the same prompts in the same order, so that rows can be compared.

    Raises:
        UserError: they did not.
    """
    if not np.array_equal(answers.prompts, other.prompts):
        raise UserError(
            f"two policies can be compared on the same prompts only: got {len(answers.prompts)} and {len(other.prompts)} answers "
            "to different prompts; sample both from one prompt list"
        )


def length_metrics(answers: Answers) -> dict[str, float]:
    """`length`: mean tokens of an answer; `ended`: share that ended by itself."""
    if not len(answers.texts):
        return {}
    return {"length": float(answers.lengths.mean()), "ended": float(answers.ended.mean())}
