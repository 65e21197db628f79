"""Pictures on disk: from a cell of a row (bytes, base64, or a path inside the data folder) to a decoded image.

Nothing here trusts a data set: paths may not leave the folder, links only to places that were allowed, only a few formats are
opened, sizes are limited before decoding, and every file is checked before step 0, so that a damaged one is a counted drop and not
a crash at step 9000. A file that is whole is not decoded for that (`check`): decoding all pictures of a large set takes minutes.
"""

import base64
import binascii
import hashlib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from huggingface_hub.constants import HF_HUB_CACHE
from PIL import Image, ImageOps, UnidentifiedImageError

from srlhfv_jax.data import places
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.errors import UserError, reason, shown

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
ORIENTATIONS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")  # one of them is in a PNG that says which way is up
JPEG_END = b"\xff\xd9"
EXIF_ORIENTATION = 0x0112  # 5 to 8: the picture is stored on its side
MAX_PIXELS = 64 * 1024 * 1024  # no vision tower needs more; PIL itself refuses at 179 million
MAX_BYTES = 8 * MAX_PIXELS  # of a file: what so many pixels of 16 bits and four channels take unpacked
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
# Base64 of a PNG, JPEG, GIF, WebP or BMP: no file is called so.
_BASE64 = re.compile(r"(iVBORw0KGgo|/9j/|R0lGOD|UklGR|Qk)[A-Za-z0-9+/\s]{40,}={0,2}")


class Place(NamedTuple):
    """A place to look pictures up in."""

    folder: Path
    trees: tuple[Path, ...]  # resolved; where the files may lie in the end: links may lead from one to another
    fetch: bool = False  # pictures behind http addresses are downloaded


def place(folder: Path, *allowed: Path, fetch: bool = False) -> Place:
    """`folder`, whose links may lead anywhere in it, in the folders `allowed`, and in the hub's cache where it lies there."""
    trees = [tree.resolve() for tree in (folder, *allowed)]
    # A snapshot of the hub's cache is a tree of links: REPOSITORY/snapshots/REVISION/x -> REPOSITORY/blobs/HASH.
    above = [path for tree in trees for path in (tree, *tree.parents)]
    repositories = [path.parents[1] for path in above if path.parent.name == "snapshots"]
    return Place(folder, (*trees, *(found / "blobs" for found in repositories)), fetch)


def cell_bytes(cell: Any, where: Place | None) -> bytes | None:
    """The encoded picture of one image cell; None for an empty cell.

    A cell is bytes, a path relative to `where`, base64 text, a data URI, or Hugging Face's {"bytes", "path"}.

    Raises:
        Unusable: the file is missing, too large, or outside, or this is no picture.
    """
    if isinstance(cell, Mapping):
        if cell and not {"bytes", "path"} & cell.keys():
            raise Unusable("not_an_image", f"expected bytes or path, got an object with {shown(list(cell))}")
        cell = cell.get("bytes") or cell.get("path")
    if cell is None or cell == "":
        return None
    if isinstance(cell, (bytes, bytearray, memoryview)):
        return bytes(cell)
    if not isinstance(cell, str):
        raise Unusable("not_an_image", f"expected bytes or a path, got {shown(cell)}")
    if _ADDRESS.match(cell):
        if where is not None and where.fetch:
            return places.picture(cell, MAX_BYTES)
        raise Unusable("image_not_here", f"{shown(cell)}: save the picture and give its path, or set data.fetch=true")
    if cell[:5].lower() == "data:":
        return _unpacked(cell.partition(",")[2])
    if _BASE64.fullmatch(cell.strip()):
        return _unpacked(cell)
    if where is None:
        raise Unusable("missing_image", f"{shown(cell)}: these rows have no image folder (set data.image_dir)")
    return read_file(inside(where, cell))


def read_file(path: Path) -> bytes:
    """Content of a file, unless it is larger than any picture.

    Raises:
        Unusable: it is larger, or cannot be read.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise Unusable("image_too_large", f"{shown(str(path))} has {size} bytes, at most {MAX_BYTES} are read")
        return path.read_bytes()
    except OSError as error:
        raise Unusable("missing_image", f"{shown(str(path))}: {reason(error)}") from error


def read_given(path: str, name: str) -> bytes | None:
    """The encoded picture in a file that a user names in the flag `name`; None for "".

    Raises:
        UserError: no such file, or no picture.
    """
    if not path:
        return None
    if not Path(path).is_file():
        raise UserError(f"{name}={path}: there is no such file")
    encoded = Path(path).read_bytes()
    try:
        decode(encoded)
    except Unusable as unusable:
        raise UserError(f"{name}={path}: {unusable}") from unusable
    return encoded


def _unpacked(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Unusable("not_an_image", f"{shown(text)} is not base64 ({reason(error)})") from error


def inside(where: Place, name: str) -> Path:
    """The file `name` of a place, with links followed.

    Raises:
        Unusable: there is none, or it lies outside of what is allowed.
    """
    try:
        path = (where.folder / name).resolve()
        is_file = path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long; a NUL, half a surrogate; a ring of links
        raise Unusable("missing_image", f"{shown(name)} cannot be a file ({reason(error)})") from error
    if not _allowed(path, where.trees):
        raise Unusable("path_outside_folder", f"{shown(name)} leads to {shown(str(path))}, outside {where.folder}")
    if not is_file:
        raise Unusable("missing_image", f"{shown(name)}: no such file in {where.folder}")
    return path


def _allowed(path: Path, trees: tuple[Path, ...]) -> bool:
    """In one of the trees, or a file of some data set in the hub's cache, to which downloads of older versions are links."""
    blobs = path.parent.name == "blobs" and path.parents[1].name.startswith("datasets--")
    return any(path.is_relative_to(tree) for tree in trees) or (blobs and path.parents[2] == Path(HF_HUB_CACHE).resolve())


def digest(encoded: bytes) -> bytes:
    """Names the content of an encoded picture."""
    return hashlib.blake2b(encoded, digest_size=16).digest()


def decode(encoded: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode to RGB, upright (EXIF), to the last byte.

    Raises:
        Unusable: not a picture, damaged, or too large.
    """
    image = _opened(encoded, max_pixels)
    width, height = image.size
    try:
        image.load()
        # As transformers.image_utils.load_image does it, so that pictures look the same to both.
        ImageOps.exif_transpose(image, in_place=True)
        image = _eight_bits(image)
        return image if image.mode == "RGB" else image.convert("RGB")  # a large picture is in memory once
    except Exception as error:
        raise Unusable("truncated_image", f"{image.format} {width} x {height}: {reason(error)}") from error


def check(encoded: bytes) -> None:
    """Check a picture by its header, and by whether its file is whole. One that is not, or whose format cannot tell, is decoded. So
    whatever fails here fails in `decode` too; a picture that was written wrongly fails there alone.

    Raises:
        Unusable: as `decode`.
    """
    if not _whole(_opened(encoded, MAX_PIXELS), encoded):
        decode(encoded)


def _whole(image: Image.Image, encoded: bytes) -> bool:
    """Whether a file has its end and, in a PNG, the content that its checksums say; false for formats without either."""
    if image.format in ("JPEG", "MPO"):
        return encoded.endswith(JPEG_END)
    if image.format == "WEBP":
        return len(encoded) >= 8 + int.from_bytes(encoded[4:8], "little")
    if image.format != "PNG":
        return False
    try:
        image.verify()
    except Exception:  # of several kinds; decoding says what is wrong, if anything
        return False
    return True


def _opened(encoded: bytes, max_pixels: int) -> Image.Image:
    """The picture with its header read.

    Raises:
        Unusable: as `decode`.
    """
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise Unusable("image_too_large", reason(error)) from error
    except UnidentifiedImageError as error:
        raise Unusable("not_an_image", f"{len(encoded)} bytes, beginning {encoded[:8]!r}") from error
    except Exception as error:  # the header of a known format is damaged: codecs raise SyntaxError, struct.error, EOFError, ...
        raise Unusable("truncated_image", f"{type(error).__name__}: {reason(error)}") from error
    width, height = image.size
    if width * height > max_pixels:
        raise Unusable("image_too_large", f"{width} x {height} pixels, at most {max_pixels} are decoded")
    return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """Gray of 16 bits in 8: `convert` cuts all above 255 off instead, which is white."""
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.clip(np.asarray(image, np.int32), 0, 0xFFFF) // 257).astype(np.uint8))


def upright_size(encoded: bytes) -> tuple[int, int]:
    """(height, width) after `decode`, from the header alone where it says which way is up.

    Raises:
        Unusable: as `decode`, if it had to be decoded.
    """
    try:
        image = Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG", "WEBP"))
        width, height = image.size
        lying = _lies(image, encoded)
    except Exception:  # another format, damaged, or not in the header: decoding it knows the size, or says what is wrong
        width, height = decode(encoded).size
        lying = False
    return (width, height) if lying else (height, width)


def _lies(image: Image.Image, encoded: bytes) -> bool:
    """Whether a picture is stored on its side; ValueError: its header may not say it."""
    if image.format != "PNG":
        return image.getexif().get(EXIF_ORIENTATION, 1) >= 5
    if any(name in encoded for name in ORIENTATIONS):
        raise ValueError("an orientation may come after the pixels")
    return False
