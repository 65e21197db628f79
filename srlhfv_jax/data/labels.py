"""Parser of labels, the only one: ids, flags, tables of flags and numbers, whatever kind of file they come from.

Every function takes a raw row and the name of a column; None means that the row says nothing there.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.errors import shown

Row = Mapping[str, Any]


def absent(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def choice(row: Row, name: str, *, first: int) -> tuple[int | None, bool]:
    """(0 or 1, None without preference; whether it is a tie). Published ids count from `first`, as text or number."""
    value = row.get(name)
    if absent(value):
        return None, False
    if value == "tie":
        return None, True
    known = {str(first): 0, str(first + 1): 1}
    key = str(value).strip().removesuffix(".0")
    if key not in known:
        raise Unusable("bad_label", f"{name} must be {first}, {first + 1} or 'tie', got {shown(value)}")
    return known[key], False


def flag(row: Row, name: str) -> bool | None:
    value = row.get(name)
    if absent(value):
        return None
    flag = {"yes": True, "no": False, "true": True, "false": False, "1": True, "0": False}.get(
        str(value).strip().lower().removesuffix(".0")
    )
    if flag is None:
        raise Unusable("bad_label", f"{name} must be yes or no, got {shown(value)}")
    return flag


def category(row: Row, unsafe: bool | None) -> tuple[str, ...] | None:
    """Category of the harm that an answer does, if it does any; `category` is the row's."""
    name = row.get("category")
    if unsafe is None or (unsafe and (absent(name) or name == "none")):
        return None
    if unsafe and not isinstance(name, (str, int, float)):
        raise Unusable("bad_label", f"category must be text, got {shown(name)}")
    return (str(name),) if unsafe else ()


def flagged(row: Row, name: str) -> tuple[str, ...] | None:
    """The names that are true in a table of flags."""
    if absent(row.get(name)):
        return None
    names = true_names(row[name])
    if names is None:
        raise Unusable("bad_label", f"{name} must be a table of flags, got {shown(row[name])}")
    return names


def true_names(value: Any) -> tuple[str, ...] | None:
    """Names of the true flags in a table, which may be JSON text; None for anything else."""
    try:
        table = json.loads(value) if isinstance(value, str) and value.startswith("{") else value
        return tuple(key for key in table if flag(table, key)) if isinstance(table, Mapping) else None
    except (ValueError, RecursionError, Unusable):
        return None


def opposite(flag: bool | None) -> bool | None:
    return None if flag is None else not flag


def number(row: Row, name: str) -> float | None:
    value = row.get(name)
    if absent(value):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or isinstance(value, bool):
        raise Unusable("bad_label", f"{name} must be a number, got {shown(value)}")
    return number


def cells(row: Row, name: str) -> Sequence[Any]:
    """A list; an empty one where there is none."""
    value = row.get(name)
    if absent(value):
        return ()
    if not isinstance(value, (list, tuple)):
        raise Unusable("bad_label", f"{name} must be a list, got {shown(value)}")
    return value
