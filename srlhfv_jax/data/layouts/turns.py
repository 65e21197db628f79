"""Conversations as lists of messages, in the spellings of OpenAI, ShareGPT, LLaVA, LLaMA-Factory and ms-swift -> `Turn`s and pictures.

A picture that stands in a message becomes the mark "<image>" in its text. A mark that a text has itself takes the next picture of
the row's own columns `image` or `images`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from srlhfv_jax.data import cells, labels
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.layouts.layout import Reading
from srlhfv_jax.data.rows import Row, Turn
from srlhfv_jax.errors import shown

MARK = "<image>"
ROLES = {"system": "system", "developer": "system"}
ROLES |= dict.fromkeys(("user", "human", "prompter"), "user")
ROLES |= dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model"), "assistant")
NEXT = object()  # a picture stands here, and its cell is the next one of the row's columns
TAGGED = re.compile(r"<img>(.*?)</img>", re.DOTALL)  # of Qwen-VL and ms-swift


class Said(NamedTuple):
    """One message: its text, and for each mark in it the cell of a picture, or NEXT, or None for a mark that the text itself has."""

    role: str  # of `rows.ROLES`
    text: str
    cells: tuple[Any, ...]


class Talk(NamedTuple):
    """A conversation that ends with a question."""

    history: tuple[Turn, ...]
    question: str
    images: tuple[bytes, ...]


def messages(value: Any, name: str) -> list[Said]:
    """The messages of a cell.

    Raises:
        Unusable: it is no list of messages, a role is unknown, or a part of a message is neither text nor a picture.
    """
    if not isinstance(value, (list, tuple)) or not all(isinstance(one, Mapping) for one in value):
        raise Unusable("bad_turns", f"{name} must be a list of messages, each with a role and a text, got {shown(value)}")
    return [message(one, name) for one in value]


def message(value: Mapping[str, Any], name: str) -> Said:
    """One message, {"role", "content"} or {"from", "value"}."""
    told = value.get("role", value.get("from"))
    role = ROLES.get(told) if isinstance(told, str) else None
    if role is None:
        raise Unusable("bad_turns", f"{name} has the role {shown(told)}: expected one of {', '.join(ROLES)}")
    return said(role, value["content"] if "content" in value else value.get("value"), name)


def said(role: str, content: Any, name: str) -> Said:
    """A message of this role: its content is text, or a list of parts."""
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, (list, tuple)):
        text = cells.clean(content, f"a text of {name}")
        if role == "system":
            return Said(role, text, ())  # no picture belongs there: a mark is text
        return _tagged(role, text) if TAGGED.search(text) else Said(role, text, (None,) * text.count(MARK))
    texts, pictures = [], []
    for part in content:
        text, cell = _part(part, name)
        texts.append(MARK if text is None else text)
        pictures += [cell] if text is None else [None] * text.count(MARK)
    if role == "system" and any(cell is not None for cell in pictures):
        raise Unusable("bad_turns", f"a picture stands in a system turn of {name}: expected it in a user's")
    return Said(role, "".join(texts).strip(), () if role == "system" else tuple(pictures))


def _part(part: Any, name: str) -> tuple[str | None, Any]:
    """(text, None) or (None, the cell of a picture)."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in ("text", "input_text", "output_text"):
        return cells.clean_inside(part.get("text", part.get("value")), f"a text of {name}"), None
    if kind in ("image", "image_url", "input_image"):
        cell = next((part[key] for key in ("image", "image_url", "url", "path", "value") if part.get(key) is not None), None)
        cell = cell["url"] if isinstance(cell, Mapping) and "url" in cell else cell
        return None, NEXT if cell is None else cell
    raise Unusable("bad_turns", f"a part of {name} must be a text or a picture (image, image_url), got {shown(part)}")


def _tagged(role: str, text: str) -> Said:
    """<img>FILE</img> in a text is a picture."""
    pieces = TAGGED.split(text)  # text, file, text, file, ..., text
    found = [None] * pieces[0].count(MARK)
    for file, after in zip(pieces[1::2], pieces[2::2]):
        found += [file.strip(), *[None] * after.count(MARK)]
    return Said(role, MARK.join(pieces[::2]).strip(), tuple(found))


def talk(turns: Sequence[Said], row: Row, reading: Reading, *, system: str = "") -> Talk:
    """The prompt of a row, with its pictures in the order of their marks.

    Args:
        system: a system turn that stands in a column of its own; "": none.

    Raises:
        Unusable: it does not end with a user's turn, or has another number of marks than the row of pictures.
    """
    turns = [*([Said("system", system, ())] if system else []), *turns]
    if not turns or turns[-1].role != "user":
        roles = ", ".join(one.role for one in turns[:12]) or "none"
        raise Unusable(
            "bad_turns", f"the turns before the answer are {roles}: expected user and assistant by turns, the user's last"
        )
    history = tuple(Turn(one.role, one.text) for one in turns[:-1])
    return Talk(history, turns[-1].text, _images(turns, row, reading))


def _images(every: Sequence[Said], row: Row, reading: Reading) -> tuple[bytes, ...]:
    row_pictures = list(cells.pictures(row, reading.image))
    marked = [cell for one in every for cell in one.cells]
    if not marked:
        return tuple(row_pictures)
    waiting, images = iter(row_pictures), []
    for cell in marked:
        image = next(waiting, None) if cell is None or cell is NEXT else reading.image(cell)
        if image is None and cell is not None:
            raise Unusable("missing_image", "a picture stands in a message and neither there nor in the row is its file")
        images += [] if image is None else [image]
    images += waiting
    if images and len(images) != len(marked):
        raise Unusable("special_token_in_text", f"the turns have {len(marked)} times {MARK} and the row {len(images)} images")
    return tuple(images)


def pairs(value: Any, name: str) -> list[Said]:
    """Turns as [[question, answer], ...], as `history` of ms-swift and of Alpaca has them."""
    rounds = labels.cells({name: value}, name)
    if not all(isinstance(one, (list, tuple)) and len(one) == 2 for one in rounds):
        raise Unusable("bad_turns", f"{name} must be a list of pairs of texts, got {shown(value)}")
    return [said(role, text, name) for one in rounds for role, text in zip(("user", "assistant"), one)]


def answer(value: Any, name: str) -> str:
    """An answer: a text, a message, or a list of one message.

    Raises:
        Unusable: it is none of them, somebody else says it, or a picture is in it.
    """
    if value is None or isinstance(value, str):
        return cells.clean(value, name)
    if not isinstance(value, (Mapping, list, tuple)):
        raise Unusable("bad_label", f"{name} must be text or a message, got {shown(value)}")
    every = messages([value] if isinstance(value, Mapping) else value, name)
    if [one.role for one in every] != ["assistant"]:
        roles = ", ".join(one.role for one in every[:12]) or "no turn"
        raise Unusable("bad_turns", f"{name} must be one turn of the assistant, got {roles}")
    if any(cell is not None for cell in every[0].cells):
        raise Unusable("bad_turns", f"{name} holds a picture: answers are text")
    return every[0].text


def prompt(value: Any, name: str) -> list[Said]:
    """A prompt: a text, or a list of messages whose last one is the user's."""
    every = [said("user", value, name)] if value is None or isinstance(value, str) else messages(value, name)
    if every and every[-1].role == "assistant":
        raise Unusable("bad_turns", f"{name} ends with a turn of the assistant: expected the user's question last")
    return every
