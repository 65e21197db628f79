"""From an `Example` to token ids: the prompt with its placeholders expanded, each response with its end-of-sequence token.

Every hard check on tokens happens here, before step 0: the number of placeholders equals the number of image features, nothing
is longer than its place, no response contains a special token. A row that fails is dropped for a named reason; nothing is ever
cut (a cut prompt can lose image placeholders, a cut response its end).
"""

import contextlib
import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from srlhfv_jax.data import images, pictures
from srlhfv_jax.data.chat import Codec
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.families import Layout, Reader
from srlhfv_jax.data.literal import Piece, Request
from srlhfv_jax.data.rows import Example, Turn
from srlhfv_jax.errors import UserError

Ids = Int[np.ndarray, "R"]


class Target(NamedTuple):
    """Lesson of a row that does not simply teach its own answer (data/targets.py)."""

    made: str  # which sort of row this is
    labels: Ids | None = None  # of each token of the response; None: the tokens themselves
    learned: Bool[np.ndarray, "R"] | None = None  # where there is loss, beside `labels`


class Encoded(NamedTuple):
    """One row as token ids. Its pictures stay where they are; `digests` name their content."""

    row: int  # index of the example in its sequence
    prompt: Ids
    positions: Int[np.ndarray, "P *axes"]  # rotary positions of the prompt
    responses: tuple[Ids, ...]  # of a pair whose answers are not compared with each other a third, to another prompt
    example: (
        Example  # without its images and texts but for its first earlier turn: what is known of it, in the memory of every row
    )
    digests: tuple[bytes, ...]
    layouts: tuple[Layout, ...]  # of its images
    target: Target | None = None  # None: the response is learned as it is
    kept: tuple[Bool[np.ndarray, "R"], ...] | None = None  # of a pair: tokens of each response that count; None: all


def encode(
    codec: Codec, example: Example, row: int, *, prompt_length: int, response_length: int, literal: bool = False
) -> Encoded:
    """Token ids of one row.

    Args:
        literal: as in `response_ids`.

    Raises:
        Unusable: with the reason why this row cannot be used with this model and these lengths.
    """
    if example.images and codec.reader is None:
        raise Unusable("no_vision", "the row has an image and the checkpoint has no image processor")
    layouts = tuple(_layout(codec, image) for image in example.images)
    prompt = prompt_ids(codec, example.question, layouts, example.history)
    if len(prompt) == 0:
        raise Unusable("empty_question", f"no tokens in {example.question[:60]!r}")
    if len(prompt) > prompt_length:
        raise Unusable("prompt_too_long", f"{len(prompt)} tokens, prompt_length is {prompt_length}")
    responses = tuple(response_ids(codec, text, literal) for text in example.responses)
    for ids in responses:
        if len(ids) > response_length:
            raise Unusable("response_too_long", f"{len(ids)} tokens with the end token, response_length is {response_length}")
    if len(responses) == 2 and np.array_equal(*responses):
        raise Unusable("identical_responses", "both responses have the same tokens")
    digests = tuple(map(images.digest, example.images))
    told = example._replace(images=(), question="", responses=("",) * len(responses), history=example.history[:1])
    return Encoded(row, prompt, _positions(codec, prompt, layouts), responses, told, digests, layouts)


def with_ids_of(codec: Codec, examples: Iterable[Example]) -> Codec:
    """The same codec with the ids of these rows' texts at hand, for `encode`: answers, and prompts without a picture. Placeholders of
    a picture are known when it was opened."""
    requests: list[Request] = []
    for example in examples:
        requests += [_answer(text) for text in example.responses]
        if not example.images:
            with contextlib.suppress(Unusable):  # `encode` says why
                requests.append(_prompt(codec, example.question, (), example.history))
    return codec.with_ids_of(requests)


def prompt_ids(codec: Codec, question: str, layouts: Sequence[Layout], history: Sequence[Turn] = ()) -> Ids:
    """Ids of the whole prompt, with one placeholder for each feature of its images.

    Args:
        history: the turns before the question.

    Raises:
        Unusable: a turn is no text, or cannot be told from what the template writes.
    """
    pieces, adds_special_tokens = _prompt(codec, question, layouts, history)
    ids = codec.ids(pieces, adds_special_tokens)
    last, names = pieces[-1], codec.tokenizer
    has_eos = names.eos_token and not last.written and last.text.rstrip().endswith(names.eos_token)
    if len(ids) and ids[-1] == names.eos_token_id and not has_eos:
        ids = ids[:-1]  # a tokenizer that ends every text with eos would have the model answer after the end
    if codec.words:
        template = codec.ids(tuple(piece for piece in pieces if not piece.written), False)
        if np.isin(ids, list(codec.words)).sum() != np.isin(template, list(codec.words)).sum():
            raise Unusable("special_token_in_text", f"the question contains a word that ends turns: {question[:80]!r}")
    if codec.image_token_id is None:
        return ids
    is_image, placeholders = ids == codec.image_token_id, [layout.placeholders for layout in layouts]
    if layouts and not layouts[0].text and np.sum(is_image) == len(layouts):
        times = np.ones(len(ids), np.int64)
        times[is_image] = placeholders
        ids = np.repeat(ids, times)
    found, wanted = int(np.sum(ids == codec.image_token_id)), sum(placeholders)
    if found != wanted:
        raise Unusable(
            "special_token_in_text", f"the prompt has {found} image placeholders, expected {wanted}: {question[:80]!r}"
        )
    return ids


def _prompt(codec: Codec, question: str, layouts: Sequence[Layout], history: Sequence[Turn]) -> Request:
    """The pieces of a prompt, and whether the tokenizer adds its own tokens to them."""
    pieces = codec.prompt(question, len(layouts), history)
    if codec.reader is not None:
        pieces = _expanded(codec.reader, pieces, layouts)
    # Some templates write the beginning-of-sequence token themselves; two of them would be a prompt no checkpoint has seen.
    bos = codec.tokenizer.bos_token
    return pieces, not (bos and not pieces[0].written and pieces[0].text.startswith(bos))


def _expanded(reader: Reader, pieces: Sequence[Piece], layouts: Sequence[Layout]) -> tuple[Piece, ...]:
    """The pieces with the text of each image where the template wrote its mark."""
    marks = sum(piece.text.count(reader.written) for piece in pieces if not piece.written)
    if marks != len(layouts):
        raise Unusable("lost_image", f"the chat template writes {marks} images where there are {len(layouts)}")
    texts = iter([layout.text or reader.written for layout in layouts])

    def expanded(piece: Piece) -> Piece:
        before, *after = piece.text.split(reader.written)
        return piece._replace(text=before + "".join(next(texts) + words for words in after))

    return tuple(piece if piece.written else expanded(piece) for piece in pieces)


def prompt_suffix(codec: Codec) -> tuple[int, ...]:
    """The tokens that end every prompt: the opening of the assistant's turn.

    Raises:
        UserError: the template ends prompts with the question itself.
    """
    backwards = (prompt_ids(codec, question, ())[::-1].tolist() for question in ("which a", "or 1?"))
    shared = list(itertools.takewhile(lambda both: both[0] == both[1], zip(*backwards)))
    if not shared:
        raise UserError(
            "this checkpoint's chat template ends with the question: there is no token for adapters to be activated at"
        )
    return tuple(one for one, _ in reversed(shared))


def response_ids(codec: Codec, text: str, literal: bool = False) -> Ids:
    """Ids of a response and of what ends it.

    Args:
        literal: "</s>" in the text is four characters that a policy spelled. Otherwise it is a special token that a data set left
            in a response, and nothing to learn from. Added tokens that are not special are characters either way.

    Raises:
        Unusable: no tokens, or a special one.
    """
    if not literal and not codec.literal.special.isdisjoint(codec.literal.found(text)):
        raise Unusable("special_token_in_text", f"the response contains a special token: {text[:80]!r}")
    ids = text_ids(codec, text)
    if len(ids) == 0:
        raise Unusable("empty_response", f"no tokens in {text[:60]!r}")
    if not codec.words.isdisjoint(ids.tolist()):
        raise Unusable("special_token_in_text", f"the response contains a word that ends answers: {text[:80]!r}")
    return np.append(ids, np.int32(codec.eos_id))


def text_ids(codec: Codec, text: str) -> Ids:
    """Ids of what somebody wrote, with nothing before or after it.

    Raises:
        Unusable: it is no text.
    """
    return codec.ids(*_answer(text))


def _answer(text: str) -> Request:
    return (Piece(text, True),), False


def _layout(codec: Codec, image: bytes) -> Layout:
    # Where every picture becomes the same tile, none need be opened to know how it is cut.
    return pictures.layout(codec.reader, (0, 0) if codec.reader.one_size else images.upright_size(image))


def _positions(codec: Codec, prompt: Ids, layouts: Sequence[Layout]) -> Int[np.ndarray, "P *axes"]:
    if codec.reader is not None and codec.reader.side == 0:
        return pictures.mrope(prompt == codec.image_token_id, layouts, codec.reader.merge)
    return np.arange(len(prompt), dtype=np.int32)
