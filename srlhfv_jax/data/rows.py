"""Canonical rows, whatever data set they came from, and what must hold of each. `data/layouts/` makes them of raw rows."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.errors import short, shown

Row = Mapping[str, Any]
ReadImage = Callable[[Any], bytes | None]

ROLES = ("system", "user", "assistant")


class Turn(NamedTuple):
    """One turn of a conversation before its last question."""

    role: str  # of ROLES
    text: str  # "<image>" in a user's or assistant's turn marks a picture's place


class Prompt(NamedTuple):
    """Pictures and a question, for a policy to answer or a guard to judge."""

    images: tuple[bytes, ...]  # encoded pictures, of all turns in their order; none = text-only
    question: str  # the last user turn
    history: tuple[Turn, ...] = ()  # the turns before it


class Example(NamedTuple):
    """One row, whatever data set it came from. Cost > 0 means unsafe, here and everywhere."""

    images: tuple[bytes, ...]  # encoded pictures, of all turns in their order; none = text-only
    question: str  # the last user turn
    responses: tuple[str, ...]  # to the question. None: a prompt; 1: a supervised row; 2: a pair
    chosen: int | None = None  # index of the more helpful response; None = not labelled, or a tie
    safer: int | None = None  # index of the safer response; None = not labelled, or a tie
    helpful_tie: bool = False
    safety_tie: bool = False
    unsafe: tuple[bool | None, ...] = ()  # one per response; None = not labelled
    severity: tuple[float | None, ...] = ()  # graded cost, > 0 unsafe: -harmless_rate, or the signed severity level
    categories: tuple[tuple[str, ...] | None, ...] = ()  # harm categories, one tuple per response; None = not labelled
    harmful: bool | None = None  # would answering the question do harm; None = not labelled
    meta: Mapping[str, str] = {}  # all other scalar columns, as text
    desirable: bool | None = None  # is the one response to be learned from; None = not labelled
    asked: tuple[tuple[str, bool], ...] = ()  # of the question: each category that is labelled, and whether it has it
    history: tuple[Turn, ...] = ()  # turns before the question: maybe a system turn, then user and assistant by turns


class MadeOfRows(Sequence[Example]):
    """Examples each made of one of other examples, `places[number].row`, at every access: pictures are not kept in memory."""

    examples: Sequence[Example]
    places: Sequence[Any]  # of which each has the `row` that it is of

    def at(self, place: Any) -> Example:
        """The example that a place makes of its row."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self.at(place) for place in self.places[index]]
        return self.at(self.places[index])


def prompt_of(example: Example) -> Prompt:
    """A row without its answers and labels."""
    return Prompt(example.images, example.question, example.history)


def asked(prompts: Sequence[Prompt]) -> tuple[list[tuple[bytes, ...]], list[str]]:
    """Pictures and questions, the first arguments of a judge."""
    return [prompt.images for prompt in prompts], [prompt.question for prompt in prompts]


def histories(prompts: Sequence[Prompt]) -> tuple[list[tuple[Turn, ...]], ...]:
    """The last argument of a judge: the turns before each question; none where all are first questions, so that a judge of those need
    not know of it."""
    return ([prompt.history for prompt in prompts],) if any(prompt.history for prompt in prompts) else ()


def history_json(history: Sequence[Turn]) -> dict[str, Any]:
    """The turns before a question, for a line of JSON; {} where there are none."""
    return {"history": [{"role": turn.role, "content": turn.text} for turn in history]} if history else {}


def transcript(history: Sequence[Turn], question: str) -> str:
    """A conversation as one text, for people and judges: the question alone, or a line for each turn."""
    if not history:
        return question
    return "\n".join(f"{turn.role}: {turn.text}" for turn in (*history, Turn("user", question)))


def listed(names: Sequence[str]) -> str:
    """Some columns' names in a message."""
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return short(", ".join(shown(name)[1:-1] for name in names[:12])) + more


def writable(text: str) -> str:
    """Without half surrogates, which no file, tokenizer or terminal takes."""
    return text.encode(errors="backslashreplace").decode()


def check_turns(history: Sequence[Turn]) -> None:
    """Check the order of the turns before a question: at most one system turn, which is the first; then a user's and an assistant's
    by turns.

    Raises:
        Unusable: they are in another order, or one is empty.
    """
    talk = history[1:] if history and history[0].role == "system" else history
    for number, turn in enumerate(history):
        if turn.role not in ROLES:
            raise Unusable("bad_turns", f"turn {number} has the role {shown(turn.role)}: expected one of {', '.join(ROLES)}")
        if not turn.text.strip():
            raise Unusable("empty_turn", f"turn {number} ({turn.role}) is empty")
    if any(turn.role != ("user", "assistant")[place % 2] for place, turn in enumerate(talk)) or len(talk) % 2:
        roles = ", ".join(turn.role for turn in history[:12])
        raise Unusable(
            "bad_turns", f"the turns before the question are {roles}: expected a system turn or none, then user, assistant, ..."
        )


def check(example: Example) -> None:
    """Check what must hold in every layout.

    Raises:
        Unusable: it does not.
    """
    check_turns(example.history)
    if not example.question:
        raise Unusable("empty_question", "the question is empty")
    if not all(example.responses):
        raise Unusable("empty_response", f"response {example.responses.index('')} is empty")
    if len(example.responses) > 2:
        raise Unusable("bad_label", f"{len(example.responses)} responses, at most 2 can be compared")
    if len(example.responses) != 2:
        if example.chosen is not None or example.safer is not None:
            raise Unusable("bad_label", f"a preference between {len(example.responses)} responses")
        return
    if example.responses[0] == example.responses[1]:
        raise Unusable("identical_responses", repr(example.responses[0][:60]))
    if example.safer is not None and example.unsafe[example.safer] is True and example.unsafe[1 - example.safer] is False:
        raise Unusable(
            "contradictory_safety", f"response {example.safer} is the safer one and labelled unsafe, the other one safe"
        )
