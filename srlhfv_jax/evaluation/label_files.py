"""Answers that wait for labels, and the labels that come back.

answers.jsonl: one line for each answer, in a random order: id, row (of the data), history (if any), question, answer, length (tokens),
ended, and cost: that of the scorer, 1 or 0 by a guard, null without either. Labels are a file of lines {"id": ..., "unsafe": true} or
{"id": ..., "cost": 1.5}: for the first lines of answers.jsonl, as many as there is time for.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from srlhfv_jax import files
from srlhfv_jax.data.rows import Example, history_json
from srlhfv_jax.errors import UserError, shown
from srlhfv_jax.evaluation import sampled_with
from srlhfv_jax.evaluation.answers import Answers

ANSWERS = "answers.jsonl"
FIELDS = {"id": str, "row": int, "answer": str, "length": int, "ended": bool, "cost": float | None}


class Recorded(NamedTuple):
    """Answers as they lie in answers.jsonl."""

    ids: tuple[str, ...]
    lengths: tuple[int, ...]
    ended: tuple[bool, ...]
    cost_B: Float[np.ndarray, "B"] | None  # None: nobody has judged them


def write(path: Path, examples: Sequence[Example], answers: Answers, cost_B: Float[np.ndarray, "B"] | None) -> None:
    """Write answers.jsonl; `cost_B` is None where nobody has judged them."""
    lines = []
    for place, (row, text) in enumerate(zip(answers.prompts.tolist(), answers.texts, strict=True)):
        asked = history_json(examples[row].history) | {"question": examples[row].question}
        line = {"id": answer_id(row, examples[row], text), "row": row} | asked | {"answer": text}
        line |= {"length": int(answers.lengths[place]), "ended": bool(answers.ended[place])}
        lines.append(json.dumps(line | {"cost": None if cost_B is None else float(cost_B[place])}))
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, "".join(f"{line}\n" for line in lines))


def read(path: Path) -> Recorded:
    """The answers of a file that `write` wrote.

    Raises:
        UserError: a line is damaged.
    """
    rows = []
    with path.open("rb") as lines:
        for number, row in files.json_lines(lines, path, advice=sampled_with.ADVICE):
            for name, kind in FIELDS.items():
                files.take(row, name, kind, f"{path}:{number}", advice=sampled_with.ADVICE)
            rows.append(row)
    costs = [row["cost"] for row in rows]
    if len({cost is None for cost in costs}) == 2:
        raise UserError(f"{path} has costs on some lines only: {sampled_with.ADVICE}")
    ids, lengths, ended = (tuple(row[name] for row in rows) for name in ("id", "length", "ended"))
    return Recorded(ids, lengths, ended, None if None in costs else np.array(costs, np.float64))


def answer_id(row: int, example: Example, text: str) -> str:
    """A name of an answer to a prompt: of another answer, or to another prompt, it is another one."""
    asked = [tuple(turn) for turn in example.history], example.question
    return hashlib.sha256(repr((row, asked, text)).encode(errors="backslashreplace")).hexdigest()[:16]


def read_labels(path: Path, ids: Sequence[str], name: str, answers: Path) -> tuple[tuple[int, ...], Float[np.ndarray, "n"]]:
    """(places among `ids`, costs), in the order of the places. "unsafe" counts as a cost of 1, and safe as 0.

    Args:
        name: "unsafe" or "cost", which each line must have.
        answers: where the ids come from, for messages.

    Raises:
        UserError: an unknown id, one that is labelled twice, or a line without a label.
    """
    kind, place_of, labels = {"unsafe": bool, "cost": float}[name], {name: place for place, name in enumerate(ids)}, {}
    with path.open("rb") as lines:
        for number, row in files.json_lines(lines, path):
            origin = f"{path}:{number}"
            label_id = files.take(row, "id", str, origin, advice=f"copy it from {answers}")
            if label_id not in place_of:
                raise UserError(
                    f"{origin}: the id {shown(label_id)} is of no answer in {answers}: a label is of one answer to one prompt, give those of "
                    "this file"
                )
            if place_of[label_id] in labels:
                raise UserError(f"{origin}: the id {shown(label_id)} has a label already: keep one of the two lines")
            labels[place_of[label_id]] = float(
                files.take(row, name, kind, origin, advice="label the answer, or leave out the line")
            )
    places = tuple(sorted(labels))
    return places, np.array([labels[place] for place in places], np.float64)
