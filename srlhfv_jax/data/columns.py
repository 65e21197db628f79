"""Columns under other names: `data.columns` maps the names that layouts know to those of a file."""

from collections.abc import Mapping, Sequence
from typing import Any

from srlhfv_jax.data.rows import listed
from srlhfv_jax.errors import UserError, nearest, shown

IGNORE = "ignore"  # ignore=COLUMN leaves a column out


def parse(columns: Sequence[str]) -> list[tuple[str, str]]:
    """(our name, the file's name) of each "ours=theirs".

    Raises:
        UserError: one is written otherwise, or one of our names comes twice.
    """
    pairs = [(ours.strip(), theirs.strip()) for ours, _, theirs in (one.partition("=") for one in columns)]
    for one, (ours, theirs) in zip(columns, pairs):
        if not ours or not theirs:
            raise UserError(f"data.columns takes OURS=THEIRS, such as question=text, got {shown(one)}")
    names = [ours for ours, _ in pairs if ours != IGNORE]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"data.columns names {shown(name)} twice: one column of the file for each of ours")
    return pairs


class Renamed(Sequence):
    """Rows with other names for some columns."""

    def __init__(self, items: Sequence[dict[str, Any]], pairs: Sequence[tuple[str, str]]):
        self._items, self._pairs = items, pairs
        self._moved = frozenset(theirs for _, theirs in pairs)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self._row(row) for row in self._items[index]]
        return self._row(self._items[index])

    def _row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in row.items() if name not in self._moved}
        return kept | {ours: row[theirs] for ours, theirs in self._pairs if ours != IGNORE and theirs in row}


def rename(
    names: Sequence[str], items: Sequence[dict[str, Any]], columns: Sequence[str]
) -> tuple[tuple[str, ...], Sequence[dict[str, Any]]]:
    """Columns and rows under our names. A column of the file that has one of them and is not meant gives way.

    Raises:
        UserError: as `parse`, or the file has no such column.
    """
    pairs = parse(columns)
    for _, theirs in pairs:
        if theirs not in names:
            raise UserError(
                f"data.columns names the column {shown(theirs)}, the file has {listed(names)}; {nearest(theirs, names)}"
            )
    if not pairs:
        return tuple(names), items
    moved = {theirs for _, theirs in pairs}
    ours = [name for name, _ in pairs if name != IGNORE]
    return tuple(dict.fromkeys([*(name for name in names if name not in moved), *ours])), Renamed(items, pairs)
