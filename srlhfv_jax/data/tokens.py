"""From an `Example` to token ids: the prompt with its placeholders expanded, each response with its end-of-sequence token.

Every hard check on tokens happens here, before step 0: the number of placeholders equals the number of image features, nothing
is longer than its place, no response contains a special token. A row that fails is dropped for a named reason; nothing is ever
cut (a cut prompt can lose image placeholders, a cut response its end).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from srlhfv_jax.data import images, pictures
from srlhfv_jax.data.chat import Codec, prompt_text
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.pictures import Layout
from srlhfv_jax.data.rows import Example

Ids = Int[np.ndarray, "R"]


class Encoded(NamedTuple):
    """One row as token ids. The picture stays where it is; `digest` names its content."""

    row: int  # index of the example in its sequence
    prompt: Ids
    positions: Int[np.ndarray, "P *axes"]  # rotary positions of the prompt
    responses: tuple[Ids, ...]
    example: Example  # without its image
    digest: bytes | None  # None: no image
    layout: Layout | None  # of the image


def encode(codec: Codec, example: Example, row: int, *, prompt_length: int, response_length: int) -> Encoded:
    """Token ids of one row.

    Raises:
        Unusable: with the reason why this row cannot be used with this model and these lengths.
    """
    has_image = example.image is not None
    if has_image and codec.reader is None:
        raise Unusable("no_vision", "the row has an image and the checkpoint has no image processor")
    layout = None
    if has_image:  # where every picture becomes the same tile, none need be opened to know how it is cut
        size = (0, 0) if codec.reader.one_size else images.upright_size(example.image)
        layout = pictures.layout(codec.reader, size)
    prompt = prompt_ids(codec, _without_placeholder(codec, example.question), layout)
    if len(prompt) == 0:
        raise Unusable("empty_question", f"no tokens in {example.question[:60]!r}")
    if len(prompt) > prompt_length:
        raise Unusable("prompt_too_long", f"{len(prompt)} tokens, prompt_length is {prompt_length}")
    responses = tuple(response_ids(codec, text) for text in example.responses)
    for ids in responses:
        if len(ids) > response_length:
            raise Unusable("response_too_long", f"{len(ids)} tokens with the end token, response_length is {response_length}")
    if len(responses) == 2 and np.array_equal(*responses):
        raise Unusable("identical_responses", "both responses have the same tokens")
    digest = images.digest(example.image) if has_image else None
    return Encoded(row, prompt, _positions(codec, prompt, layout), responses, example._replace(image=None), digest, layout)


def prompt_ids(codec: Codec, question: str, layout: Layout | None) -> Ids:
    """Ids of the whole prompt, with one placeholder for each feature of its image, if it has one."""
    has_image = layout is not None
    text = prompt_text(codec, question, has_image)
    if codec.reader is not None and text.count(codec.reader.written) != has_image:
        found = text.count(codec.reader.written)
        raise Unusable("special_token_in_text", f"the prompt has {found} images where there are {int(has_image)}: {text[:80]!r}")
    if has_image and layout.text:
        text = text.replace(codec.reader.written, layout.text)
    bos = codec.tokenizer.bos_token
    # Some templates write the beginning-of-sequence token themselves; two of them would be a prompt no checkpoint has seen.
    ids = codec.tokenizer(text, add_special_tokens=not (bos and text.startswith(bos)))["input_ids"]
    if ids and ids[-1] == codec.eos_id and not text.rstrip().endswith(codec.tokenizer.eos_token):
        ids = ids[:-1]  # a tokenizer that ends every text with eos would have the model answer after the end
    ids = np.asarray(ids, np.int32)
    if codec.image_token_id is None:
        return ids
    if has_image and not layout.text:
        ids = np.repeat(ids, np.where(ids == codec.image_token_id, layout.placeholders, 1))
    found, wanted = int(np.sum(ids == codec.image_token_id)), layout.placeholders if has_image else 0
    if found != wanted:
        raise Unusable("special_token_in_text", f"the prompt has {found} image placeholders, expected {wanted}: {text[:80]!r}")
    return ids


def response_ids(codec: Codec, text: str) -> Ids:
    """Ids of a response and its end-of-sequence token."""
    ids = codec.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise Unusable("empty_response", f"no tokens in {text[:60]!r}")
    if codec.eos_id in ids or (codec.image_token_id is not None and codec.image_token_id in ids):
        raise Unusable("special_token_in_text", f"the response contains a special token: {text[:80]!r}")
    return np.asarray([*ids, codec.eos_id], np.int32)


def _positions(codec: Codec, prompt: Ids, layout: Layout | None) -> Int[np.ndarray, "P *axes"]:
    if codec.reader is not None and codec.reader.side == 0:
        return pictures.mrope(prompt == codec.image_token_id, [layout] if layout else [], codec.reader.merge)
    return np.arange(len(prompt), dtype=np.int32)


def _without_placeholder(codec: Codec, question: str) -> str:
    """Data sets written for LLaVA carry "<image>" at the ends of the question; the chat template puts it there anyway."""
    if codec.reader is None:
        return question
    return question.removeprefix(codec.reader.written).removesuffix(codec.reader.written).strip()
