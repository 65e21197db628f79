"""Cells of a raw row that every layout has: texts, pictures, and what is left over."""

from collections.abc import Collection, Mapping
from typing import Any

from srlhfv_jax.data import labels
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.rows import ReadImage, Row, writable
from srlhfv_jax.errors import shown


def text(row: Row, name: str) -> str:
    """The text of a column, without white space around it; "" where there is none.

    Raises:
        Unusable: as `clean`.
    """
    return clean(row.get(name), name)


def clean(value: Any, name: str) -> str:
    """A text without white space around it; "" for nothing.

    Raises:
        Unusable: it is no text, or half a character is in it.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Unusable("bad_label", f"{name} must be text, got {shown(value)}")
    if value != writable(value):
        raise Unusable("broken_text", f"{name} is {shown(value)}")
    return value.strip()


def clean_inside(value: Any, name: str) -> str:
    """As `clean`, with the white space around it: the text is part of a longer one."""
    clean(value, name)
    return value or ""


def pictures(row: Row, read_image: ReadImage, *, required: bool = False) -> tuple[bytes, ...]:
    """One picture in `image`, or a list of them in `images`.

    Raises:
        Unusable: a picture is not there, or both columns are filled.
    """
    single, several = row.get("image"), row.get("images")
    if isinstance(single, (list, tuple)):
        single, several = (single[0] if len(single) == 1 else None), (several if len(single) < 2 else single)
    several = [several] if isinstance(several, (str, bytes, Mapping)) and several else labels.cells({"images": several}, "images")
    if several:
        if not labels.absent(row.get("image")) and several is not row["image"]:
            raise Unusable("bad_label", "the row has both image and images: expected one of them")
        found = tuple(map(read_image, several))
        if None in found:
            raise Unusable("missing_image", f"cell {found.index(None)} of {len(found)} in images is empty")
        return found
    image = None if labels.absent(single) else read_image(single)
    if image is None and required:
        raise Unusable("missing_image", "the image cell is empty")
    return () if image is None else (image,)


def meta(row: Row, used: Collection[str]) -> dict[str, str]:
    """The columns that no reader used, as text; a table of flags (harm categories) becomes the list of those that are true."""
    left = {}
    for name, value in row.items():
        if name in used or labels.absent(value):
            continue
        names = labels.true_names(value)
        if names is not None:
            left[name] = ", ".join(names)
        elif isinstance(value, (str, int, float, bool)):
            left[name] = str(value)
    return {writable(name): writable(value) for name, value in left.items()}
