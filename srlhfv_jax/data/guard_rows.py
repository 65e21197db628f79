"""From examples to what a guard judges: (pictures, question) and (pictures, question, answer), with labels and which are known.

An answer has the labels of its row. A question is harmful if the row's own column says so; where no column does, it takes the
worst label among its answers, so that over a data set its score is the chance that an answer to it does harm. That is a stand-in:
no published data set grades questions. A row makes one question and one item for each labelled answer.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from srlhfv_jax.data.rows import Example

LEVELS = 3  # thresholds: more than safe, than minor, than moderate


class Labels(NamedTuple):
    """Of one item. `exceeds[k]` is [severity > k]; None where that is not known."""

    exceeds: tuple[bool | None, ...]
    categories: tuple[str, ...] | None  # None = not labelled


UNKNOWN = Labels((None,) * LEVELS, None)


class Item(NamedTuple):
    """Where an item comes from."""

    row: int  # index of its example
    side: int | None  # which response; None: the question alone
    labels: Labels


class GuardExamples(Sequence[Example]):
    """The items of a sequence of examples, as examples with one response or none; pictures are read at every access."""

    def __init__(self, examples: Sequence[Example], items: Sequence[Item]):
        self.items = tuple(items)
        self._examples = examples

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        item = self.items[index]
        example = self._examples[item.row]
        responses = () if item.side is None else (example.responses[item.side],)
        return Example(example.images, example.question, responses, meta=example.meta)


def expand(examples: Sequence[Example], categories: Sequence[str]) -> tuple[GuardExamples, Counter]:
    """Every labelled question and answer, and why others were left out: `missing_label`, `contradictory_severity`,
    `unknown_category` (a name that the taxonomy does not have)."""
    items, drops = [], Counter()
    for row, example in enumerate(examples):
        answers = [_answer(example, side) for side in range(len(example.responses))]
        for side, labels in [(None, _question(example, answers)), *enumerate(answers)]:
            reason = _unusable(labels, categories)
            if reason:
                drops[reason] += 1
            else:
                items.append(Item(row, side, labels))
    return GuardExamples(examples, items), drops


def arrays(labels: Sequence[Labels], categories: Sequence[str]) -> tuple[Bool[np.ndarray, "B A"], ...]:
    """(exceeds_BJ, known_BJ, category_BA, known_BA) of items; what is not known is false."""
    levels, names = (len(labels), LEVELS), (len(labels), len(categories))
    exceeds_BJ = np.array([[bool(value) for value in one.exceeds] for one in labels], bool).reshape(levels)
    known_BJ = np.array([[value is not None for value in one.exceeds] for one in labels], bool).reshape(levels)
    category_BA = np.array([[name in (one.categories or ()) for name in categories] for one in labels], bool).reshape(names)
    known_B = np.array([one.categories is not None for one in labels], bool)
    return exceeds_BJ, known_BJ, category_BA, np.repeat(known_B[:, None], len(categories), axis=1)


def _answer(example: Example, side: int) -> Labels | None:
    """None: its flag and its severity contradict each other."""
    unsafe, severity = example.unsafe[side], example.severity[side]
    if unsafe is not None and severity and (severity > 0) != unsafe:
        return None
    named = example.categories[side] if example.categories else None
    return Labels(_exceeds(unsafe, severity), named)


def _exceeds(unsafe: bool | None, severity: float | None) -> tuple[bool | None, ...]:
    """A severity above 0 is a level, rounded up; 0 and below is safe, unless the flag says otherwise."""
    if severity is not None and severity > 0:
        return tuple(math.ceil(severity) > level for level in range(LEVELS))
    if unsafe:
        return (True,) + (None,) * (LEVELS - 1)
    return (None if unsafe is None and severity is None else False,) * LEVELS


def _question(example: Example, answers: Sequence[Labels | None]) -> Labels:
    known = [one for one in answers if one is not None and one.exceeds[0] is not None]
    harmful = example.harmful
    if harmful is None and known:
        harmful = any(one.exceeds[0] for one in known)
    if harmful is False:
        return Labels((False,) * LEVELS, ())
    if harmful is None:
        return UNKNOWN
    bad = [one for one in known if one.exceeds[0]]
    above = tuple(True if any(one.exceeds[level] for one in bad) else None for level in range(1, LEVELS))
    if bad and all(None not in one.exceeds for one in bad):
        above = tuple(any(one.exceeds[level] for one in bad) for level in range(1, LEVELS))
    named = [one.categories for one in bad if one.categories is not None]
    return Labels((True, *above), tuple(dict.fromkeys(name for names in named for name in names)) if named else None)


def _unusable(labels: Labels | None, categories: Sequence[str]) -> str | None:
    if labels is None:
        return "contradictory_severity"
    if labels.exceeds[0] is None and labels.categories is None:
        return "missing_label"
    return "unknown_category" if set(labels.categories or ()) - set(categories) else None
