"""Rows for one use: what each use needs of a row, and the token ids of all rows that have it."""

import itertools
from collections.abc import Iterable, Iterator

from srlhfv_jax.config import DataConfig
from srlhfv_jax.data import collate, preferences, targets, tokens
from srlhfv_jax.data.chat import Codec
from srlhfv_jax.data.drops import Dropped, Unusable
from srlhfv_jax.data.preferences import Choice
from srlhfv_jax.data.rows import Example
from srlhfv_jax.data.targets import Bound, Rule
from srlhfv_jax.data.tokens import Encoded

ROWS_AT_ONCE = 64  # whose texts are encoded together, and whose pictures are in memory together


def encode(
    kind: str,
    sign: str,
    choice: Choice,
    codec: Codec,
    examples: Iterable[Example],
    data: DataConfig,
    literal: bool,
    rule: Rule | None,
) -> Iterator[Encoded | Dropped]:
    """Each example in its order: its token ids, or why it cannot be used; what `rule` makes of it, where there is one. The arguments
    are those of `loader.fit`."""
    lengths = {"prompt_length": data.prompt_length, "response_length": data.response_length}
    bound = None if rule is None else targets.bind(rule, codec, data.response_length)
    numbered = enumerate(examples)
    while some := list(itertools.islice(numbered, ROWS_AT_ONCE)):
        rows = [_checked(kind, sign, choice, bound, index, example) for index, example in some]
        quick = tokens.with_ids_of(codec, [row for row in rows if isinstance(row, Example)])
        for (index, _), row in zip(some, rows, strict=True):
            try:
                encoded = row if isinstance(row, Dropped) else tokens.encode(quick, row, index, literal=literal, **lengths)
            except Unusable as unusable:
                encoded = Dropped(index, unusable.reason, unusable.detail)
            yield from [encoded] if bound is None or isinstance(encoded, Dropped) else targets.rows(bound, encoded)


def _checked(kind: str, sign: str, choice: Choice, bound: Bound | None, index: int, example: Example) -> Example | Dropped:
    """The part of an example that is used; labels come first: they need no tokenizer."""
    try:
        return _used(kind, sign, choice, example if bound is None else targets.example(bound, example))
    except Unusable as unusable:
        return Dropped(index, unusable.reason, unusable.detail)


def _used(kind: str, sign: str, choice: Choice, example: Example) -> Example:
    """The part of an example that this use reads.

    Raises:
        Unusable: it lacks an answer or a label.
    """
    if kind == "prompts":
        return example._replace(responses=(), unsafe=(), severity=())
    if kind == "preference":
        return preferences.decided(example, choice)
    if kind == "supervised":
        collate.supervised_side(example)
    elif kind == "pairs":
        if len(example.responses) != 2:
            raise Unusable("missing_response", f"a pair needs two responses, the row has {len(example.responses)}")
        if example.chosen is None and example.safer is None and not any(collate.signs(example, sign)):
            raise Unusable(
                "missing_label", "neither a preference nor a safety label" + (", only ties" if example.helpful_tie else "")
            )
    return example
