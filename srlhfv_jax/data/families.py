"""Everything on the side of data that belongs to a model family, as one record each: how its pictures become patches and placeholders.

llava, gemma3       one square tile
llava_next          the whole picture as a tile, then the tiles it is cut into; features of padding dropped, a newline a line
smolvlm, idefics3   the tiles it is cut into, then the whole picture; each tile announced in the text
qwen2*_vl           one grid of patches as large as the picture, four neighbours to a feature
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from srlhfv_jax.batches import NEWLINE
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.errors import UserError

CHANNELS = 3
FAKE, GLOBAL = "<fake_token_around_image>", "<global-img>"  # SmolVLM's and Idefics3's words around a tile


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
        return FAMILIES[self.family].one_size


class Layout(NamedTuple):
    """Patches and placeholders of a picture of a certain size."""

    patches: int  # N
    placeholders: int  # M
    order_M: Int[np.ndarray, "M"] | None = None  # feature of each placeholder (batches.Images); None: in order
    grid: tuple[int, int] | None = None  # patches down and across, where positions depend on them
    text: str = ""  # what `Reader.written` becomes; "": one placeholder for each feature


class Family(NamedTuple):
    """One `model_type` of config.json."""

    read: Callable[[Any], Reader]  # of its processor, or of the parts of it
    layout: Callable[[Reader, tuple[int, int]], Layout]  # of a picture of (height, width) pixels
    # pixels of its smallest picture, and what of the processor's settings keeps others to so many pixels; None: one tile for all
    limit: Callable[[Reader, int], tuple[int, dict[str, Any]]] | None
    tiles: int  # most that it cuts a picture into; 0: it cuts none
    processor: str = ""  # class of transformers that makes its processor without torchvision; "": its parts are read (`Bundle`)
    keeps_middle: bool = False  # its processor makes the shorter side fit the tile, and keeps the middle

    @property
    def one_size(self) -> bool:
        """Every picture becomes one tile, whatever its size."""
        return self.limit is None


def _read_llava(processor: Any) -> Reader:
    """
    Raises:
        UserError: it does not say how many placeholders an image needs.
    """
    if processor.patch_size is None or processor.vision_feature_select_strategy is None:
        raise UserError(
            "the processor does not say how many placeholders an image needs: set patch_size and "
            "vision_feature_select_strategy in processor_config.json, as newer exports of the checkpoint do"
        )
    images, token, patch = processor.image_processor, processor.image_token, processor.patch_size
    side = images.crop_size["height"] // patch
    dropped = 1 if processor.vision_feature_select_strategy == "default" else 0
    return Reader(
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


def _read_llava_next(processor: Any) -> Reader:
    pinpoints = tuple(tuple(size) for size in processor.image_processor.image_grid_pinpoints)
    return _read_llava(processor)._replace(family="llava_next", pinpoints=pinpoints)


def _read_parts(bundle: Bundle) -> Reader:
    """Settings that every bundle has."""
    token, patch = bundle.image_token, bundle.patch
    return Reader(bundle.family, bundle.image_processor, token, token, patch, 0, 0, bundle.merge, CHANNELS * patch**2)


def _read_tiles(bundle: Bundle, pixels: int) -> Reader:
    side = pixels // bundle.patch
    return _read_parts(bundle)._replace(side=side, features=(side // bundle.merge) ** 2)


def _read_smolvlm(bundle: Bundle) -> Reader:
    return _read_tiles(bundle, bundle.image_processor.max_image_size["longest_edge"])


def _read_gemma3(bundle: Bundle) -> Reader:
    images = bundle.image_processor
    reader = _read_tiles(bundle, images.size["height"])
    if images.do_pan_and_scan:
        raise UserError("do_pan_and_scan is not supported: set it to false in preprocessor_config.json")
    marks = bundle.tokenizer.special_tokens_map
    if not {"boi_token", "eoi_token"} <= marks.keys():
        raise UserError("the tokenizer has no boi_token and eoi_token, between which Gemma 3 sees an image")
    begin, end = marks["boi_token"], marks["eoi_token"]
    return reader._replace(written=begin, around=(f"\n\n{begin}", f"{end}\n\n"))


def _read_qwen2_vl(bundle: Bundle) -> Reader:
    images = bundle.image_processor
    patch = images.patch_size
    values = CHANNELS * images.temporal_patch_size * patch**2
    return _read_parts(bundle)._replace(patch=patch, merge=images.merge_size, values=values)


def _limit_llava_next(reader: Reader, max_pixels: int) -> tuple[int, dict[str, Any]]:
    pinpoints = [list(size) for size in reader.pinpoints if math.prod(size) <= max_pixels]
    return min(map(math.prod, reader.pinpoints)), {"image_grid_pinpoints": pinpoints}


def _limit_smolvlm(reader: Reader, max_pixels: int) -> tuple[int, dict[str, Any]]:
    images = reader.image_processor.to_dict()
    edge = images["max_image_size"]["longest_edge"]
    longest = min(math.isqrt(max_pixels) // edge * edge, images["size"]["longest_edge"])
    return (reader.side * reader.patch) ** 2, {"size": {"longest_edge": longest}}


def _limit_qwen2_vl(reader: Reader, max_pixels: int) -> tuple[int, dict[str, Any]]:
    size = reader.image_processor.to_dict()["size"]
    least = max(size["shortest_edge"], (reader.patch * reader.merge) ** 2)
    return least, {"size": dict(size) | {"longest_edge": min(max_pixels, size["longest_edge"])}}


def _one_tile(reader: Reader, size: tuple[int, int]) -> Layout:
    return Layout(reader.side**2, reader.features)


def _one_tile_between_words(reader: Reader, size: tuple[int, int]) -> Layout:
    return _one_tile(reader, size)._replace(text=(reader.image_token * reader.features).join(reader.around))


def _whole_and_tiles(reader: Reader, size: tuple[int, int]) -> Layout:
    tiles = _best_tiles(reader, size)
    order_M = _whole_then_tiles(reader.side, tiles, size)
    return Layout((1 + tiles[0] * tiles[1]) * reader.side**2, len(order_M), order_M)


def _announced_tiles(reader: Reader, size: tuple[int, int]) -> Layout:
    rows, columns = _tiles_to_cover(reader, size)
    count, marks = rows * columns + 1, reader.image_token * reader.features
    return Layout(count * reader.side**2, count * reader.features, text=_announced(rows, columns, marks))


def _whole_grid(reader: Reader, size: tuple[int, int]) -> Layout:
    rows, columns = _grid(reader, size)
    return Layout(rows * columns, rows * columns // reader.merge**2, grid=(rows, columns))


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


_SMOLVLM = Family(_read_smolvlm, _announced_tiles, _limit_smolvlm, tiles=17)
_QWEN2_VL = Family(_read_qwen2_vl, _whole_grid, _limit_qwen2_vl, tiles=0)
FAMILIES = {
    "llava": Family(_read_llava, _one_tile, None, tiles=1, processor="LlavaProcessor", keeps_middle=True),
    "llava_next": Family(_read_llava_next, _whole_and_tiles, _limit_llava_next, tiles=5, processor="LlavaNextProcessor"),
    "smolvlm": _SMOLVLM,
    "idefics3": _SMOLVLM,
    "gemma3": Family(_read_gemma3, _one_tile_between_words, None, tiles=1),
    "qwen2_vl": _QWEN2_VL,
    "qwen2_5_vl": _QWEN2_VL,
}
