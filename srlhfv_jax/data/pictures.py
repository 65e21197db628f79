"""Pictures as a checkpoint reads them: cut into patches, one placeholder for each feature, and rotary positions for all of it.

Everything but the pixels follows from the picture's size alone, so that rows can be checked before step 0 without resizing a
picture. The pixels come from the checkpoint's own image processor. What differs between families is in `data/families.py`.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import einops
import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from srlhfv_jax.data.families import FAMILIES, Bundle, Layout, Reader
from srlhfv_jax.errors import UserError

RESIZED_PIXELS = 4 << 20  # most that a picture may have when its shorter side fits the tile: 40 MB in a processor
PIXELS_AT_ONCE = 1 << 20  # of the pictures that are prepared together: more are large ones, whose memory counts


def reader(processor: Any) -> Reader:
    """Describe the processor of a vision-language checkpoint.

    Raises:
        UserError: it is of an unknown kind, or does not say how many placeholders an image needs.
    """
    if isinstance(processor, Bundle):
        return FAMILIES[processor.family].read(processor)
    name = type(processor).__name__
    family = next((family for family in FAMILIES.values() if family.processor == name), None)
    if family is None:
        raise UserError(f"the processor {name} is not one of a family that is supported")
    return family.read(processor)


def limited(reader: Reader, max_pixels: int) -> Reader:
    """The same with pictures of at most so many pixels, as far as the family lets them differ; 0: as they are.

    Raises:
        UserError: the smallest picture of the family is larger, or all have one size.
    """
    if not max_pixels:
        return reader
    limit = FAMILIES[reader.family].limit
    if limit is None:
        raise UserError(
            f"data.max_pixels {max_pixels} would be ignored: pictures of this checkpoint have one size; leave it at 0"
        )
    least, changed = limit(reader, max_pixels)
    if max_pixels < least:
        raise UserError(f"data.max_pixels must be at least {least}, the smallest picture of this checkpoint, got {max_pixels}")
    smaller = type(reader.image_processor).from_dict(reader.image_processor.to_dict() | changed)
    pinpoints = tuple(tuple(size) for size in changed.get("image_grid_pinpoints", ()))
    return reader._replace(image_processor=smaller, pinpoints=pinpoints)


def layout(reader: Reader, size: tuple[int, int]) -> Layout:
    """Layout of a picture of (height, width) pixels.

    Raises:
        Unusable: the family cannot read a picture of this shape.
    """
    return FAMILIES[reader.family].layout(reader, size)


def cut(reader: Reader, opened: Iterable[Image.Image]) -> Iterator[Float[np.ndarray, "N C"]]:
    """The patches of each picture: resized, normalised, and in the order that `layout` counts on.

    Small pictures go several at a time: with one, a processor is busy with checks of what it is given (48 x 48 pixels for CLIP:
    0.51 ms one by one, 0.34 ms together).
    """
    group: list[Image.Image] = []
    pixels = 0
    for image in map(functools.partial(_middle, reader), opened):
        group.append(image)
        pixels += image.width * image.height
        if pixels >= PIXELS_AT_ONCE or not reader.one_size:
            yield from _cut(reader, group)
            group, pixels = [], 0
    if group:
        yield from _cut(reader, group)


def _middle(reader: Reader, image: Image.Image) -> Image.Image:
    """The part of a strip that can be seen, where a processor makes the shorter side fit and then keeps the middle alone: a strip of
    1 x 100,000 pixels would become 110 GB on the way."""
    shortest = reader.image_processor.size.get("shortest_edge") if FAMILIES[reader.family].keeps_middle else None
    height, width = image.height, image.width
    if not shortest or shortest**2 * max(height, width) <= RESIZED_PIXELS * min(height, width):
        return image
    keep = RESIZED_PIXELS * min(height, width) // shortest**2
    left, top = (max(0, length - keep + 1) // 2 if length == max(height, width) else 0 for length in (width, height))
    return image.crop((left, top, width - left, height - top))  # as much from both ends, so that the middle stays the middle


def _cut(reader: Reader, images: list[Image.Image]) -> list[Float[np.ndarray, "N C"]]:
    """Patches of one picture, or of several where all have one size."""
    pixels = np.asarray(reader.image_processor(images=images, return_tensors="np")["pixel_values"], np.float32)
    if reader.side == 0:
        return [pixels]
    pixels_a_side = reader.side * reader.patch  # what is left over at the edges is seen by no patch
    tiles_ICYX = pixels.reshape(-1, *pixels.shape[-3:])[..., :pixels_a_side, :pixels_a_side]
    patches = einops.rearrange(tiles_ICYX, "I C (Y y) (X x) -> (I Y X) (C y x)", y=reader.patch, x=reader.patch)
    return np.split(patches, len(images))


def grid_places(grid: tuple[int, int], merge: int) -> Int[np.ndarray, "N 2"]:
    """Row and column of each patch: squares of `merge` x `merge` patches in reading order, so that a feature's are neighbours."""
    rows, columns = np.indices(grid).reshape(2, grid[0] // merge, merge, grid[1] // merge, merge).swapaxes(2, 3).reshape(2, -1)
    return np.stack([rows, columns], axis=1).astype(np.int32)


def mrope(is_image_P: np.ndarray, layouts: Sequence[Layout], merge: int) -> Int[np.ndarray, "P 3"]:
    """M-RoPE (Wang et al., arXiv 2409.12191, section 2.1): time, row and column of every token.

    Text counts up on all three at once. The features of a picture share one time, have rows and columns of their own from there,
    and what follows goes on after the largest of them.
    """
    positions_P3 = np.zeros((len(is_image_P), 3), np.int32)
    at, following, pictures = 0, 0, iter(layouts)
    while at < len(is_image_P):
        if is_image_P[at]:
            grid = next(pictures).grid
            rows, columns = grid[0] // merge, grid[1] // merge
            count = rows * columns
            places = np.stack([np.zeros(count, np.int64), *np.indices((rows, columns)).reshape(2, -1)], axis=1)
            positions_P3[at : at + count] = following + places
            following += max(rows, columns)
            at += count
        else:
            positions_P3[at] = following
            following, at = following + 1, at + 1
    return positions_P3
