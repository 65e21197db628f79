"""Rows with other pictures: what a model still gets right there, it does not get from the pictures.

`shuffled` gives every row the pictures of another one: the right kind of input, nothing to see. `blanked` makes them grey. Labels
and texts stay.
"""

import io
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from srlhfv_jax.data import images
from srlhfv_jax.data.rows import Example

GREY = (127, 127, 127)


class Repictured(Sequence[Example]):
    """Rows whose pictures come from `pictures(index)`, fetched anew at every access."""

    def __init__(self, examples: Sequence[Example], pictures: Callable[[int], tuple[bytes, ...]]):
        self._examples, self._pictures = examples, pictures

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        return self._examples[index]._replace(images=self._pictures(index))


def shuffled(examples: Sequence[Example], seed: int) -> Sequence[Example]:
    """Rows with pictures pass them on along one random cycle, so that none keeps its own; rows without stay without.

    (Another row may still show the same picture, where the data repeat it.)
    """
    pictured = [index for index in range(len(examples)) if examples[index].images]
    order = np.random.default_rng(seed).permutation(pictured).tolist()
    giver = dict(zip(order, order[1:] + order[:1], strict=True))
    return Repictured(examples, lambda index: examples[giver[index]].images if index in giver else ())


def blanked(examples: Sequence[Example]) -> Sequence[Example]:
    """Every picture is grey, in its own size."""
    return Repictured(examples, lambda index: tuple(map(_grey, examples[index].images)))


def _grey(encoded: bytes) -> bytes:
    height, width = images.upright_size(encoded)
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), GREY).save(buffer, "PNG")
    return buffer.getvalue()
