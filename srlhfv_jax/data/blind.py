"""Answers that a policy gave without seeing the picture, as further losers of pairs (Blind Preference Optimization).

`srlhfv generate --picture=blank|shuffled|none` records them; a pair has the one to its own prompt, by content: pictures, turns and
question. Its winner is preferred to that answer too, and both are scored with the true picture.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from srlhfv_jax import files
from srlhfv_jax.data import images
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.preferences import Choice, decided
from srlhfv_jax.data.rows import Example, MadeOfRows
from srlhfv_jax.errors import UserError

PICTURES = "pictures"  # of a recorded line: digests of the prompt's true pictures
ADVICE = "record answers with `srlhfv generate --picture=blank`"


class Place(NamedTuple):
    """The place of a pair."""

    row: int  # index of its example
    loser: str | None  # the recorded answer that loses; None: the pair as it is


class WithBlind(MadeOfRows):
    """Examples, and behind each whose winner is known a pair of that winner and a recorded answer; pictures are read at every access."""

    def __init__(self, examples: Sequence[Example], recorded: dict[bytes, str], choice: Choice):
        self.examples, self._choice = examples, choice
        self.places = tuple(place for row, example in enumerate(examples) for place in _places(row, example, recorded, choice))

    def at(self, place: Place) -> Example:
        """A pair as it is, or its winner against the recorded answer."""
        example = self.examples[place.row]
        return example if place.loser is None else _against(example, place.loser, self._choice)


def read(path: Path) -> dict[bytes, str]:
    """Key of a prompt -> its recorded answer.

    Raises:
        UserError: there is no such file, or a line is no such record.
    """
    if not path.is_file():
        raise UserError(f"config.blind={path} is no file{files.nearest(path)}: {ADVICE}")
    recorded: dict[bytes, str] = {}
    with path.open("rb") as lines:
        for number, row in files.json_lines(lines, path, advice=ADVICE):
            if "dropped" in row:
                continue
            origin = f"{path}:{number}"
            question, answer = (files.take(row, name, str, origin, advice=ADVICE) for name in ("question", "answer"))
            digests = files.take(row, PICTURES, list[str], origin, advice=ADVICE)
            turns = [(turn.get("role"), turn.get("content")) for turn in row.get("history", [])]
            if answer.strip():
                recorded[_key(digests, turns, question)] = answer
    if not recorded:
        raise UserError(f"{path} has no answer: {ADVICE}")
    return recorded


def key(example: Example) -> bytes:
    """The key of an example's prompt."""
    return _key(digests(example), [(turn.role, turn.text) for turn in example.history], example.question)


def digests(example: Example) -> list[str]:
    """Names of the content of an example's pictures."""
    return [images.digest(picture).hex() for picture in example.images]


def _key(pictures: Sequence[str], turns: Sequence[tuple[Any, Any]], question: str) -> bytes:
    return hashlib.sha256(repr((list(pictures), list(turns), question)).encode(errors="backslashreplace")).digest()


def _places(row: int, example: Example, recorded: dict[bytes, str], choice: Choice) -> list[Place]:
    places, loser = [Place(row, None)], recorded.get(key(example))
    if loser is None:
        return places
    try:
        decided(example, choice)
    except Unusable:  # the pair itself says why
        return places
    return [*places, Place(row, loser)]


def _against(example: Example, loser: str, choice: Choice) -> Example:
    """The winner of a pair against another answer, of whose safety nothing is known."""
    side = decided(example, choice).chosen
    unsafe = (example.unsafe[side] if example.unsafe else None, None)
    ties = dict(helpful_tie=False, safety_tie=False)
    return example._replace(
        responses=(example.responses[side], loser), chosen=0, safer=0, unsafe=unsafe, severity=(), categories=(), **ties
    )
