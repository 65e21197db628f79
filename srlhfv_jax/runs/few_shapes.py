"""Rows of requests in batches of few shapes: every shape compiles each program once, which takes seconds to minutes.

A row's shape depends on that row alone. So does then what a model computes for it, to the last bit where a device adds up rows of
one program alike, whoever else is in the batch.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from srlhfv_jax.data import collate, loader
from srlhfv_jax.data.tokens import Encoded


class Lengths(NamedTuple):
    """Lengths in tokens that rows are padded to, ascending: each row to the least that holds it."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...] = ()


class Shape(NamedTuple):
    """The part of a batch's shape that differs between rows."""

    prompt: int
    answer: int  # 0: no answer
    pictures: collate.Size | None  # None: no picture


def fitting(lengths: Sequence[int], needed: int) -> int:
    """The least of `lengths` that holds `needed`; where none does, the last of them doubled until it does."""
    least = next((length for length in lengths if length >= needed), 0)
    while least < needed:
        least = 2 * (least or max(lengths, default=1))
    return least


def shape(row: Encoded, lengths: Lengths, counted: bool) -> Shape:
    """
    Args:
        counted: pictures differ in their number of patches (`collate.Room`): these are padded too.
    """
    pictures = collate.size(row.layouts) if row.layouts else None
    if pictures is not None and counted:
        pictures = collate.Size(*(fitting(lengths.prompt, number) for number in pictures))
    answer = max(map(len, row.responses), default=0)
    return Shape(fitting(lengths.prompt, len(row.prompt)), fitting(lengths.answer, answer) if answer else 0, pictures)


def groups(prepared: loader.Prepared, lengths: Lengths) -> list[loader.Prepared]:
    """The same rows, those of one shape together."""
    counted, together = prepared.room is not None and prepared.room.counted, {}
    for row in prepared.rows:
        together.setdefault(shape(row, lengths, counted), []).append(row)
    return [_group(prepared, one, rows) for one, rows in together.items()]


def _group(prepared: loader.Prepared, one: Shape, rows: Sequence[Encoded]) -> loader.Prepared:
    frame = prepared.frame._replace(prompt_length=one.prompt, response_length=one.answer)
    room = None if one.pictures is None else prepared.room._replace(sizes=(one.pictures,))
    return prepared._replace(rows=tuple(rows), frame=frame, room=room)


def each(lengths: Lengths, prompt: int, answer: int = 0) -> list[Lengths]:
    """Each pair of these lengths alone that holds a prompt and an answer of so many tokens; without an answer, each prompt's."""
    prompts = [(length,) for length in lengths.prompt if length >= prompt]
    answers = [(length,) for length in lengths.answer if length >= answer] if answer else [()]
    return [Lengths(*both) for both in itertools.product(prompts, answers)]
