"""From examples to what a guard judges: a question, and an answer to it, with the labels of both and which are known.

An answer has the labels of its row. A question is harmful if the row's own column says so; where no column does, it takes the
worst label among its answers, so that over a data set its score is the chance that an answer to it does harm. That is a stand-in:
no published data set grades questions. A row makes an item for each labelled answer, the first of which carries the question's
labels too, or one for its question alone.
"""

import math
from collections import Counter
from collections.abc import Sequence, Set
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from srlhfv_jax.data.rows import Example
from srlhfv_jax.data.taxonomies import LEVELS

PARTS = ("input", "output")  # the question, its answer: the axis Q of a GuardBatch


class Labels(NamedTuple):
    """Labels of a question or an answer. `exceeds[k]` is [severity > k]; None where that is not known."""

    exceeds: tuple[bool | None, ...]
    categories: tuple[str, ...] | None  # None = not labelled
    known: tuple[str, ...] | None = None  # categories that the row says something of, where it is not all of them


UNKNOWN = Labels((None,) * LEVELS, None)


class Item(NamedTuple):
    """Origin of an item."""

    row: int  # index of its example
    side: int | None  # which response; None: the question alone
    labels: tuple[Labels, Labels]  # of the question and of that response; UNKNOWN: not judged


class GuardExamples(Sequence[Example]):
    """The items of a sequence of examples, as examples with one response or none; pictures are read at every access."""

    def __init__(self, examples: Sequence[Example], items: Sequence[Item]):
        self.items = tuple(items)
        self.examples = examples

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        item = self.items[index]
        example = self.examples[item.row]
        responses = () if item.side is None else (example.responses[item.side],)
        return Example(example.images, example.question, responses, meta=example.meta, history=example.history)


def expand(examples: Sequence[Example], categories: Sequence[str], parts: Sequence[str] = PARTS) -> tuple[GuardExamples, Counter]:
    """Every labelled question and answer of the wanted parts, and why others were left out: `missing_label`,
    `contradictory_severity`, `unknown_category` (a name that the taxonomy does not have)."""
    items, drops = [], Counter()
    for row, example in enumerate(examples):
        answers = [_answer(example, side) for side in range(len(example.responses))]
        question = _usable(_question(example, answers), categories, drops) if "input" in parts else UNKNOWN
        for side, labels in enumerate(answers if "output" in parts else ()):
            answer = _usable(labels, categories, drops)
            if answer != UNKNOWN:
                items.append(Item(row, side, (question, answer)))
                question = UNKNOWN  # once is enough
        if question != UNKNOWN:
            items.append(Item(row, None, (question, UNKNOWN)))
    return GuardExamples(examples, items), drops


def questions_alone(given: GuardExamples, lost: Set[int]) -> GuardExamples:
    """Without the answers of the items `lost`; a question that went with one of them stays, alone."""
    items = []
    for number, item in enumerate(given.items):
        if number not in lost:
            items.append(item)
        elif item.labels[0] != UNKNOWN:
            items.append(Item(item.row, None, (item.labels[0], UNKNOWN)))
    return GuardExamples(given.examples, items)


def arrays(
    labels: Sequence[tuple[Labels, Labels]], categories: Sequence[str]
) -> tuple[Bool[np.ndarray, "B 2 J"], Bool[np.ndarray, "B 2 J"], Bool[np.ndarray, "B 2 A"], Bool[np.ndarray, "B 2 A"]]:
    """(exceeds_BQJ, known_BQJ, category_BQA, known_BQA) of items; what is not known is false."""
    levels, names = (len(labels), 2, LEVELS), (len(labels), 2, len(categories))
    every = [one for both in labels for one in both]
    exceeds_BQJ = np.array([[bool(value) for value in one.exceeds] for one in every], bool).reshape(levels)
    known_BQJ = np.array([[value is not None for value in one.exceeds] for one in every], bool).reshape(levels)
    category_BQA = np.array([[name in (one.categories or ()) for name in categories] for one in every], bool).reshape(names)
    known = [[one.categories is not None and (one.known is None or name in one.known) for name in categories] for one in every]
    return exceeds_BQJ, known_BQJ, category_BQA, np.array(known, bool).reshape(names)


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
    if example.asked:
        flags = tuple(name for name, _ in example.asked)
        return Labels(_exceeds(harmful, None), tuple(name for name, flag in example.asked if flag), flags)
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


def _usable(labels: Labels | None, categories: Sequence[str], drops: Counter) -> Labels:
    """The labels, or UNKNOWN and its reason counted."""
    if labels is None:
        reason = "contradictory_severity"
    elif labels.exceeds[0] is None and labels.categories is None:
        reason = "missing_label"
    elif set(labels.categories or ()) - set(categories):
        reason = "unknown_category"
    else:
        return labels
    drops[reason] += 1
    return UNKNOWN
