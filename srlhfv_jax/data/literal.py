"""A tokenizer to which what users write is text: no string of theirs becomes a token that has a meaning of its own.

A tokenizer finds special and added tokens by their spelling, so "</s>" in a question would end the turn. Here each of them has
another spelling, with a character that no text may contain. What the chat template writes is respelled, what users write is not.
Everything else stays as it was, and with it the ids of every text without such a string.
"""

import contextlib
import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer

from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.errors import UserError

BORDER = "\U0010fffd"  # of a new spelling: the last character for private use
NO_MATCH = "(?!)"


class Piece(NamedTuple):
    """A part of a prompt."""

    text: str
    written: bool  # by the user; otherwise by the chat template


Request = tuple[tuple[Piece, ...], bool]  # pieces, and whether the tokenizer's own additions come with them


class Literal(NamedTuple):
    """The respelled tokenizer."""

    core: Tokenizer
    ids: Mapping[str, int]  # of the tokens that users cannot write, by their own spelling
    special: frozenset[int]  # those that are left out of decoded texts
    pattern: re.Pattern  # finds them

    def encode(self, pieces: Sequence[Piece], *, add_special_tokens: bool) -> Int[np.ndarray, "T"]:
        """Ids of the pieces as one text.

        Raises:
            Unusable: what the user wrote is no text.
        """
        return np.asarray(self.core.encode(self._joined(pieces), add_special_tokens=add_special_tokens).ids, np.int32)

    def encode_all(self, requests: Iterable[Request]) -> dict[Request, Int[np.ndarray, "T"]]:
        """`encode` of many, on all cores at once; pieces that are no text are left out."""
        texts: dict[Request, str] = {}
        for pieces, add_special_tokens in requests:
            with contextlib.suppress(Unusable):
                texts[pieces, add_special_tokens] = self._joined(pieces)
        ids = {}
        for add_special_tokens in (False, True):
            some = {request: text for request, text in texts.items() if request[1] == add_special_tokens}
            encodings = self.core.encode_batch_fast(list(some.values()), add_special_tokens=add_special_tokens)
            ids |= {request: np.asarray(encoding.ids, np.int32) for request, encoding in zip(some, encodings, strict=True)}
        return ids

    def found(self, text: str) -> list[int]:
        """The special and added tokens that are spelled in a text."""
        return [self.ids[one[0]] for one in self.pattern.finditer(text)]

    def _joined(self, pieces: Sequence[Piece]) -> str:
        return "".join(_checked(piece.text) if piece.written else self._respelled(piece.text) for piece in pieces)

    def _respelled(self, text: str) -> str:
        return self.pattern.sub(lambda found: _spelling(self.ids[found[0]]), text)


@functools.lru_cache(4)  # by identity; half a second for 40,000 words and 6,000 added tokens
def literal(tokenizer: Any) -> Literal:
    """Respell the special and added tokens of a Hugging Face tokenizer. Added white space, as Gemma's line breaks, stays text.

    Raises:
        UserError: this tokenizer is of another kind.
    """
    name = type(tokenizer).__name__
    if not tokenizer.is_fast:
        raise UserError(f"expected a tokenizer that has a tokenizer.json, got {name}: save it as one with transformers")
    added = {index: token for index, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
    ids = {token.content: index for index, token in added.items()}
    special = frozenset(index for index, token in added.items() if token.special)
    pattern = re.compile("|".join(map(re.escape, sorted(ids, key=len, reverse=True))) or NO_MATCH)
    whole = tokenizer.backend_tokenizer
    seen = _spelling(0) if whole.normalizer is None else whole.normalizer.normalize_str(_spelling(0))
    try:
        core = Tokenizer.from_str(json.dumps(_respell(json.loads(whole.to_str()), ids, raw=_spelling(0) not in seen)))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"the special tokens of this {name} cannot be told from text: {error}") from None
    if any(core.token_to_id(_spelling(index)) != index for index in ids.values()):
        raise UserError(f"the special tokens of this {name} cannot be told from text: its ids have gaps")
    return Literal(core, ids, special, pattern)


def _respell(description: dict[str, Any], ids: Mapping[str, int], *, raw: bool) -> dict[str, Any]:
    """The content of a tokenizer.json in which these tokens are spelled anew, everywhere but in what it decodes with.

    Args:
        raw: the normalizer would spoil the new spelling, which is looked for before it.
    """
    spelling = {content: _spelling(index) for content, index in ids.items()}
    for token in description["added_tokens"]:
        if token["content"] in spelling:
            # `single_word` would overlook it beside a letter of the user's.
            token |= {"content": spelling[token["content"]], "normalized": token["normalized"] and not raw, "single_word": False}
    model = description["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {spelling.get(word, word): index for word, index in vocabulary.items()}
    else:
        model["vocab"] = [[spelling.get(word, word), score] for word, score in vocabulary]
    if "merges" in model:  # some vocabularies can also build a special token out of its characters
        pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
        model["merges"] = [pair for pair in pairs if not spelling.keys() & {*pair, "".join(pair)}]
    if model.get("unk_token") in spelling:
        model["unk_token"] = spelling[model["unk_token"]]
    return description | {"model": model, "truncation": None, "padding": None}


def _spelling(index: int) -> str:
    return f"{BORDER}{index}{BORDER}"


def _checked(text: str) -> str:
    if BORDER in text:
        raise Unusable("not_text", f"the character U+10FFFD, which is for private use: {text[:60]!r}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Unusable("not_text", f"half of a surrogate pair: {text[:60]!r}") from None
    return text
