"""One kind of raw row: the columns that it is recognised by, and its reader."""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from srlhfv_jax.data.rows import Example, ReadImage, Row


class Reading(NamedTuple):
    """Everything that a reader needs beside the row: how pictures are fetched, and what labels of one word mean."""

    image: ReadImage
    label_means: str = "desirable"  # of a `label` that is true: the answer is "desirable", "unsafe" or "safe"
    chosen_means: str = "helpful"  # of `chosen`, a text: it is the more "helpful" answer, the "safer" one, or "both"


class Layout(NamedTuple):
    """One kind of raw row."""

    name: str
    needs: tuple[str, ...]  # columns that say so; "a|b": one of the two
    reads: frozenset[str]  # columns that the reader takes apart; it leaves all others in `meta`
    read: Callable[[Row, Reading], Example]
    marks: frozenset[str] = frozenset()  # columns that belong to this layout: with one of them and not all of `needs`, it is half
    leaves: frozenset[str] = frozenset()  # columns that published files have, and that are left in `meta` on purpose

    def missing(self, columns: Collection[str]) -> list[str]:
        """Columns of `needs` that are not there, "a or b" for a choice."""
        return [need.replace("|", " or ") for need in self.needs if not any(one in columns for one in need.split("|"))]


def first_of(row: Row, *names: str) -> str:
    """The first of these columns that says something, or the first."""
    return next((name for name in names if row.get(name) is not None), names[0])


def preferred(reading: Reading) -> dict[str, Any]:
    """Labels of a pair whose first answer was chosen: nothing else is known of its answers."""
    helpful, safer = reading.chosen_means in ("helpful", "both"), reading.chosen_means in ("safer", "both")
    return unlabelled(2) | {"chosen": 0 if helpful else None, "safer": 0 if safer else None}


def unlabelled(responses: int) -> dict[str, Any]:
    """Labels of so many answers of which nothing is known."""
    nothing = (None,) * responses
    return {"unsafe": nothing, "severity": nothing, "categories": nothing}
