"""Rows of requests in batches of few shapes: every shape compiles each program once, which takes seconds to minutes.

A row's shape depends on that row alone. So does then what a model computes for it, to the last bit where a device adds up rows of
one program alike, whoever else is in the batch.

With k lengths of prompts there are k shapes without pictures, and at most k of them with pictures for each length of a prompt: the
patches of pictures are padded to what prompts of these lengths can hold (k + 1 for families that cut pictures into tiles).
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from srlhfv_jax.data import collate, loader
from srlhfv_jax.data.families import FAMILIES, Reader
from srlhfv_jax.data.tokens import Encoded


class Lengths(NamedTuple):
    """Sizes that rows are padded to, ascending: each row to the least that holds it."""

    prompt: tuple[int, ...]  # tokens
    answer: tuple[int, ...] = ()  # tokens
    units: tuple[int, ...] = ()  # of a row's pictures (`unit`); (): those that `units` gives


class Shape(NamedTuple):
    """The part of a batch's shape that differs between rows."""

    prompt: int
    answer: int  # 0: no answer
    patches: int  # of all pictures; 0: no picture


class Unit(NamedTuple):
    """A part that pictures consist of: a tile, or the square of patches behind one feature."""

    patches: int
    placeholders: int  # at most


def unit(reader: Reader) -> Unit:
    return Unit(reader.side**2, reader.features) if reader.side else Unit(reader.merge**2, 1)


def units(reader: Reader, lengths: Lengths) -> tuple[int, ...]:
    """Numbers of units that the pictures of a row are padded to: as many as fill a prompt of each length, and those of the largest
    picture where pictures are cut into tiles."""
    filling = {length // unit(reader).placeholders for length in lengths.prompt}
    return lengths.units or tuple(sorted((filling | {FAMILIES[reader.family].tiles}) - {0}))


def fitting(lengths: Sequence[int], needed: int) -> int:
    """The least of `lengths` that holds `needed`; where none does, the last of them doubled until it does."""
    least = next((length for length in lengths if length >= needed), 0)
    while least < needed:
        least = 2 * (least or max(lengths, default=1))
    return least


def shape(row: Encoded, lengths: Lengths, reader: Reader | None) -> Shape:
    """
    Args:
        reader: None: the model sees no pictures.
    """
    patches = 0
    if row.layouts:
        own = unit(reader).patches
        patches = own * fitting(units(reader, lengths), -(-collate.size(row.layouts).patches // own))
    answer = max(map(len, row.responses), default=0)
    return Shape(fitting(lengths.prompt, len(row.prompt)), fitting(lengths.answer, answer) if answer else 0, patches)


def groups(prepared: loader.Prepared, lengths: Lengths) -> list[loader.Prepared]:
    """The same rows, those of one shape together."""
    together: dict[Shape, list[Encoded]] = {}
    for row in prepared.rows:
        together.setdefault(shape(row, lengths, prepared.codec.reader), []).append(row)
    return [_group(prepared, one, rows) for one, rows in together.items()]


def _group(prepared: loader.Prepared, one: Shape, rows: Sequence[Encoded]) -> loader.Prepared:
    frame = prepared.frame._replace(prompt_length=one.prompt, response_length=one.answer)
    size = collate.Size(one.patches, placeholders=one.prompt)  # placeholders are tokens of the prompt
    room = prepared.room._replace(sizes=(size,)) if one.patches else None
    return prepared._replace(rows=tuple(rows), frame=frame, room=room)


def each(lengths: Lengths, prompt: int, answer: int = 0, picture: tuple[Reader, int] | None = None) -> list[Lengths]:
    """Each combination of these sizes alone that holds a prompt and an answer of so many tokens.

    Args:
        answer: 0: there is none.
        picture: how pictures are read, and the patches of that in the prompt. Units that do not fit into the prompt's length are
            left out.
    """
    prompts = [length for length in lengths.prompt if length >= prompt]
    answers = [(length,) for length in lengths.answer if length >= answer] if answer else [()]
    if picture is None:
        return [Lengths((length,), own) for length, own in itertools.product(prompts, answers)]
    (reader, patches), one = picture, unit(picture[0])
    return [
        Lengths((length,), own, (count,))
        for length, own, count in itertools.product(prompts, answers, units(reader, lengths))
        if patches <= count * one.patches and count * one.placeholders <= length
    ]
