"""Rows of files of one kind: JSON lines, JSON, CSV, parquet and Arrow, packed (.gz, .xz, .bz2) or not.

JSON lines stay where they are: the places of the lines are kept, and a line is parsed each time it is asked for, so that a file may
be larger than memory. Parquet and Arrow tables are buffers of pyarrow; JSON and CSV are read whole.
"""

import array
import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
import re
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from srlhfv_jax.errors import UserError, reason, shown
from srlhfv_jax.files import json_object

PACKED = {".gz": gzip.decompress, ".xz": lzma.decompress, ".bz2": bz2.decompress}
KINDS = {".jsonl": ".jsonl", ".ndjson": ".jsonl", ".json": ".json", ".csv": ".csv", ".parquet": ".parquet", ".arrow": ".arrow"}
LINE = re.compile(rb"[^\r\n]*[^\r\n\s][^\r\n]*")  # with something in it: JSON has no line ends inside its texts
LISTS = ("[{", "[[", '["')  # a cell of CSV that begins so, and is JSON, is a list

Opened = tuple[tuple[str, ...], Sequence[dict[str, Any]]]  # columns, rows


def kind_of(file: Path) -> str:
    """The kind of a file by its name, ".jsonl" also of "x.jsonl.gz"; "" where it is none of `KINDS`."""
    suffixes = file.suffixes[-2:]
    if suffixes and suffixes[-1] in PACKED:
        suffixes = suffixes[:-1]
    return KINDS.get(suffixes[-1], "") if suffixes else ""


def stem(file: Path) -> str:
    """The name of a file without what says its kind and packing."""
    name = file.name.removesuffix(file.suffix) if file.suffix in PACKED else file.name
    return name.removesuffix(Path(name).suffix) if kind_of(file) else Path(name).stem


def open_files(files: Sequence[Path], split: str) -> Opened:
    """Columns and rows of files of one kind.

    Args:
        split: of a JSON file that is an object of splits; "": its only one.

    Raises:
        UserError: a file is damaged, or holds something else.
    """
    kind = kind_of(files[0])
    if kind in (".parquet", ".arrow"):
        return _open_tables(files)
    parts = [
        Lines(file) if kind == ".jsonl" else _open_json(file, split) if kind == ".json" else _open_csv(file) for file in files
    ]
    columns = dict.fromkeys(name for part in parts for name in (part.columns if isinstance(part, Lines) else _columns(part)))
    return tuple(columns), parts[0] if len(parts) == 1 else Joined(parts)


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, None]:
    return dict.fromkeys(name for row in rows for name in row)


class Joined(Sequence):
    """Several sequences one after the other."""

    def __init__(self, parts: Sequence[Sequence]):
        self._parts = tuple(parts)
        self.starts = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index):
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            assert step == 1, "neighbours only"
            found = []
            for part, begins in zip(self._parts, self.starts.tolist()):
                found += part[max(start - begins, 0) : min(max(stop - begins, 0), len(part))]
            return found
        index = range(len(self))[index]
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self._parts[part][index - int(self.starts[part])]


class Lines(Sequence):
    """Rows of a file of JSON lines. They are checked once when it is opened, and read again at every access."""

    def __init__(self, file: Path):
        self._file = file
        with _reading(file):
            self._handle = io.BytesIO(_unpacked(file)) if file.suffix in PACKED else file.open("rb")
            self._handle = (
                self._handle if (encoding := _encoding(self._handle)) == "utf-8" else _recoded(self._handle, encoding, file)
            )
        self._lock = threading.Lock()
        places, numbers, columns, begins = array.array("q"), array.array("q"), {}, 0
        for number, line in enumerate(self._handle, start=1):
            for text in LINE.finditer(line):
                columns.update(dict.fromkeys(json_object(text.group(), file, number)))
                places.extend((begins + text.start(), begins + text.end()))
                numbers.append(number)
            begins += len(line)
        self.columns = tuple(columns)
        self._places = np.array(places, np.int64).reshape(-1, 2)
        self._numbers = np.array(numbers, np.int64)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index):
        places, numbers = self._places[index].reshape(-1, 2).tolist(), self._numbers[index].reshape(-1).tolist()
        if not places:
            return []
        first, last = places[0][0], places[-1][1]
        with self._lock, _reading(self._file):
            self._handle.seek(first)
            block = self._handle.read(last - first)
        texts = (block[start - first : stop - first] for start, stop in places)
        rows = [json_object(text, self._file, number) for text, number in zip(texts, numbers)]
        return rows if isinstance(index, slice) else rows[0]


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    """One line for a file that cannot be opened or unpacked."""
    try:
        yield
    except UserError:
        raise
    except (EOFError, ValueError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{file} cannot be unpacked ({reason(error)}): is the download complete?") from error
    except OSError as error:
        damaged = file.suffix in PACKED and error.errno is None  # bz2 has no error of its own
        what, advice = ("unpacked", "is the download complete?") if damaged else ("read", "give a file that you may read")
        raise UserError(f"{file} cannot be {what} ({reason(error)}): {advice}") from error


def _unpacked(file: Path) -> bytes:
    with _reading(file):
        content = file.read_bytes()
        return PACKED[file.suffix](content) if file.suffix in PACKED else content


def _encoding(handle: BinaryIO) -> str:
    start = handle.read(4)
    handle.seek(0)
    return json.detect_encoding(start).removesuffix("-sig")


def _recoded(handle: BinaryIO, encoding: str, file: Path) -> BinaryIO:
    try:
        return io.BytesIO(handle.read().decode(encoding).encode("utf-8"))
    except UnicodeError as error:
        raise UserError(f"{file} is not {encoding} text ({reason(error)}): write it anew as UTF-8") from error


def _text(file: Path) -> str:
    """The text of a file in any Unicode encoding."""
    content = _unpacked(file)
    encoding = json.detect_encoding(content[:4])
    try:
        return content.decode(encoding).removeprefix("\ufeff")
    except UnicodeError as error:
        raise UserError(f"{file} is not {encoding} text ({reason(error)}): write it anew as UTF-8") from error


def _open_json(file: Path, split: str) -> Sequence[dict[str, Any]]:
    """A list of objects, an object of equally long lists, or an object of splits; JSON lines too, which many call .json."""
    text = _text(file)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        first = text.lstrip().partition("\n")[0].rstrip()
        if first.startswith("{") and first.endswith("}"):
            return Lines(file)
        raise UserError(f"{file} is not JSON ({reason(error)}): expected a list of objects") from error
    return _rows(value, split, file)


def _rows(value: Any, split: str, file: Path) -> list[dict[str, Any]]:
    if isinstance(value, list):
        other = next((number for number, row in enumerate(value) if not isinstance(row, dict)), None)
        if other is not None:
            raise UserError(
                f"{file}: item {other} of the list is a JSON {type(value[other]).__name__}: expected a list of objects"
            )
        return value
    if not isinstance(value, dict):
        raise UserError(f"{file} is a JSON {type(value).__name__}: expected a list of objects")
    lists = {name: one for name, one in value.items() if isinstance(one, list)}
    tables = [name for name, one in lists.items() if one and all(isinstance(row, dict) for row in one)]
    if lists and len(lists) == len(value) == len(tables):
        name = split if split in tables else tables[0] if len(tables) == 1 else None
        if name is None:
            raise UserError(f"{file} has the lists {', '.join(map(shown, tables[:12]))}: choose one with data.split")
        return lists[name]
    if lists and len(lists) == len(value) and len(set(map(len, lists.values()))) == 1:
        return [dict(zip(lists, cells)) for cells in zip(*lists.values())]
    if len(tables) == 1:  # beside words about the data
        return lists[tables[0]]
    raise UserError(
        f"{file} is a JSON object of {', '.join(map(shown, list(value)[:6])) or 'nothing'}: expected a list of objects, an object of "
        'equally long lists, or {"train": [...]}'
    )


def _open_csv(file: Path) -> list[dict[str, Any]]:
    """Rows with the names of the first line. A cell that is a JSON list is one; lines that begin with # come before the names."""
    lines = io.StringIO(_text(file), newline="")
    start = lines.tell()
    while lines.readline().startswith("#"):
        start = lines.tell()
    lines.seek(start)
    reader = csv.reader(lines, strict=True)
    limit = csv.field_size_limit(2**31 - 1)  # a cell may be a picture
    try:
        names = next(reader, [])
        if len(set(names)) < len(names) or "" in names:
            raise UserError(f"{file}: its first line must name every column once, got {shown(names)}")
        rows = []
        for cells in reader:
            if cells and len(cells) != len(names):
                raise UserError(
                    f"{file}: the row that ends in line {reader.line_num} has {len(cells)} cells and not {len(names)}"
                )
            if cells:
                rows.append({name: _cell(cell) for name, cell in zip(names, cells)})
    except csv.Error as error:
        raise UserError(f"{file}: line {reader.line_num} is not CSV ({reason(error)})") from error
    finally:
        csv.field_size_limit(limit)
    return rows


def _cell(text: str) -> Any:
    if text.startswith(LISTS):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text


def _open_tables(files: Sequence[Path]) -> Opened:
    tables = []
    for file in files:
        kind = kind_of(file)
        try:
            where = pa.BufferReader(_unpacked(file)) if file.suffix in PACKED else file
            table = pq.read_table(where) if kind == ".parquet" else _arrow(where)
            table.validate(full=True)  # text that is no UTF-8 fails only where its row is read
            tables.append(table)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(f"{file} cannot be read as {kind[1:]} ({reason(error)}): is the download complete?") from error
    try:
        table = pa.concat_tables(tables, promote_options="default")
    except pa.ArrowException as error:
        raise UserError(
            f"the files {files[0]} to {files[-1].name} have columns of different types ({reason(error)}): write them with one type"
        ) from error
    return tuple(table.column_names), Table(table)


def _arrow(where: Path | pa.BufferReader) -> pa.Table:
    """A table of the streaming format, which `save_to_disk` writes, or of the file format."""
    source = pa.memory_map(str(where)) if isinstance(where, Path) else where
    try:
        return pa.ipc.open_stream(source).read_all()
    except pa.ArrowInvalid:
        source.seek(0)
        return pa.ipc.open_file(source).read_all()


class Table(Sequence):
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
        return self._table.slice(range(len(self))[index], 1).to_pylist()[0]
