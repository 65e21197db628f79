"""The frame of a conversation: all that a chat template writes around its texts.

The template is rendered once for each shape of conversation (the roles of its turns, and the kinds of their parts), with a word in
the place of each text. It never sees the texts themselves: what it writes cannot depend on what users write.
"""

import itertools
from collections.abc import Sequence, Set
from typing import NamedTuple

from srlhfv_jax.data import pictures, templates
from srlhfv_jax.errors import UserError

Kinds = tuple[str, ...]  # of the parts of a turn: "image" or "text"
Shape = tuple[tuple[str, Kinds], ...]  # of each turn: its role, and its parts
QUESTION: Shape = (("user", ("text",)),)
ANSWERED: Shape = (*QUESTION, ("assistant", ("text",)))

# What stands for a text while the template is rendered, and white space around it that shows what is stripped.
WORD, LEFT, RIGHT = "Users{}Words", "\t", "\n"
# What may stand before an earlier answer: templates of thinking models leave it out.
THOUGHT, THOUGHT_END, AFTER_THOUGHT = "<think>\nThought\n</think>\n\n", "</think>", "\n\n"
ALTERED = "expected a chat template that writes every text of a message once and as it is; it writes"


class Slot(NamedTuple):
    """The place of a text."""

    text: int  # its number in the conversation: some templates write the system's text late
    left: bool  # the template strips white space there
    right: bool
    thought: str  # what it does to a thought before an earlier answer: "kept", "left out", "left out with line breaks"

    def read(self, text: str) -> str:
        """The text as the template writes it."""
        if self.thought != "kept" and THOUGHT_END in text:
            text = text.rpartition(THOUGHT_END)[2]
            text = text.lstrip("\n") if self.thought == "left out with line breaks" else text
        text = text.lstrip() if self.left else text
        return text.rstrip() if self.right else text


class Frame(NamedTuple):
    """Texts that the template writes around those of a conversation."""

    around: tuple[str, ...]  # before, between and after the texts
    slots: tuple[Slot, ...]  # of the texts, in the order in which they are written


def frame(render: templates.Render, reader: pictures.Reader | None, shape: Shape) -> Frame:
    """Texts that the template writes around a conversation of this shape; up to the opening of the assistant's turn where a user's
    turn is the last.

    Args:
        reader: of pictures; None: the contents of messages are strings.

    Raises:
        UserError: the template fails, or does not write each text once and as it is.
    """
    count = sum(kinds.count("text") for _, kinds in shape)
    bare, padded = (_rendered(render, reader, shape, *pads) for pads in (("", ""), (LEFT, RIGHT)))
    order = _order(bare, count)
    around, wide = _around(bare, order), _around(padded, order)
    lefts, rights = [], []  # of each text: whether the template strips it there
    for place, (text, padded) in enumerate(zip(around, wide, strict=True)):
        strips = [(right, left) for right in (RIGHT, "") for left in (LEFT, "") if padded == right + text + left]
        if not strips:
            raise UserError(f"{ALTERED}: {padded[:80]!r} where {text[:80]!r} was expected")
        rights += [not strips[0][0]] * (place > 0)
        lefts += [not strips[0][1]] * (place < count)
    thoughts = _thoughts(render, reader, shape, around, order)
    return Frame(around, tuple(map(Slot, order, lefts, rights, thoughts)))


def _thoughts(
    render: templates.Render, reader: pictures.Reader | None, shape: Shape, around: Sequence[str], order: Sequence[int]
) -> list[str]:
    """The fate of a thought at the beginning of each text: of answers that are not the last turn, all others keep it."""
    roles = [role for role, kinds in shape for kind in kinds if kind == "text"]
    earlier = {number for number, role in enumerate(roles) if role == "assistant" and number < len(roles) - 1}
    if not earlier:
        return ["kept"] * len(order)
    thinking, fates = _around(_rendered(render, reader, shape, thinking=earlier), order), []
    for number, own, got in zip(order, around, thinking):
        ways = {"kept": own + THOUGHT, "left out": own + AFTER_THOUGHT, "left out with line breaks": own}
        way = next((way for way, text in ways.items() if text == got), None) if number in earlier else "kept"
        if way is None:
            raise UserError(
                f"the chat template alters earlier answers: it writes {got[:80]!r} before one that begins with {THOUGHT!r}"
            )
        fates.append(way)
    return fates


def _order(rendered: str, count: int) -> list[int]:
    """Numbers of the words that stand for texts, as they are written."""
    words = [WORD.format(number) for number in range(count)]
    if any(rendered.count(word) != 1 for word in words):
        raise UserError(f"{ALTERED}: {rendered[:80]!r}")
    return sorted(range(count), key=lambda number: rendered.index(words[number]))


def _around(rendered: str, order: Sequence[int]) -> tuple[str, ...]:
    """The text before, between and after the words that stand for texts."""
    around, rest = [], rendered
    for number in order:
        before, *after = rest.split(WORD.format(number))
        if len(after) != 1:
            raise UserError(f"{ALTERED}: {rendered[:80]!r}")
        around.append(before)
        rest = after[0]
    return (*around, rest)


def _rendered(
    render: templates.Render,
    reader: pictures.Reader | None,
    shape: Shape,
    left: str = "",
    right: str = "",
    thinking: Set[int] = frozenset(),
) -> str:
    return render(messages(reader, shape, left, right, thinking), shape[-1][0] == "user")


def messages(
    reader: pictures.Reader | None,
    shape: Shape,
    left: str = "",
    right: str = "",
    thinking: Set[int] = frozenset(),
) -> templates.Messages:
    """A conversation of this shape, with a word for each text.

    Args:
        left, right: white space around each word.
        thinking: numbers of the texts that begin with a thought.
    """
    words = ((THOUGHT if slot in thinking else "") + left + WORD.format(slot) + right for slot in itertools.count())
    messages = []
    for role, kinds in shape:
        content = [{"type": "text", "text": next(words)} if kind == "text" else {"type": "image"} for kind in kinds]
        messages.append({"role": role, "content": content[0]["text"] if reader is None else content})
    return messages


def without_template(reader: pictures.Reader | None, end: str) -> templates.Render:
    """LLaVA-1.5's format, which also serves a tokenizer without a template of its own.

    Args:
        end: what follows an answer that is not the last.
    """

    def rendered(messages: templates.Messages, opens_answer: bool) -> str:
        text = ""
        for number, message in enumerate(messages):
            content = message["content"]
            flat = content if reader is None else "".join(part.get("text", f"{reader.written}\n") for part in content)
            if message["role"] == "user":
                text += f"USER: {flat} ASSISTANT:"
            elif message["role"] == "system":
                text += f"{flat} "
            else:
                text += f" {flat}" + end * (number < len(messages) - 1)
        return text

    return rendered


def as_it_reads(render: templates.Render) -> templates.Render:
    """Message content for a text-only checkpoint: most templates expect strings, those that came from a processor lists of parts."""
    takes_strings = WORD.format(0) in render(messages(None, QUESTION), True)

    def rendered(messages: templates.Messages, opens_answer: bool) -> str:
        if takes_strings:
            return render(messages, opens_answer)
        return render(
            [message | {"content": [{"type": "text", "text": message["content"]}]} for message in messages], opens_answer
        )

    return rendered
