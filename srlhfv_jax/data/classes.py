"""Shares of classes of rows: `data.mix` "harmful:yes=0.1,harmful:no=0.9" draws a row of the first class with probability 0.1.

A class is a value of a column, as the file has it: text, a number, or a flag (yes, no). Rows of classes without a share are left out.
Each class is shuffled in epochs of its own, as sources with weights are (data/mixtures.py).
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from srlhfv_jax.data import mixtures
from srlhfv_jax.data.drops import Dropped
from srlhfv_jax.data.guard_rows import GuardExamples
from srlhfv_jax.data.labels import absent
from srlhfv_jax.data.mixtures import Mixture, Share
from srlhfv_jax.data.rows import Example, MadeOfRows, listed
from srlhfv_jax.data.tokens import Encoded
from srlhfv_jax.errors import UserError, shown

_CLASS = re.compile(r"(?P<column>[^:=]+):(?P<value>.+)=(?P<share>[^=]*)")
EXPECTED = 'expected COLUMN:VALUE=SHARE, separated by commas, such as "harmful:yes=0.1,harmful:no=0.9"'
FLAGS = {"true": "yes", "false": "no"}


def parse(mix: str) -> tuple[str, dict[str, float]]:
    """The column, and the share of each of its values.

    Raises:
        UserError: an item is none, a share is outside [0, 1], several columns, a value twice, or the shares do not sum to 1.
    """
    columns, shares = [], {}
    for item in (item.strip() for item in mix.split(",")):
        match = _CLASS.fullmatch(item)
        if match is None:
            raise UserError(f"data.mix has the item {shown(item)}: {EXPECTED}")
        value, share = name(match["value"].strip()), _share(match["share"])
        if not 0 <= share <= 1:
            raise UserError(f"data.mix has the item {shown(item)}: its share must be a number from 0 to 1")
        if value in shares:
            raise UserError(f"data.mix names the value {shown(value)} twice: give it one share")
        columns.append(match["column"].strip())
        shares[value] = share
    if len(set(columns)) > 1:
        raise UserError(f"data.mix names several columns, {listed(sorted(set(columns)))}: classes are values of one")
    if not math.isclose(sum(shares.values()), 1, abs_tol=1e-6):
        raise UserError(f"data.mix {shown(mix)}: the shares sum to {sum(shares.values()):g}, expected 1")
    return columns[0], shares


def _share(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def name(cell: Any) -> str:
    """The class of a cell: its text, `yes` or `no` for a flag; "" where there is nothing."""
    if absent(cell):
        return ""
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    return FLAGS.get(str(cell).strip().lower(), str(cell).strip())


def divided(
    mix: str, examples: Sequence[Example], rows: Sequence[Encoded]
) -> tuple[list[Encoded], list[Dropped], tuple[Share, ...]]:
    """The rows of classes that have a share, class by class, those that are left out, and the shares; where `mix` is "" all rows, with
    the shares of their sources.

    Raises:
        UserError: as `parse`; sources with weights, rows without that column, or a class without a row.
    """
    of_sources = mixtures.shares(examples, [row.row for row in rows])
    if not mix:
        return list(rows), [], of_sources
    if of_sources:
        raise UserError("data.mix gives shares of classes and data.path weights of sources: give one of them")
    column, shares = parse(mix)
    names = [name(cell) for cell in _cells(examples, column)]
    by_class: dict[str, list[Encoded]] = {value: [] for value, share in shares.items() if share}
    dropped = []
    for row in rows:
        value = names[row.row]
        if value in by_class:
            by_class[value].append(row)
        else:
            dropped.append(Dropped(row.row, "not_in_mix", f"its {column} is {shown(value)}"))
    for value, some in by_class.items():
        if not some:
            known = Counter(names[row.row] for row in rows)
            raise UserError(
                f"data.mix gives {column}:{value} a share, and no usable row is of that class: their {column} is "
                f"{listed([value for value, _ in known.most_common()])}"
            )
    kept = [row for some in by_class.values() for row in some]
    return kept, dropped, tuple(Share(len(some), shares[value]) for value, some in by_class.items())


def _cells(examples: Sequence[Example], column: str) -> list[Any]:
    """The cell of each example's row."""
    if isinstance(examples, GuardExamples):
        cells = _cells(examples.examples, column)
        return [cells[item.row] for item in examples.items]
    if isinstance(examples, MadeOfRows):
        cells = _cells(examples.examples, column)
        return [cells[place.row] for place in examples.places]
    cells = []
    for part in examples.parts if isinstance(examples, Mixture) else (examples,):
        if column not in part.columns:
            raise UserError(
                f"data.mix names the column {shown(column)}, which the rows do not have: they have {listed(part.columns)}"
            )
        cells += part.column(column)
    return cells
