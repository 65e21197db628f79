"""One answer to a prompt, with or without a word on how good it is.

    unpaired           prompt, completion, label: a row of KTO
    prompt_completion  prompt and completion: texts or messages
    question_answer    question and answer
    alpaca             instruction, input, output (Dolly: context, response); history and system where there are any
    swift              query, response, history, system (ms-swift), and rejected_response of a pair

`data.label_means` says what a label that is true means: the answer is desirable, unsafe or safe. `kto_tag` is LLaMA-Factory's name
of the column.
"""

from typing import Any

from srlhfv_jax.data import cells, labels
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.layouts import preference, turns
from srlhfv_jax.data.layouts.layout import Layout, Reading, first_of, preferred, unlabelled
from srlhfv_jax.data.layouts.turns import Said
from srlhfv_jax.data.rows import Example, Row

PICTURES = frozenset({"image", "images", "system"})
VERDICTS = frozenset({"label", "kto_tag"})
COMPLETION = PICTURES | {"prompt", "question", "completion"}
ANSWER = PICTURES | {"question", "prompt", "answer"}
ALPACA = PICTURES | VERDICTS | {"instruction", "input", "context", "output", "response", "history"}
SWIFT = PICTURES | VERDICTS | {"query", "response", "rejected_response", "history"}


def single(asked: list[Said], answer: Any, row: Row, reading: Reading, used: frozenset[str]) -> Example:
    """A prompt and its answer; None or "": a prompt alone."""
    talk = turns.talk(asked, row, reading, system=cells.text(row, "system"))
    told = {} if labels.absent(answer) else verdict(row, reading) if VERDICTS & used else unlabelled(1)
    responses = () if labels.absent(answer) else (turns.answer(answer, "the answer"),)
    return Example(talk.images, talk.question, responses, **told, meta=cells.meta(row, used), history=talk.history)


def verdict(row: Row, reading: Reading) -> dict[str, Any]:
    """Labels of one answer from the row's `label` or `kto_tag`."""
    name = first_of(row, "label", "kto_tag")
    flag = labels.flag(row, name)
    if flag is None or reading.label_means == "desirable":
        return unlabelled(1) | {"desirable": flag}
    unsafe = flag == (reading.label_means == "unsafe")
    return unlabelled(1) | {"unsafe": (unsafe,), "categories": (labels.category(row, unsafe),)}


def _unpaired(row: Row, reading: Reading) -> Example:
    if all(labels.absent(row.get(name)) for name in VERDICTS):
        raise Unusable("missing_label", "the row has no label")
    return _completion(row, reading, COMPLETION | VERDICTS)


def _completion(row: Row, reading: Reading, used: frozenset[str] = COMPLETION) -> Example:
    name = first_of(row, "prompt", "question")
    return single(turns.prompt(row.get(name), name), row.get("completion") or _empty("completion"), row, reading, used)


def _question_answer(row: Row, reading: Reading) -> Example:
    name = first_of(row, "question", "prompt")
    return single(turns.prompt(row.get(name), name), row.get("answer") or _empty("answer"), row, reading, ANSWER)


def _alpaca(row: Row, reading: Reading) -> Example:
    answer = row.get(first_of(row, "output", "response")) or _empty("output")
    asked = [*turns.pairs(row.get("history"), "history"), preference.instruction(row)]
    return single(asked, answer, row, reading, ALPACA)


def _swift(row: Row, reading: Reading) -> Example:
    asked = [*turns.pairs(row.get("history"), "history"), turns.said("user", row.get("query"), "query")]
    example = single(asked, row.get("response"), row, reading, SWIFT)
    return example if labels.absent(row.get("rejected_response")) else rejected(example, row, reading)


def rejected(example: Example, row: Row, reading: Reading) -> Example:
    """An example with the answer `rejected_response` besides its own."""
    if not example.responses:
        raise Unusable("missing_response", "the row has a rejected_response and no answer that is better")
    responses = (*example.responses, turns.answer(row["rejected_response"], "rejected_response"))
    return example._replace(responses=responses, desirable=None, **preferred(reading))


def _empty(name: str) -> None:
    raise Unusable("empty_response", f"{name} is empty")


LAYOUTS = (
    Layout("unpaired", ("prompt|question", "completion", "label|kto_tag"), COMPLETION | VERDICTS, _unpaired),
    Layout("prompt_completion", ("prompt|question", "completion"), COMPLETION, _completion, marks=frozenset({"completion"})),
    Layout("question_answer", ("question|prompt", "answer"), ANSWER, _question_answer),
    Layout("alpaca", ("instruction", "output|response"), ALPACA, _alpaca, marks=frozenset({"instruction"})),
    Layout("swift", ("query",), SWIFT, _swift, marks=frozenset({"query"})),
)
