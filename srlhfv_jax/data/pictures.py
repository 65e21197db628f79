"""Pictures as a checkpoint reads them: cut into patches, one placeholder for each feature, and rotary positions for all of it.

Everything but the pixels follows from the picture's size alone, so that rows can be checked before step 0 without resizing a
picture. The pixels come from the checkpoint's own image processor.

    llava, gemma3       one square tile
    llava_next          the whole picture as a tile, then the tiles it is cut into; features of padding dropped, a newline a line
    smolvlm, idefics3   the tiles it is cut into, then the whole picture; each tile announced in the text
    qwen2*_vl           one grid of patches as large as the picture, four neighbours to a feature
"""

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import einops
import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from srlhfv_jax.batches import NEWLINE
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.errors import UserError

CHANNELS = 3
FAKE, GLOBAL = "<fake_token_around_image>", "<global-img>"  # SmolVLM's and Idefics3's words around a tile
RESIZED_PIXELS = 4 << 20  # most that a picture may have when its shorter side fits the tile: 40 MB in a processor
PIXELS_AT_ONCE = 1 << 20  # of the pictures that are prepared together: more are large ones, whose memory counts


class Bundle(NamedTuple):
    """The parts of a processor whose own class cannot be made without torchvision (for films) or other packages."""

    tokenizer: Any  # with the chat template
    image_processor: Any
    image_token: str  # the placeholder
    family: str  # of config.json, as the next two
    patch: int
    merge: int


class Reader(NamedTuple):
    """Settings about pictures in the files of a checkpoint."""

    family: str
    image_processor: Any
    written: str  # what stands for a picture in the chat template
    image_token: str  # what stands for a feature
    patch: int
    side: int  # patches along a side of a tile; 0: there are no tiles
    features: int  # of a tile; 0: there are no tiles
    merge: int  # side of the squares of patches that become one feature
    values: int  # C: numbers in a patch
    pinpoints: tuple[tuple[int, int], ...] = ()  # (height, width) of the tiles together, of which one is chosen
    around: tuple[str, str] = ("", "")  # text before and after the placeholders of a picture

    @property
    def one_size(self) -> bool:
        """Every picture becomes one tile, whatever its size."""
        return self.family in ("llava", "gemma3")


class Layout(NamedTuple):
    """Patches and placeholders of a picture of a certain size."""

    patches: int  # N
    placeholders: int  # M
    order_M: Int[np.ndarray, "M"] | None = None  # feature of each placeholder (batches.Images); None: in order
    grid: tuple[int, int] | None = None  # patches down and across, where positions depend on them
    text: str = ""  # what `Reader.written` becomes; "": one placeholder for each feature


def reader(processor: Any) -> Reader:
    """Describe the processor of a vision-language checkpoint.

    Raises:
        UserError: it is of an unknown kind, or does not say how many placeholders an image needs.
    """
    from transformers import LlavaNextProcessor, LlavaProcessor

    if isinstance(processor, Bundle):
        return _of_bundle(processor)
    if not isinstance(processor, (LlavaProcessor, LlavaNextProcessor)):
        raise UserError(f"the processor {type(processor).__name__} is not one of a family that is supported")
    if processor.patch_size is None or processor.vision_feature_select_strategy is None:
        raise UserError(
            "the processor does not say how many placeholders an image needs: set patch_size and "
            "vision_feature_select_strategy in processor_config.json, as newer exports of the checkpoint do"
        )
    images, token, patch = processor.image_processor, processor.image_token, processor.patch_size
    side = images.crop_size["height"] // patch
    dropped = 1 if processor.vision_feature_select_strategy == "default" else 0
    found = Reader(
        family="llava",
        image_processor=images,
        written=token,
        image_token=token,
        patch=patch,
        side=side,
        features=side**2 + processor.num_additional_image_tokens - dropped,
        merge=1,
        values=CHANNELS * patch**2,
    )
    if isinstance(processor, LlavaProcessor):
        return found
    return found._replace(family="llava_next", pinpoints=tuple(tuple(size) for size in images.image_grid_pinpoints))


def _of_bundle(bundle: Bundle) -> Reader:
    images, token, patch, merge = bundle.image_processor, bundle.image_token, bundle.patch, bundle.merge
    found = Reader(bundle.family, images, token, token, patch, 0, 0, merge, CHANNELS * patch**2)
    if bundle.family.startswith("qwen2"):
        patch = images.patch_size
        return found._replace(patch=patch, merge=images.merge_size, values=CHANNELS * images.temporal_patch_size * patch**2)
    pixels = images.size["height"] if bundle.family == "gemma3" else images.max_image_size["longest_edge"]
    side = pixels // patch
    found = found._replace(side=side, features=(side // merge) ** 2)
    if bundle.family != "gemma3":
        return found
    if images.do_pan_and_scan:
        raise UserError("do_pan_and_scan is not supported: set it to false in preprocessor_config.json")
    marks = bundle.tokenizer.special_tokens_map
    if not {"boi_token", "eoi_token"} <= marks.keys():
        raise UserError("the tokenizer has no boi_token and eoi_token, between which Gemma 3 sees an image")
    begin, end = marks["boi_token"], marks["eoi_token"]
    return found._replace(written=begin, around=(f"\n\n{begin}", f"{end}\n\n"))


def limited(reader: Reader, max_pixels: int) -> Reader:
    """The same with pictures of at most so many pixels, as far as the family lets them differ; 0: as they are.

    Raises:
        UserError: the smallest picture of the family is larger, or all have one size.
    """
    if not max_pixels:
        return reader
    if reader.one_size:
        raise UserError(
            f"data.max_pixels {max_pixels} would be ignored: pictures of this checkpoint have one size; leave it at 0"
        )
    settings, tile = reader.image_processor.to_dict(), reader.side * reader.patch
    if reader.family == "llava_next":
        pinpoints = tuple(size for size in reader.pinpoints if math.prod(size) <= max_pixels)
        least, changed = min(map(math.prod, reader.pinpoints)), {"image_grid_pinpoints": [list(size) for size in pinpoints]}
    elif reader.side:
        tiles = math.isqrt(max_pixels) // settings["max_image_size"]["longest_edge"]
        longest = min(tiles * settings["max_image_size"]["longest_edge"], settings["size"]["longest_edge"])
        pinpoints, least, changed = (), tile**2, {"size": {"longest_edge": longest}}
    else:
        least = max(settings["size"]["shortest_edge"], (reader.patch * reader.merge) ** 2)
        size = dict(settings["size"]) | {"longest_edge": min(max_pixels, settings["size"]["longest_edge"])}
        pinpoints, changed = (), {"size": size}
    if max_pixels < least:
        raise UserError(f"data.max_pixels must be at least {least}, the smallest picture of this checkpoint, got {max_pixels}")
    smaller = type(reader.image_processor).from_dict(settings | changed)
    return reader._replace(image_processor=smaller, pinpoints=pinpoints)


def layout(reader: Reader, size: tuple[int, int]) -> Layout:
    """Layout of a picture of (height, width) pixels.

    Raises:
        Unusable: the family cannot read a picture of this shape.
    """
    tile, marks = reader.side**2, reader.image_token * reader.features
    if reader.family == "llava":
        return Layout(tile, reader.features)
    if reader.family == "gemma3":
        return Layout(tile, reader.features, text=marks.join(reader.around))
    if reader.family == "llava_next":
        tiles = _best_tiles(reader, size)
        order_M = _whole_then_tiles(reader.side, tiles, size)
        return Layout((1 + tiles[0] * tiles[1]) * tile, len(order_M), order_M)
    if reader.family in ("smolvlm", "idefics3"):
        rows, columns = _tiles_to_cover(reader, size)
        count = rows * columns + 1
        return Layout(count * tile, count * reader.features, text=_announced(rows, columns, marks))
    rows, columns = _grid(reader, size)
    return Layout(rows * columns, rows * columns // reader.merge**2, grid=(rows, columns))


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
    shortest = reader.image_processor.size.get("shortest_edge") if reader.family == "llava" else None
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


def _best_tiles(reader: Reader, size: tuple[int, int]) -> tuple[int, int]:
    """Tiles down and across."""
    from transformers.image_processing_utils import select_best_resolution

    pixels = reader.side * reader.patch
    height, width = select_best_resolution(size, reader.pinpoints)
    return height // pixels, width // pixels


def _whole_then_tiles(side: int, tiles: tuple[int, int], size: tuple[int, int]) -> Int[np.ndarray, "M"]:
    """Features of the first tile, then those of the others line by line, without the padding that made the picture fit."""
    lines, columns = np.indices((tiles[0] * side, tiles[1] * side))
    tile = 1 + lines // side * tiles[1] + columns // side
    order = tile * side**2 + lines % side * side + columns % side
    height, width = order.shape
    if size[1] / size[0] > width / height:  # wider than the tiles: padding above and below
        spare = (height - int(round(size[0] * (width / size[1]), 7))) // 2
        order = order[spare : height - spare]
    else:
        spare = (width - int(round(size[1] * (height / size[0]), 7))) // 2
        order = order[:, spare : width - spare]
    lines_with_ends = np.pad(order, ((0, 0), (0, 1)), constant_values=NEWLINE)
    return np.concatenate([np.arange(side**2), lines_with_ends.reshape(-1)]).astype(np.int32)


def _tiles_to_cover(reader: Reader, size: tuple[int, int]) -> tuple[int, int]:
    """Tiles down and across; (0, 0) where the picture is one tile as a whole. As Idefics3's image processor resizes and splits."""
    images = reader.image_processor
    pixels = images.max_image_size["longest_edge"]
    if not images.do_image_splitting:
        return 0, 0
    longest, ratio = images.size["longest_edge"], size[1] / size[0]

    def whole(length: float) -> int:
        return math.ceil(length / pixels) * pixels

    def even(length: int) -> int:
        return max(length + length % 2, 1)

    height, width = (even(int(longest / ratio)), longest) if ratio >= 1 else (longest, even(int(longest * ratio)))
    ratio = width / height
    if width >= height:
        width = whole(width)
        height = whole(int(width / ratio))
    else:
        height = whole(height)
        width = whole(int(height * ratio))
    return (height // pixels, width // pixels) if max(height, width) > pixels else (0, 0)


def _announced(rows: int, columns: int, marks: str) -> str:
    """The placeholders of all tiles and of the whole picture, each tile announced by its place, each row ended."""
    lines = [
        "".join(f"{FAKE}<row_{row}_col_{column}>{marks}" for column in range(1, columns + 1)) + "\n" for row in range(1, rows + 1)
    ]
    before = "\n" if lines else ""
    return f"{''.join(lines)}{before}{FAKE}{GLOBAL}{marks}{FAKE}"


def _grid(reader: Reader, size: tuple[int, int]) -> tuple[int, int]:
    """Patches down and across after the picture was resized to whole squares of patches within the limits."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    limits = reader.image_processor.size
    try:
        height, width = smart_resize(
            *size,
            factor=reader.patch * reader.merge,
            min_pixels=limits["shortest_edge"],
            max_pixels=limits["longest_edge"],
        )
    except ValueError as error:
        raise Unusable("image_too_narrow", str(error)) from error
    return height // reader.patch, width // reader.patch
