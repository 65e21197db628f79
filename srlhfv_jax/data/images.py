"""Pictures on disk: from a cell of a row (bytes or a path inside the data folder) to a decoded image.

Nothing here trusts a data set: paths may not leave the folder, only a few formats are opened, sizes are limited before decoding,
and every picture is decoded once before step 0, so that a damaged file is a counted drop and not a crash at step 9000.
"""

import hashlib
import io
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from srlhfv_jax.data.drops import Unusable

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
EXIF_ORIENTATION = 0x0112  # 5 to 8: the picture is stored on its side
MAX_PIXELS = 64 * 1024 * 1024  # no vision tower needs more; PIL itself refuses at 179 million


def cell_bytes(cell: Any, folder: Path | None) -> bytes | None:
    """The encoded picture of one image cell; None for an empty cell.

    A cell is bytes, a path relative to `folder`, or Hugging Face's {"bytes", "path"}.

    Raises:
        Unusable: the file is missing, or the path leaves the folder.
    """
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if cell is None or cell == "":
        return None
    if isinstance(cell, (bytes, bytearray, memoryview)):
        return bytes(cell)
    if not isinstance(cell, str):
        raise Unusable("not_an_image", f"expected bytes or a path, got {type(cell).__name__}")
    if folder is None:
        raise Unusable("missing_image", f"{cell}: these rows have no image folder (set data.image_dir)")
    path = inside(folder, cell)
    if not path.is_file():
        raise Unusable("missing_image", f"{cell}: no such file in {folder}")
    return path.read_bytes()


def inside(folder: Path, name: str) -> Path:
    """`folder`/`name`, with links followed; Unusable when that is not inside `folder`."""
    root = folder.resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise Unusable("path_outside_folder", f"{name} leads to {path}, outside {root}")
    return path


def digest(encoded: bytes) -> bytes:
    """Names the content of an encoded picture."""
    return hashlib.blake2b(encoded, digest_size=16).digest()


def decode(encoded: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode to RGB, upright (EXIF), to the last byte.

    Raises:
        Unusable: not a picture, damaged, or too large.
    """
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise Unusable("image_too_large", str(error)) from error
    except UnidentifiedImageError as error:
        raise Unusable("not_an_image", f"{len(encoded)} bytes, beginning {encoded[:8]!r}") from error
    except Exception as error:  # the header of a known format is damaged: codecs raise SyntaxError, struct.error, EOFError, ...
        raise Unusable("truncated_image", f"{type(error).__name__}: {error}") from error
    width, height = image.size
    if width * height > max_pixels:
        raise Unusable("image_too_large", f"{width} x {height} pixels, at most {max_pixels} are decoded")
    try:
        image.load()
        # As transformers.image_utils.load_image does it, so that pictures look the same to both.
        return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:
        raise Unusable("truncated_image", f"{image.format} {width} x {height}: {error}") from error


def upright_size(encoded: bytes) -> tuple[int, int]:
    """(height, width) after `decode`; of a JPEG from its header alone.

    Raises:
        Unusable: as `decode`.
    """
    try:
        image = Image.open(io.BytesIO(encoded), formats=("JPEG",))
        width, height = image.size
        lying = image.getexif().get(EXIF_ORIENTATION, 1) >= 5
    except Exception:  # another format, or damaged: decoding it knows the size, or says what is wrong
        width, height = decode(encoded).size
        lying = False
    return (width, height) if lying else (height, width)
