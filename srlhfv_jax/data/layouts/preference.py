"""Pairs of which an answer was chosen, as TRL, LLaMA-Factory, ms-swift, SPA-VL, MMSafe-PO and Aligner write them.

    preference        chosen, rejected: texts or messages; prompt: a text or messages, or none: then it is what both begin with
    spa_vl            the same with a question
    mmsafe_po         the same with "USER: ... ASSISTANT:" in the texts, and the kind of preference in `type`
    aligner           question, answer, and correction, which is the better one
    alpaca_pairs      instruction, input, chosen, rejected
    sharegpt_pairs    conversations, and the answers chosen and rejected to their end
    message_pairs     chosen_messages, rejected_messages: two conversations that differ in their end

`data.chosen_means` says what the chosen answer is: more helpful, safer, or both.
"""

import os.path
import re
from typing import Any
from urllib.parse import unquote

from srlhfv_jax.data import cells
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.layouts import turns
from srlhfv_jax.data.layouts.layout import Layout, Reading, first_of, preferred
from srlhfv_jax.data.layouts.turns import Said
from srlhfv_jax.data.rows import Example, Row
from srlhfv_jax.errors import shown

READS = frozenset({"prompt", "chosen", "rejected", "system", "image", "images"})
SPA_VL = frozenset({"question", "chosen", "rejected", "image", "images"})
MMSAFE_PO = SPA_VL | {"type"}
ALIGNER = frozenset({"question", "answer", "correction", "image", "images"})
ALPACA = frozenset({"instruction", "input", "chosen", "rejected", "history", "system", "image", "images"})
SHAREGPT = frozenset({"conversations", "chosen", "rejected", "system", "image", "images"})
MESSAGES = frozenset({"chosen_messages", "rejected_messages", "image", "images"})
SCORES = frozenset(
    {"messages", "score_chosen", "score_rejected", "chosen_score", "rejected_score", "chosen_rating", "rejected_rating"}
)
TRANSCRIPT = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")  # of Anthropic's hh-rlhf
SPOKEN = re.compile(r"(?:^|\s)(USER|ASSISTANT):")  # of MMSafe-PO


def read(row: Row, reading: Reading) -> Example:
    """A prompt, or what both answers begin with, and the answers."""
    prompt, chosen, rejected = row.get("prompt"), row.get("chosen"), row.get("rejected")
    told = isinstance(chosen, (list, tuple)) and isinstance(rejected, (list, tuple))
    if "prompt" in row and prompt is not None and not (told and isinstance(prompt, str)):
        asked = turns.prompt(prompt, "prompt")
        if told:
            chosen, rejected = (_without(asked, value, name) for value, name in ((chosen, "chosen"), (rejected, "rejected")))
        return _pair(asked, chosen, rejected, row, reading, READS)
    return _implicit(chosen, rejected, row, reading, READS)


def _implicit(chosen: Any, rejected: Any, row: Row, reading: Reading, used: frozenset[str]) -> Example:
    """Both begin with the prompt, as TRL's `extract_prompt` has it; of transcripts ("Human: ... Assistant: ...") by turns."""
    if isinstance(chosen, str) and isinstance(rejected, str):
        if not (TRANSCRIPT.match(chosen) and TRANSCRIPT.match(rejected)):
            shared = len(os.path.commonprefix([chosen, rejected]))
            return _pair([turns.said("user", chosen[:shared], "chosen")], chosen[shared:], rejected[shared:], row, reading, used)
        both = [_spoken(text, TRANSCRIPT, name) for text, name in ((chosen, "chosen"), (rejected, "rejected"))]
    else:
        both = [turns.messages(value, name) for value, name in ((chosen, "chosen"), (rejected, "rejected"))]
    ends = [(one[-1].role if one else "no turn") for one in both]
    if ends != ["assistant", "assistant"] or both[0][:-1] != both[1][:-1]:
        raise Unusable(
            "bad_turns",
            f"chosen has {len(both[0])} turns and rejected {len(both[1])}, which end with {' and '.join(ends)}: expected the same "
            "turns in both, and then one turn of the assistant",
        )
    return _pair(both[0][:-1], both[0][-1].text, both[1][-1].text, row, reading, used)


def _without(asked: list[Said], value: Any, name: str) -> Any:
    """An answer's messages without the prompt's, where they begin with them."""
    begins = len(value) > len(asked) and turns.messages(value[: len(asked)], name) == asked
    return value[len(asked) :] if begins else value


def _pair(asked: list[Said], chosen: Any, rejected: Any, row: Row, reading: Reading, used: frozenset[str]) -> Example:
    talk = turns.talk(asked, row, reading, system=cells.text(row, "system") if "system" in used else "")
    responses = (turns.answer(chosen, "chosen"), turns.answer(rejected, "rejected"))
    meta = cells.meta(row, used)
    return Example(talk.images, talk.question, responses, **preferred(reading), meta=meta, history=talk.history)


def _spoken(text: str, marks: re.Pattern, name: str) -> list[Said]:
    """Turns of a transcript."""
    before, *pieces = marks.split(text)
    if before.strip():
        raise Unusable("bad_turns", f"{name} begins with {shown(before)}, before any turn")
    roles = {"Human": "user", "USER": "user"}
    return [turns.said(roles.get(role, "assistant"), said, name) for role, said in zip(pieces[::2], pieces[1::2])]


def _spa_vl(row: Row, reading: Reading) -> Example:
    return _pair(turns.prompt(row.get("question"), "question"), row.get("chosen"), row.get("rejected"), row, reading, SPA_VL)


def _mmsafe_po(row: Row, reading: Reading) -> Example:
    """A preference of type "harmless" is one for the safer answer, of any other for the more helpful one."""
    prompt = _spoken(cells.text(row, "question").removesuffix("ASSISTANT:"), SPOKEN, "question")
    chosen, rejected = (cells.text(row, name).removeprefix("ASSISTANT:").strip() for name in ("chosen", "rejected"))

    def image(cell: Any) -> bytes | None:  # named as on the web
        try:
            return reading.image(cell)
        except Unusable:
            return reading.image(unquote(cell)) if isinstance(cell, str) else None

    means = "safer" if cells.text(row, "type") == "harmless" else "helpful"
    return _pair(prompt, chosen, rejected, row, reading._replace(image=image, chosen_means=means), MMSAFE_PO)


def _aligner(row: Row, reading: Reading) -> Example:
    asked = turns.prompt(row.get("question"), "question")
    return _pair(asked, row.get("correction"), row.get("answer"), row, reading, ALIGNER)


def _alpaca(row: Row, reading: Reading) -> Example:
    asked = [*turns.pairs(row.get("history"), "history"), instruction(row)]
    return _pair(asked, row.get("chosen"), row.get("rejected"), row, reading, ALPACA)


def instruction(row: Row) -> Said:
    """The question of an Alpaca row: its instruction, and below it its input."""
    parts = [cells.text(row, name) for name in ("instruction", first_of(row, "input", "context"))]
    return turns.said("user", "\n".join(filter(None, parts)), "instruction")


def _sharegpt(row: Row, reading: Reading) -> Example:
    asked = turns.prompt(row.get("conversations"), "conversations")
    return _pair(asked, row.get("chosen"), row.get("rejected"), row, reading, SHAREGPT)


def _messages(row: Row, reading: Reading) -> Example:
    return _implicit(row.get("chosen_messages"), row.get("rejected_messages"), row, reading, MESSAGES)


LAYOUTS = (
    Layout("mmsafe_po", ("question", "chosen", "rejected", "text_prompt"), MMSAFE_PO, _mmsafe_po),
    Layout("spa_vl", ("question", "chosen", "rejected"), SPA_VL, _spa_vl, leaves=SCORES),
    Layout("alpaca_pairs", ("instruction", "chosen", "rejected"), ALPACA, _alpaca, leaves=SCORES),
    Layout("sharegpt_pairs", ("conversations", "chosen", "rejected"), SHAREGPT, _sharegpt, leaves=SCORES),
    Layout("preference", ("chosen", "rejected"), READS, read, marks=frozenset({"rejected"}), leaves=SCORES),
    Layout(
        "message_pairs",
        ("chosen_messages", "rejected_messages"),
        MESSAGES,
        _messages,
        marks=frozenset({"chosen_messages", "rejected_messages"}),
    ),
    Layout("aligner", ("question", "answer", "correction"), ALIGNER, _aligner, marks=frozenset({"correction"})),
)
