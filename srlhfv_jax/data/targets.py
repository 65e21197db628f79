"""Supervised rows that teach something else than their own answer (`config.targets` of sft): defences that are rows and no new loss.

benign_refusal   in a share of the rows without harm the answer becomes a refusal
derta            of a safe and an unsafe answer to one prompt two rows: the unsafe one cut, the safe one behind it, with loss on that
                 part alone; and the unsafe one with a refusal as the label of its tokens (DeRTa, arXiv 2407.09121). Rows with one answer
                 stay
rewrite          the unsafe answer stands in the question, and the safe one is learned (SR_LLM)

All that is drawn comes from a row's content and the seed: the order of rows and batches have no part in it, and a larger share keeps
the rows of a smaller one. `uses` calls `example` before a row is encoded and `rows` with its token ids.
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from srlhfv_jax.config import TargetsConfig
from srlhfv_jax.data import tokens
from srlhfv_jax.data.chat import MARK, Codec
from srlhfv_jax.data.collate import supervised_side
from srlhfv_jax.data.drops import Dropped, Unusable
from srlhfv_jax.data.rows import Example
from srlhfv_jax.data.tokens import Encoded, Ids, Target
from srlhfv_jax.errors import UserError, shown

MADE = {"plain": (), "benign_refusal": ("refused",), "derta": ("prefix", "rto"), "rewrite": ("rewritten",)}  # rows, by kind
FIELD = re.compile(r"\{(question|answer)\}")


class Rule(NamedTuple):
    """Lessons of rows, and the seed of what is drawn."""

    settings: TargetsConfig
    seed: int


class Bound(NamedTuple):
    """A rule with what a tokenizer makes of its words."""

    settings: TargetsConfig
    seed: int
    response_length: int
    sees: bool  # "<image>" in a text marks a picture
    refusals: tuple[Ids, ...] = ()
    refusal: int = 0


def bind(rule: Rule, codec: Codec, response_length: int) -> Bound | None:
    """The rule for a tokenizer; None: every row teaches its answer.

    Raises:
        UserError: a sentence is no answer here, or the refusal is not one token.
    """
    settings = rule.settings
    bound = Bound(settings, rule.seed, response_length, codec.reader is not None)
    if settings.kind == "benign_refusal":
        return bound._replace(refusals=tuple(_sentence(codec, text, response_length) for text in settings.refusals))
    if settings.kind == "derta" and settings.rto:
        return bound._replace(refusal=_token(codec, settings.refusal))
    return None if settings.kind == "plain" else bound


def _sentence(codec: Codec, text: str, response_length: int) -> Ids:
    try:
        ids = tokens.response_ids(codec, text)
    except Unusable as unusable:
        raise UserError(f"config.targets.refusals has {shown(text)}, which is no answer here: {unusable.detail}") from unusable
    if len(ids) > response_length:
        raise UserError(
            f"config.targets.refusals has {shown(text)}: {len(ids)} tokens with the end token, config.data.response_length is "
            f"{response_length}"
        )
    return ids


def _token(codec: Codec, word: str) -> int:
    """The one token of a word with which an answer begins."""
    try:
        ids = tokens.text_ids(codec, word).tolist()
    except Unusable as unusable:
        raise UserError(f"config.targets.refusal is {shown(word)}: {unusable.detail}") from unusable
    if len(ids) != 1 or ids[0] in codec.never_ids or ids[0] in codec.stop_ids:
        raise UserError(
            f"config.targets.refusal must be one token of this tokenizer at the beginning of an answer: {shown(word)} is "
            f"{shown(codec.tokenizer.convert_ids_to_tokens(ids))}; take a shorter or more common word"
        )
    return ids[0]


def example(bound: Bound, row: Example) -> Example:
    """The part of a row that is read, with the answer to learn as its `chosen` one.

    Raises:
        Unusable: it lacks a safe or an unsafe answer.
    """
    if bound.settings.kind == "benign_refusal" or (bound.settings.kind == "derta" and _is_answered(row)):
        return row
    if len(row.responses) != 2 or sorted(row.unsafe, key=str) != [False, True]:
        raise Unusable("not_safe_and_unsafe", f"{len(row.responses)} responses, labelled unsafe: {row.unsafe or 'no labels'}")
    unsafe = row.unsafe.index(True)
    if bound.settings.kind == "derta":
        return row._replace(chosen=1 - unsafe)
    texts = {"question": row.question, "answer": row.responses[unsafe]}
    if bound.sees and MARK in texts["answer"]:
        raise Unusable("special_token_in_text", f"the unsafe answer has {MARK}, which marks a picture in a question")
    question = FIELD.sub(lambda field: texts[field[1]], bound.settings.template)
    return _one_answer(row, row.responses[1 - unsafe])._replace(question=question)


def _one_answer(row: Example, text: str) -> Example:
    """The row with one answer and nothing that compares two."""
    row = row._replace(responses=(text,), chosen=None, safer=None, helpful_tie=False, safety_tie=False)
    return row._replace(unsafe=(), severity=(), categories=())


def rows(bound: Bound, row: Encoded) -> Iterator[Encoded | Dropped]:
    """All rows that are learned from in the place of one."""
    if bound.settings.kind == "benign_refusal":
        yield _refused(bound, row)
    elif bound.settings.kind == "derta":
        yield from [row] if _is_answered(row.example) else _derta(bound, row)
    else:
        yield row._replace(target=Target("rewritten"))


def _is_answered(row: Example) -> bool:
    """Whether it has one answer, which is learned as it is: the helpful rows that DeRTa mixes in."""
    return len(row.responses) == 1 and row.unsafe != (True,)


def counts(kind: str, rows: Sequence[Encoded]) -> dict[str, int]:
    """Number of rows of each sort that a kind makes."""
    made = Counter(row.target.made for row in rows if row.target is not None)
    return {name: made[name] for name in MADE[kind]}


def harmless(row: Example) -> bool:
    """Whether no label says that the question, or an answer to it, does harm."""
    asked = row.harmful or any(has for _, has in row.asked)
    return not (asked or any(row.unsafe) or any(level is not None and level > 0 for level in row.severity))


def _refused(bound: Bound, row: Encoded) -> Encoded:
    side = supervised_side(row.example)
    drawn = _draw(bound.seed, "refused", row, row.responses[side])
    if not harmless(row.example) or (drawn >> 11) / 2**53 >= bound.settings.share:
        return row
    sentence = _draw(bound.seed, "sentence", row, row.responses[side]) % len(bound.refusals)
    answers = tuple(bound.refusals[sentence] if place == side else ids for place, ids in enumerate(row.responses))
    return row._replace(responses=answers, target=Target("refused"))


def _derta(bound: Bound, row: Encoded) -> Iterator[Encoded | Dropped]:
    """Two rows of a safe answer s and an unsafe one u of n tokens, each with its end:

    prefix   [u_<k | s], loss on s; k = 0 in a third of rows and where n < 3, else uniform in [1, n - 2], without the end of u
    rto      u, with the refusal as the label of every token, its end included, or of a share of them
    """
    settings, side = bound.settings, supervised_side(row.example)
    safe, unsafe = row.responses[side], row.responses[1 - side]
    single = row._replace(example=_one_answer(row.example, ""))
    if settings.prefix:
        length, drawn = len(unsafe) - 1, _draw(bound.seed, "cut", row, unsafe, safe)
        cut = 0 if length < 3 or drawn % 3 == 0 else 1 + drawn // 3 % (length - 2)
        joined = np.concatenate([unsafe[:cut], safe])
        if len(joined) <= bound.response_length:
            yield single._replace(responses=(joined,), target=Target("prefix", joined, np.arange(len(joined)) >= cut))
        else:
            said = (
                f"{cut} tokens of the unsafe answer and {len(safe)} of the safe one, response_length is {bound.response_length}"
            )
            yield Dropped(row.row, "response_too_long", said)
    if settings.rto:
        order = np.random.PCG64(_draw(bound.seed, "positions", row, unsafe, safe)).random_raw(len(unsafe)).argsort(kind="stable")
        learned = np.zeros(len(unsafe), bool)
        learned[order[: math.ceil(settings.positions * len(unsafe))]] = True
        yield single._replace(responses=(unsafe,), target=Target("rto", np.full_like(unsafe, bound.refusal), learned))


def _draw(seed: int, purpose: str, row: Encoded, *answers: Ids) -> int:
    """64 bits of a row's prompt, pictures and answers."""
    parts = [np.ascontiguousarray(part, np.int64).tobytes() for part in (row.prompt, *answers)]
    return int.from_bytes(hashlib.sha256(repr((seed, purpose, parts, row.digests)).encode()).digest()[:8], "big")
