"""The curves of a stage in a report, as a record.

Each stage keeps its record in its own room (`supervised/stages.py`, `ppo_lag/curves.py`, `guard/curves.py`), and report/ draws all of
them. A metric that no record names is drawn too, folded and without a note.
"""

from typing import NamedTuple


class Curve(NamedTuple):
    """Metrics of metrics.jsonl that share one picture."""

    keys: tuple[str, ...]
    title: str
    note: str = ""  # how to read it
    folded: bool = False  # for a second look: under "Diagnostics"


class Curves(NamedTuple):
    """Curves of one kind of stage in the report."""

    kind: str
    marks: frozenset[str]  # a metrics.jsonl that has one of these keys is of this kind
    unit: str  # of the horizontal axis: "step" or "iteration"
    curves: tuple[Curve, ...]

    def keys(self) -> tuple[str, ...]:
        """Every metric that has a picture of its own, in the order of the page."""
        return tuple(key for curve in self.curves for key in curve.keys)
