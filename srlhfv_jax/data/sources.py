"""Rows by number from wherever they lie: JSON lines, parquet, folders of either, or a TFDS folder (ArrayRecord).

`open_rows` gives raw rows (plain dicts), `load_examples` the usable `Example`s among them, each checked once, with every dropped
row counted under its reason. Parquet tables stay in memory as Arrow buffers; a data set larger than memory goes through `srlhfv
data prepare`, whose ArrayRecord files are read row by row from the disk.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from srlhfv_jax.config import DataConfig
from srlhfv_jax.data import images, rows
from srlhfv_jax.data.drops import REASONS, Drop, Unusable
from srlhfv_jax.data.rows import Example
from srlhfv_jax.errors import UserError

ROWS_AT_ONCE = 64  # whose pictures are in memory together

_SPLIT = re.compile(r"(?P<name>[\w.-]*)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


class Rows(NamedTuple):
    """Raw rows and where their images lie."""

    columns: tuple[str, ...]
    items: Sequence[dict[str, Any]]
    image_dir: Path


class Dropped(NamedTuple):
    """One dropped row, for `srlhfv data inspect`."""

    row: int
    reason: str
    detail: str


class Examples(Sequence[Example]):
    """The usable rows of a source, read again at every access: only their numbers are kept, not the pictures."""

    def __init__(self, source: Rows, layout: str, kept: Sequence[int], dropped: Sequence[Dropped]):
        self.layout = layout
        self.kept = tuple(kept)  # row number in the source of each example
        self.dropped = tuple(dropped)
        self.drops = Counter(drop.reason for drop in dropped)
        self.source_rows = len(source.items)
        self._source = source

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._example(self.kept[index], self._source.items[self.kept[index]])

    def __iter__(self) -> Iterator[Example]:
        kept = set(self.kept)
        for part in _parts(len(self._source.items)):
            for number, row in enumerate(self._source.items[part], start=part.start):
                if number in kept:
                    yield self._example(number, row)

    def _example(self, number: int, row: dict[str, Any]) -> Example:
        example = _read(self._source, self.layout, row)
        if isinstance(example, Drop):
            raise UserError(f"row {number} was usable before and is not now ({example.detail}): did its image file change?")
        return example


def load_examples(data: DataConfig) -> Examples:
    """Open `data.path` and check every row, images included (each distinct picture is decoded once).

    Raises:
        UserError: nothing there, an unknown layout, or no usable row.
    """
    source = open_rows(data.path, data.split, data.image_dir)
    layout = rows.detect(source.columns)
    seen: set[bytes] = set()
    with ThreadPoolExecutor(max(1, data.workers)) as pool:
        parts = pool.map(partial(_check, source, layout, seen), _parts(len(source.items)))
        checked = [drop for part in parts for drop in part]
    kept = [number for number, drop in enumerate(checked) if drop is None]
    dropped = [Dropped(number, *drop) for number, drop in enumerate(checked) if drop is not None]
    examples = Examples(source, layout, kept, dropped)
    if not kept:
        raise UserError(f"{data.path}: none of the {len(source.items)} rows can be used ({describe_drops(examples.drops)})")
    return examples


def describe_drops(drops: Counter) -> str:
    """One line, commonest first: "missing_image 3 (the image cell is empty ...), ..."."""
    return ", ".join(f"{reason} {count} ({REASONS[reason]})" for reason, count in drops.most_common()) or "none dropped"


def open_rows(path: str, split: str, image_dir: str) -> Rows:
    """Open a .jsonl or .parquet file, a folder of them, or a TFDS folder.

    Args:
        path: the file or folder.
        split: "train", "train[:1000]", "[10%:20%]". The name selects a TFDS split, or in a folder the files that are called
            train.* or train-*; a single file takes only a slice.
        image_dir: images named by relative paths are looked up here; "" = beside the file.
    """
    root = Path(path)
    if not path or not root.exists():
        raise UserError(
            f"data path {path!r} does not exist: expected a .jsonl or .parquet file, a folder of them, or a TFDS folder"
        )
    match = _SPLIT.fullmatch(split)
    if match is None:
        raise UserError(
            f"split {split!r} is not understood: expected a name, a slice, or both, such as 'train[:1000]' or '[10%:]'"
        )
    folder = Path(image_dir) if image_dir else (root if root.is_dir() else root.parent)
    if not folder.is_dir():
        raise UserError(f"image folder {image_dir!r} does not exist: data.image_dir must be a folder")
    if root.is_dir() and (info := _tfds_folder(root)) is not None:
        return _open_tfds(info, match, folder)
    files = _files(root, match["name"])
    if all(file.suffix == ".parquet" for file in files):
        columns, items = _open_parquet(files)
    else:
        columns, items = _open_jsonl(files)
    return Rows(columns, _Part(items, _range(match, len(items))), folder)


class _Part(Sequence):
    """Some items of a sequence, by number."""

    def __init__(self, items: Sequence, numbers: range):
        self._items, self._numbers = items, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index):
        if isinstance(index, slice):
            assert index.step is None, "neighbours only"
            numbers = self._numbers[index]
            return self._items[numbers.start : numbers.stop]
        return self._items[self._numbers[index]]


class _Table(Sequence):
    """Rows of an Arrow table."""

    def __init__(self, table: pa.Table):
        self._table = table

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, index):
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            assert step == 1, "neighbours only"
            return self._table.slice(start, stop - start).to_pylist()
        return self._table.slice(index, 1).to_pylist()[0]


class _Records(Sequence):
    """Rows of a TFDS data source, with NumPy values turned into plain ones and pictures left encoded."""

    def __init__(self, source: Sequence, images: frozenset[str]):
        self._source, self._images = source, images

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return {name: value if name in self._images else _plain(value) for name, value in self._source[index].items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, np.ndarray) and value.ndim:
        return [_plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.item())
    return value


def _read(source: Rows, layout: str, row: dict[str, Any]) -> Example | Drop:
    return rows.read(layout, row, partial(images.cell_bytes, folder=source.image_dir))


def _parts(count: int) -> list[slice]:
    """Some of all rows at a time: of a table many are read in little more time than one."""
    return [slice(start, start + ROWS_AT_ONCE) for start in range(0, count, ROWS_AT_ONCE)]


def _check(source: Rows, layout: str, seen: set[bytes], part: slice) -> list[Drop | None]:
    """None for a usable row. `seen` holds digests of pictures that were decoded without complaint."""
    return [_check_row(source, layout, seen, row) for row in source.items[part]]


def _check_row(source: Rows, layout: str, seen: set[bytes], row: dict[str, Any]) -> Drop | None:
    example = _read(source, layout, row)
    if isinstance(example, Drop):
        return example
    for image in example.images:
        digest = images.digest(image)
        if digest not in seen:
            try:
                images.decode(image)
            except Unusable as unusable:
                return Drop(unusable.reason, unusable.detail)
            seen.add(digest)
    return None


def _range(match: re.Match, count: int) -> range:
    def bound(text: str | None, default: int) -> int:
        if text is None:
            return default
        return round(float(text[:-1]) / 100 * count) if text.endswith("%") else int(text)

    return range(count)[bound(match["start"], 0) : bound(match["stop"], count)]


def _files(root: Path, name: str) -> list[Path]:
    if root.is_file():
        if name:
            raise UserError(f"{root} is one file: it takes a slice such as '[:1000]', not the split name {name!r}")
        files = [root]
    else:
        found = [file for file in sorted(root.rglob("*")) if file.suffix in (".parquet", ".jsonl") and file.is_file()]
        files = [file for file in found if not name or file.stem == name or file.stem.startswith(f"{name}-")]
        if found and not files:
            known = sorted({file.stem.split("-")[0] for file in found})
            raise UserError(f"{root} has no files of a split {name!r}; it has {', '.join(known)}")
    if not files or {file.suffix for file in files} not in ({".parquet"}, {".jsonl"}):
        seen = ", ".join(sorted({file.suffix or file.name for file in files})) or "neither"
        raise UserError(
            f"{root}: expected .jsonl or .parquet files of one kind, or a TFDS folder (dataset_info.json); found {seen}"
        )
    return files


def _open_parquet(files: list[Path]) -> tuple[tuple[str, ...], Sequence]:
    tables = []
    for file in files:
        try:
            tables.append(pq.read_table(file))
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{file} cannot be read as parquet ({error}): is the download complete?") from error
    table = pa.concat_tables(tables, promote_options="default")
    return tuple(table.column_names), _Table(table)


def _open_jsonl(files: list[Path]) -> tuple[tuple[str, ...], Sequence]:
    items, columns = [], {}
    for file in files:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    items.append(_json_row(file, number, line))
                    columns.update(dict.fromkeys(items[-1]))
    return tuple(columns), items


def _json_row(file: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{number} is not JSON ({error}): expected one object per line") from error
    if not isinstance(row, dict):
        raise UserError(f"{file}:{number} is a JSON {type(row).__name__}: expected one object per line")
    return row


def _tfds_folder(root: Path) -> Path | None:
    """The folder with dataset_info.json: `root`, or the one version (or configuration and version) below it."""
    found = [info.parent for depth in ("", "*/", "*/*/", "*/*/*/") for info in sorted(root.glob(f"{depth}dataset_info.json"))]
    found = [path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts)]  # being written
    if len(found) > 1:
        raise UserError(
            f"{root} holds {len(found)} TFDS data sets: give one of {', '.join(str(path.relative_to(root)) for path in found)}"
        )
    return found[0] if found else None


def _open_tfds(folder: Path, match: re.Match, image_dir: Path) -> Rows:
    import tensorflow_datasets as tfds  # slow to import, needed by this kind of source alone; does not import TensorFlow

    builder = tfds.builder_from_directory(folder)
    splits = sorted(builder.info.splits)
    name = match["name"] or (splits[0] if len(splits) == 1 else "")
    if name not in splits:
        raise UserError(f"{folder} has no split {name!r}: choose data.split from {', '.join(splits)}")
    pictures = [key for key, feature in builder.info.features.items() if isinstance(feature, tfds.features.Image)]
    source = builder.as_data_source(name, decoders={key: tfds.decode.SkipDecoding() for key in pictures})
    items = _Part(_Records(source, frozenset(pictures)), _range(match, len(source)))
    return Rows(tuple(builder.info.features), items, image_dir)
