"""Our own rows: question or prompt, which may be a list of messages; optionally `history`, image or images, response or responses,
and labels: chosen, safer (0/1), unsafe, severity (one per response)."""

from srlhfv_jax.data import cells, labels
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.layouts import turns
from srlhfv_jax.data.layouts.layout import Layout, Reading, first_of
from srlhfv_jax.data.rows import Example, Row

LABELS = frozenset({"chosen", "safer", "unsafe", "severity", "harmful"})
READS = frozenset({"image", "images", "response", "responses", "history"}) | LABELS


def read(row: Row, reading: Reading) -> Example:
    """A prompt, an answer or a pair, by what the row has."""
    question = first_of(row, "question", "prompt")
    several = labels.cells(row, "responses")
    if several:
        responses = tuple(cells.clean(value, "responses") for value in several)
    elif row.get("response") is not None:
        responses = (cells.text(row, "response"),)
    else:
        responses = ()
    chosen, helpful_tie = labels.choice(row, "chosen", first=0)
    safer, safety_tie = labels.choice(row, "safer", first=0)
    unsafe, severity = (
        [None] * len(responses) if labels.absent(row.get(name)) else labels.cells(row, name) for name in ("unsafe", "severity")
    )
    if len(unsafe) != len(responses) or len(severity) != len(responses):
        raise Unusable("bad_label", f"{len(responses)} responses, {len(unsafe)} unsafe flags, {len(severity)} severities")
    flags = tuple(labels.flag({"unsafe": value}, "unsafe") for value in unsafe)
    example = Example(
        images=(),
        question="",
        responses=responses,
        chosen=chosen,
        safer=safer,
        helpful_tie=helpful_tie,
        safety_tie=safety_tie,
        unsafe=flags,
        severity=tuple(labels.number({"severity": value}, "severity") for value in severity),
        categories=tuple(labels.category(row, flag) for flag in flags),
        harmful=labels.flag(row, "harmful"),
        meta=cells.meta(row, READS | {question}),
    )
    history = turns.messages(labels.cells(row, "history"), "history")
    if not isinstance(row.get(question), (list, tuple)):
        prompt = [turns.Said("user", cells.text(row, question), ())]
        if not history:
            return example._replace(images=cells.pictures(row, reading.image), question=prompt[0].text)
        prompt = turns.prompt(row[question], question)
    else:
        prompt = turns.prompt(row[question], question)
    talk = turns.talk([*history, *prompt], row, reading)
    return example._replace(images=talk.images, question=talk.question, history=talk.history)


LAYOUTS = (Layout("plain", ("question|prompt",), READS, read),)
