"""Every answer of a conversation as a supervised row of its own (`data.train_on=all`).

The turns before an answer are its prompt. In a sequence of this package pictures stand in the prompt alone, so that one sequence
for all answers would not do; and each answer is read as it is sampled: with the opening of the assistant's turn before it, and its
end behind. A conversation of n answers costs n forward passes over its beginning.
"""

from collections.abc import Sequence
from typing import NamedTuple

from srlhfv_jax.data.chat import MARK
from srlhfv_jax.data.rows import Example, MadeOfRows


class Place(NamedTuple):
    """The place of an answer."""

    row: int  # index of its example
    turn: int | None  # number of the assistant's turn in the history; None: the responses of the row


class AnsweredTurns(MadeOfRows):
    """The answers of a sequence of examples, as examples with one response, or those of the row; pictures are read at every access."""

    def __init__(self, examples: Sequence[Example], sees: bool):
        """
        Args:
            sees: "<image>" in a text marks a picture.
        """
        self.examples, self._sees = examples, sees
        self.places = tuple(place for row, example in enumerate(examples) for place in _places(row, example, sees))

    def at(self, place: Place) -> Example:
        """An answer with the turns before it, or the row."""
        example = self.examples[place.row]
        return example if place.turn is None else _answer(example, place.turn, self._sees)


def _places(row: int, example: Example, sees: bool) -> list[Place]:
    """Earlier answers, then those to the question; a conversation that ends with a question has none to it."""
    if sees and _marks(example) not in (0, len(example.images)):
        return [Place(row, None)]  # nobody knows which picture is where: it is dropped as a whole
    earlier = [Place(row, turn) for turn, one in enumerate(example.history) if one.role == "assistant"]
    return earlier + [Place(row, None)] * (bool(example.responses) or not earlier)


def _answer(example: Example, turn: int, sees: bool) -> Example:
    """The turns up to an answer, with the pictures in them."""
    *before, (_, question) = example.history[:turn]
    made = Example(example.images, question, (example.history[turn].text,), unsafe=(None,), severity=(None,))
    made = made._replace(meta=example.meta, history=tuple(before))
    return made._replace(images=example.images[: _marks(made)]) if sees and _marks(example) else made


def _marks(example: Example) -> int:
    return example.question.count(MARK) + sum(turn.text.count(MARK) for turn in example.history if turn.role != "system")
