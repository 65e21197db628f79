"""Rows by number from wherever they lie: files (`tables`), folders of them (`splits`), or a TFDS folder (`tfds_folder`).

`open_rows` gives raw rows (plain dicts), `load_examples` the usable `Example`s among them, each checked once, with every dropped
row counted under its reason.
"""

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from srlhfv_jax.config import DataConfig
from srlhfv_jax.data import columns, images, layouts, memory, mixtures, places, rows, splits, tables
from srlhfv_jax.data.drops import REASONS, Drop, Dropped, Unusable
from srlhfv_jax.data.layouts import Layout, Reading
from srlhfv_jax.data.mixtures import Mixture
from srlhfv_jax.data.rows import Example
from srlhfv_jax.data.tfds_folder import open_tfds, tfds_folder
from srlhfv_jax.errors import LONGEST_LINE, UserError, short, shown

ROWS_AT_ONCE = 64  # whose pictures are in memory together

EXPECTED = f"a file of rows ({', '.join(tables.KINDS)}), a folder of them, a TFDS folder, or a data set of the hub (owner/name)"
_SPLIT = re.compile(r"(?P<name>[\w.-]*)(\[(?P<start>-?\d{1,18}%?)?:(?P<stop>-?\d{1,18}%?)?\])?")


class Rows(NamedTuple):
    """Raw rows and where their images lie."""

    columns: tuple[str, ...]
    items: Sequence[dict[str, Any]]
    images: images.Place


class Examples(Sequence[Example]):
    """The usable rows of a source, read again at every access: only their numbers are kept, not the pictures."""

    def __init__(self, source: Rows, layout: Layout, reading: Reading, numbers: Sequence[int], dropped: Sequence[Dropped]):
        self.layout = layout.name
        self.columns = source.columns
        self.unused = layouts.unused(layout, source.columns)
        self.kept = tuple(numbers)  # row number in the source of each example
        self.dropped = tuple(dropped)
        self.drops = Counter(drop.reason for drop in dropped)
        self.source_rows = len(source.items)
        self._source, self._layout, self._reading = source, layout, reading

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

    def column(self, name: str) -> list[Any]:
        """The cells of a column, of all usable rows."""
        kept, cells = set(self.kept), []
        for part in _parts(len(self._source.items)):
            rows = enumerate(self._source.items[part], start=part.start)
            cells += [row.get(name) for number, row in rows if number in kept]
        return cells

    def _example(self, number: int, row: dict[str, Any]) -> Example:
        example = layouts.read(self._layout, row, self._reading)
        if isinstance(example, Drop):
            raise UserError(f"row {number} was usable before and is not now ({example.detail}): did its image file change?")
        return example


def load_examples(data: DataConfig) -> Examples | Mixture:
    """Open `data.path`, which may name several sources, and check every row, images included: their files, or with `data.decode_first`
    their pixels (each distinct picture is decoded once).

    Columns that look as if they should be read and are not, are named on stderr.

    Raises:
        UserError: nothing there, an unknown layout, or a source without a usable row.
    """
    given = mixtures.parse(data.path)
    parts = [_load(data, source.path) for source in given]
    return parts[0] if len(parts) == 1 else Mixture(given, parts)


def check(data: DataConfig) -> None:
    """Open every source of `data.path` and find its layout; rows are not read.

    Raises:
        UserError: as `load_examples`, but for rows.
    """
    for source in mixtures.parse(data.path):
        _layout(_open(data, source.path), source.path)


def in_memory(raw: Sequence[Mapping[str, Any]], data: DataConfig, *, name: str = "rows") -> Examples:
    """Rows that are at hand, in any layout; pictures may be PIL images, arrays, bytes or paths.

    Args:
        raw: a sequence of dicts, such as a list or a `datasets.Dataset`.
        data: `path` and `split` are not read.
        name: for messages.

    Raises:
        UserError: these are no rows, or as `load_examples`.
    """
    items = memory.Plain(raw, name)
    if not items:
        raise UserError(f"{name} is empty: expected at least one row")
    where = images.place(Path(data.image_dir or "."), *([Path(data.allow_dir)] if data.allow_dir else []), fetch=data.fetch)
    return _checked(Rows(*columns.rename(items.columns, items, data.columns), where), data, name)


def _load(data: DataConfig, path: str) -> Examples:
    return _checked(_open(data, path), data, path)


def _open(data: DataConfig, path: str) -> Rows:
    source = open_rows(path, data.split, data.image_dir, data.allow_dir, revision=data.revision, fetch=data.fetch)
    names, items = columns.rename(source.columns, source.items, data.columns)
    return source._replace(columns=names, items=items)


def _layout(source: Rows, path: str) -> Layout:
    try:
        return layouts.detect(source.columns)
    except UserError as error:
        raise UserError(f"{short(path)}: {error}") from None


def _checked(source: Rows, data: DataConfig, path: str) -> Examples:
    layout = _layout(source, path)
    reading = Reading(partial(images.cell_bytes, where=source.images), data.label_means, data.chosen_means)
    unread = layouts.unread(layout, source.columns, source.items[:ROWS_AT_ONCE])
    if unread:
        print(f"warning: {path}: read as {layout.name}, without {_unread(unread)}", file=sys.stderr, flush=True)
    check_image = _decode_once() if data.decode_first else images.check
    with ThreadPoolExecutor(max(1, data.workers)) as pool:
        parts = pool.map(partial(_check, source, layout, reading, check_image), _parts(len(source.items)))
        checked = [drop for part in parts for drop in part]
    kept = [number for number, drop in enumerate(checked) if drop is None]
    dropped = [Dropped(number, *drop) for number, drop in enumerate(checked) if drop is not None]
    examples = Examples(source, layout, reading, kept, dropped)
    if not kept:
        said = describe_failure(examples.drops, dropped) + (f"; not read: {_unread(unread)}" if unread else "")
        raise UserError(
            short(
                f"{short(path)}, read as {layout.name}: none of the {len(source.items)} rows can be used ({said})", LONGEST_LINE
            )
        )
    return examples


def describe_sources(examples: Sequence[Example]) -> str:
    """Rows and drops of each source, after those of all of them; "" for one source."""
    if not isinstance(examples, Mixture):
        return ""
    parts = (
        f"{short(source.path)}{'' if source.weight is None else f' (weight {source.weight:g})'}: {len(part)} of {part.source_rows} rows, "
        f"{describe_drops(part.drops)}"
        for source, part in zip(examples.sources, examples.parts)
    )
    return "; by source: " + "; ".join(parts)


def describe_drops(drops: Counter) -> str:
    """One line, commonest first: "missing_image 3 (the image cell is empty ...), ..."."""
    return ", ".join(f"{reason} {count} ({REASONS[reason]})" for reason, count in drops.most_common()) or "none dropped"


def describe_failure(drops: Counter, dropped: Sequence[Dropped] = ()) -> str:
    """Reasons why nothing can be used, short enough for one line: the two commonest reasons, and what was wrong with the first row."""
    common = drops.most_common(2)
    others = drops.total() - sum(count for _, count in common)
    said = describe_drops(Counter(dict(common))) + (f", {others} for other reasons" if others else "")
    return said + (f"; row {dropped[0].row}: {short(dropped[0].detail)}" if dropped else "")


def _unread(names: Sequence[str]) -> str:
    return f"the columns {rows.listed(names)}, which look like pictures, answers or labels"


def open_rows(path: str, split: str, image_dir: str, allow_dir: str = "", *, revision: str = "", fetch: bool = False) -> Rows:
    """Open a file of rows, a folder of them, or a TFDS folder.

    Args:
        path: the file or folder; a data set of the Hugging Face hub (owner/name), or a gs:// address.
        split: "train", "train[:1000]", "[10%:20]". The name selects a TFDS split, or in a folder the files that are called
            train.* or train-*, or lie in a folder of this name. One file has no split and needs none, as one set of files without
            the name of a split: there "train" stands for all of it.
        image_dir: images named by relative paths are looked up here; "" = beside the file.
        allow_dir: a second folder that the links of images may lead to; "" = none.
        revision: of a data set of the hub; "" = its newest one.
        fetch: pictures behind http addresses are downloaded.
    """
    root = places.local(path, revision, EXPECTED)
    match = _SPLIT.fullmatch(split)
    if match is None:
        raise UserError(
            f"split {shown(split)} is not understood: expected a name, a slice, or both, such as 'train[:1000]' or '[10%:]'"
        )
    folders = {"image_dir": image_dir, "allow_dir": allow_dir}
    for name, given in folders.items():
        if given and _kind_of(Path(given)) != "folder":
            raise UserError(f"image folder {shown(given)} does not exist: data.{name} must be a folder")
    own = root if _kind_of(root) == "folder" else root.parent
    where = images.place(Path(image_dir) if image_dir else own, own, *([Path(allow_dir)] if allow_dir else []), fetch=fetch)
    if root.is_dir() and (info := tfds_folder(root)) is not None:
        columns, items = open_tfds(info, match["name"])
    else:
        columns, items = tables.open_files(splits.files_of(root, match["name"]), match["name"])
    return Rows(columns, _Part(items, _range(match, len(items))), where)


def _kind_of(path: Path) -> str | None:
    """ "file", "folder" or None, also of what no path can be called."""
    try:
        return "folder" if path.is_dir() else "file" if path.is_file() else None
    except (OSError, ValueError):
        return None


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


def _parts(count: int) -> list[slice]:
    """Some of all rows at a time: of a table many are read in little more time than one."""
    return [slice(start, start + ROWS_AT_ONCE) for start in range(0, count, ROWS_AT_ONCE)]


def _decode_once() -> Callable[[bytes], None]:
    """A check that decodes each distinct picture once."""
    seen: set[bytes] = set()

    def check(image: bytes) -> None:
        digest = images.digest(image)
        if digest not in seen:
            images.decode(image)
            seen.add(digest)

    return check


def _check(
    source: Rows, layout: Layout, reading: Reading, check_image: Callable[[bytes], None], part: slice
) -> list[Drop | None]:
    """None for a usable row."""
    return [_check_row(layout, reading, check_image, row) for row in source.items[part]]


def _check_row(layout: Layout, reading: Reading, check_image: Callable[[bytes], None], row: dict[str, Any]) -> Drop | None:
    example = layouts.read(layout, row, reading)
    if isinstance(example, Drop):
        return example
    try:
        for image in example.images:
            check_image(image)
    except Unusable as unusable:
        return Drop(unusable.reason, unusable.detail)
    return None


def _range(match: re.Match, count: int) -> range:
    def bound(text: str | None, default: int) -> int:
        if text is None:
            return default
        return round(float(text[:-1]) / 100 * count) if text.endswith("%") else int(text)

    return range(count)[bound(match["start"], 0) : bound(match["stop"], count)]
