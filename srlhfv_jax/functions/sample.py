"""Samples, as functions are given them: a conversation, the answer to it, and what else its row says."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple, overload

from PIL import Image

from srlhfv_jax.data import images
from srlhfv_jax.data.rows import Example, Turn


class Pictures(Sequence[Image.Image]):
    """Pictures of a conversation, RGB and upright; each is decoded when it is asked for."""

    def __init__(self, encoded: tuple[bytes, ...]) -> None:
        self.encoded = encoded  # as the row has them: PNG, JPEG, ...

    def __len__(self) -> int:
        return len(self.encoded)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...

    @overload
    def __getitem__(self, index: slice) -> list[Image.Image]: ...

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [images.decode(one) for one in self.encoded[index]]
        return images.decode(self.encoded[index])


class Sample(NamedTuple):
    """A sampled answer with its prompt."""

    images: Pictures  # PIL images; none = text-only
    history: tuple[Turn, ...]  # turns before the question
    question: str
    answer: str
    ended: bool  # false: cut at config.data.response_length
    responses: tuple[str, ...]  # answers that the row brings along, if any
    meta: Mapping[str, str]  # the row's other columns, as text
    row: int  # its number among the usable rows
    content: bytes  # digest of all that a function can read here
    tokens: int = 0  # of the answer, its end among them; 0: not told
    harmful: bool | None = None  # the row's label: would answering its question do harm; None: it has none


def sample(example: Example, answer: str, ended: bool, row: int, tokens: int = 0) -> Sample:
    """A sample of a row."""
    pictures = [images.digest(one) for one in example.images]
    told = (
        pictures,
        tuple(map(tuple, example.history)),
        example.question,
        answer,
        ended,
        example.responses,
        sorted(example.meta.items()),
        row,
    )
    content = hashlib.sha256(repr(told).encode(errors="backslashreplace")).digest()
    rest = (
        example.history,
        example.question,
        answer,
        ended,
        example.responses,
        example.meta,
        row,
        content,
        tokens,
        example.harmful,
    )
    return Sample(Pictures(example.images), *rest)
