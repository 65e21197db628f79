"""Several sources in one path: "a.parquet:0.7,b.jsonl:0.3". Their rows follow each other; weights say how often each is drawn. A
name that exists may have commas in it.

Without weights every row comes once an epoch. With weights a row of source k comes with probability w_k / (sum of w) x 1 / (its
rows), whatever its size; passes over all rows in order, for evaluation, see every row once.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from srlhfv_jax.data.drops import Dropped
from srlhfv_jax.data.guard_rows import GuardExamples
from srlhfv_jax.data.rows import Example, MadeOfRows
from srlhfv_jax.errors import UserError, short, shown

_WEIGHED = re.compile(r"(?P<path>.+):(?P<weight>[^:/]*)")


class Source(NamedTuple):
    """One source of a path."""

    path: str
    weight: float | None  # None: no source has one


def parse(path: str) -> tuple[Source, ...]:
    """The sources of a path; one that exists as it is written is one source.

    Raises:
        UserError: a weight is no number, negative, or missing beside others; all are 0; a source comes twice.
    """
    if "," not in path and _here(path):
        return (Source(path, None),)
    sources = [_source(one) for one in ([path] if _here(path) else _items(path))]
    if len(sources) == 1 and sources[0].weight is None:
        return (Source(path, None),)
    if not all(one.path for one in sources):
        raise UserError(f"data.path {shown(path)} has an empty source between its commas")
    twice = next((one.path for one in sources if [other.path for other in sources].count(one.path) > 1), None)
    if twice is not None:
        raise UserError(f"data.path names {shown(twice)} twice: give it one weight")
    weights = [one.weight for one in sources]
    if None in weights and any(weight is not None for weight in weights):
        raise UserError(f"data.path {shown(path)}: give every source a weight (PATH:0.7), or none")
    if None not in weights and not sum(weights) > 0:
        raise UserError(f"data.path {shown(path)}: the weights sum to 0")
    return tuple(sources)


def _items(path: str) -> list[str]:
    """The parts of a path between commas; neighbours that together name something that exists are one."""
    parts, items = path.split(","), []
    while parts:
        ends = range(len(parts), 1, -1)
        end = next((end for end in ends if _here(_without_weight(",".join(parts[:end]).strip()))), 1)
        items.append(",".join(parts[:end]).strip())
        parts = parts[end:]
    return items


def _without_weight(written: str) -> str:
    match = _WEIGHED.fullmatch(written)
    return written if match is None or _here(written) else match["path"]


def _source(written: str) -> Source:
    match = _WEIGHED.fullmatch(written)
    if match is None or _here(written):
        return Source(written, None)
    try:
        weight = float(match["weight"])
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight >= 0):
        raise UserError(
            f"data.path: the weight of {shown(match['path'])} must be a number of at least 0, got {shown(match['weight'])}"
        )
    return Source(match["path"], weight)


def _here(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


class Mixture(Sequence[Example]):
    """The usable rows of several sources, one source after the other."""

    def __init__(self, sources: Sequence[Source], parts: Sequence):
        """`parts` are `sources.Examples`, one of each source."""
        self.sources, self.parts = tuple(sources), tuple(parts)
        self.starts = np.cumsum([0, *map(len, parts)])
        self.layout = " + ".join(dict.fromkeys(part.layout for part in parts))
        self.source_rows = sum(part.source_rows for part in parts)
        before = np.cumsum([0, *(part.source_rows for part in parts)]).tolist()
        self.kept = tuple(begins + row for part, begins in zip(parts, before) for row in part.kept)
        self.dropped = tuple(
            Dropped(begins + drop.row, drop.reason, f"{short(source.path, 60)}: {drop.detail}")
            for source, part, begins in zip(sources, parts, before)
            for drop in part.dropped
        )
        self.drops: Counter = sum((part.drops for part in parts), Counter())

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.parts[part][index - int(self.starts[part])]

    def __iter__(self) -> Iterator[Example]:
        return itertools.chain.from_iterable(self.parts)


class Share(NamedTuple):
    """Prepared rows of one source: they are neighbours."""

    rows: int
    weight: float


def only(shares: Sequence[Share], keep_N: Bool[np.ndarray, "N"]) -> tuple[Share, ...]:
    """The shares of what is left of prepared rows.

    Raises:
        UserError: nothing is left of one that has a weight.
    """
    ends = np.cumsum([0, *(share.rows for share in shares)])
    left = tuple(
        Share(int(keep_N[begin:end].sum()), share.weight) for share, begin, end in zip(shares, ends, ends[1:], strict=False)
    )
    for number, share in enumerate(left):
        if share.weight and not share.rows:
            raise UserError(
                f"the {number + 1}. source or class of the rows has the weight {share.weight:g}, and no row of it is left"
            )
    return left


def shares(examples: Sequence[Example], numbers: Sequence[int]) -> tuple[Share, ...]:
    """Rows and weight of each source that has a weight above 0, for prepared rows made of these examples; () without weights.

    Raises:
        UserError: none of the rows of a source that has a weight is among them.
    """
    if isinstance(examples, GuardExamples):
        return shares(examples.examples, [examples.items[number].row for number in numbers])
    if isinstance(examples, MadeOfRows):
        return shares(examples.examples, [examples.places[number].row for number in numbers])
    if not isinstance(examples, Mixture) or examples.sources[0].weight is None:
        return ()
    parts = np.searchsorted(examples.starts, np.asarray(numbers), side="right") - 1
    counts = np.bincount(parts, minlength=len(examples.sources)).tolist()
    for source, count in zip(examples.sources, counts):
        if source.weight and not count:
            raise UserError(f"{short(source.path)} has the weight {source.weight:g}, and none of its rows can be used here")
    return tuple(Share(count, source.weight) for source, count in zip(examples.sources, counts))
