"""Whole conversations as one list.

    messages      OpenAI, TRL, ms-swift, LLaMA-Factory: {"role", "content"}; content is a text, or parts of text and pictures
    conversation  ShareGPT and LLaVA: `conversations` of {"from", "value"}; ms-swift: `conversation` of {"human", "assistant"}
    verl          `prompt` as messages, with the data source and what a rule needs to judge the answer

The last turn of the assistant is the answer; a conversation that ends with the user is a prompt.
"""

from collections.abc import Mapping
from typing import Any

from srlhfv_jax.data import cells, labels
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.layouts import turns
from srlhfv_jax.data.layouts.answers import PICTURES, VERDICTS, rejected, single
from srlhfv_jax.data.layouts.layout import Layout, Reading, first_of
from srlhfv_jax.data.layouts.turns import Said
from srlhfv_jax.data.rows import Example, Row
from srlhfv_jax.errors import shown

MESSAGES = PICTURES | VERDICTS | {"messages", "rejected_response"}
CONVERSATION = PICTURES | VERDICTS | {"conversations", "conversation"}
VERL = PICTURES | {"prompt", "data_source", "reward_model", "extra_info"}


def _whole(every: list[Said], row: Row, reading: Reading, used: frozenset[str]) -> Example:
    """The turns, with the last one as the answer where the assistant has it."""
    ends = bool(every) and every[-1].role == "assistant"
    if ends and not every[-1].text:
        raise Unusable("empty_response", "the last turn is empty")
    return single(every[:-1] if ends else every, every[-1].text if ends else None, row, reading, used)


def _messages(row: Row, reading: Reading) -> Example:
    example = _whole(turns.messages(row.get("messages"), "messages"), row, reading, MESSAGES)
    return example if labels.absent(row.get("rejected_response")) else rejected(example, row, reading)


def _conversation(row: Row, reading: Reading) -> Example:
    name = first_of(row, "conversations", "conversation")
    value = row.get(name)
    if isinstance(value, (list, tuple)) and all(
        isinstance(one, Mapping) and {"human", "assistant"} <= one.keys() for one in value
    ):
        every = turns.pairs([[one["human"], one["assistant"]] for one in value], name)
    else:
        every = turns.messages(value, name)
    return _whole(every, row, reading, CONVERSATION)


def _verl(row: Row, reading: Reading) -> Example:
    talk = turns.talk(turns.prompt(row.get("prompt"), "prompt"), row, reading, system=cells.text(row, "system"))
    meta = {"data_source": cells.text(row, "data_source")} | _inner(row, "reward_model") | _inner(row, "extra_info")
    return Example(talk.images, talk.question, (), meta=cells.meta(row, VERL) | meta, history=talk.history)


def _inner(row: Row, name: str) -> dict[str, str]:
    """Scalars of a table in a cell, such as the `ground_truth` of reward_model, as text under "COLUMN.NAME"."""
    table: Any = row.get(name)
    if table is not None and not isinstance(table, Mapping):
        raise Unusable("bad_label", f"{name} must be a table, got {shown(table)}")
    return {f"{name}.{key}": value for key, value in cells.meta(table or {}, ()).items()}


LAYOUTS = (
    Layout("messages", ("messages",), MESSAGES, _messages, marks=frozenset({"messages", "rejected_response"})),
    Layout(
        "conversation",
        ("conversations|conversation",),
        CONVERSATION,
        _conversation,
        marks=frozenset({"conversations", "conversation"}),
    ),
    Layout("verl", ("prompt", "reward_model|data_source"), VERL, _verl),
)
