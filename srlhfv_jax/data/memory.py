"""Rows that are at hand in Python, with pictures and numbers of other libraries turned into plain values."""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from srlhfv_jax.errors import UserError, shown


class Plain(Sequence):
    """The rows of a sequence of mappings, each made plain when it is asked for."""

    def __init__(self, raw: Sequence[Mapping[str, Any]], name: str):
        if isinstance(raw, (str, bytes, Mapping)) or not hasattr(raw, "__len__") or not hasattr(raw, "__getitem__"):
            raise UserError(f"{name} must be a sequence of rows, each a dict of columns, got {shown(raw)}")
        self._raw, self._name = raw, name
        self.columns = tuple(dict.fromkeys(column for row in self._rows() for column in row))

    def __len__(self) -> int:
        return len(self._raw)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return {name: plain(value) for name, value in self._raw[index].items()}

    def _rows(self) -> Iterator[Mapping[str, Any]]:
        for index in range(len(self._raw)):
            row = self._raw[index]
            if not isinstance(row, Mapping) or not all(isinstance(name, str) for name in row):
                raise UserError(f"row {index} of {self._name} must be a dict of columns, got {shown(row)}")
            yield row


def plain(value: Any) -> Any:
    """A cell as a file would have it: pictures as bytes, arrays of other shapes as lists, paths as text."""
    if isinstance(value, Image.Image):
        return _encoded(value)
    if isinstance(value, np.ndarray):
        is_picture = value.dtype == np.uint8 and (value.ndim == 2 or (value.ndim == 3 and value.shape[2] in (3, 4)))
        return _encoded(Image.fromarray(value)) if is_picture else [plain(item) for item in value.tolist()]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def _encoded(image: Image.Image) -> bytes:
    """A PNG: nothing of it is lost."""
    buffer = io.BytesIO()
    image = image if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else image.convert("RGB")
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
