"""From an `Example` to token ids: the prompt with its placeholders expanded, each response with its end-of-sequence token.

Every hard check on tokens happens here, before step 0: the number of placeholders equals the number of image features, nothing
is longer than its place, no response contains a special token. A row that fails is dropped for a named reason; nothing is ever
cut (a cut prompt can lose image placeholders, a cut response its end).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from srlhfv_jax.data import images
from srlhfv_jax.data.chat import Codec, prompt_text
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.rows import Example

Ids = Int[np.ndarray, "R"]


class Encoded(NamedTuple):
    """One row as token ids. The picture stays where it is; `digest` names its content."""

    row: int  # index of the example in its sequence
    prompt: Ids
    responses: tuple[Ids, ...]
    example: Example  # without its image
    digest: bytes | None  # None: no image


def encode(codec: Codec, example: Example, row: int, *, prompt_length: int, response_length: int) -> Encoded:
    """Token ids of one row.

    Raises:
        Unusable: with the reason why this row cannot be used with this model and these lengths.
    """
    has_image = example.image is not None
    if has_image and codec.image_processor is None:
        raise Unusable("no_vision", "the row has an image and the checkpoint has no image processor")
    prompt = prompt_ids(codec, _without_placeholder(codec, example.question), has_image)
    if len(prompt) > prompt_length:
        raise Unusable("prompt_too_long", f"{len(prompt)} tokens, prompt_length is {prompt_length}")
    responses = tuple(response_ids(codec, text) for text in example.responses)
    for ids in responses:
        if len(ids) > response_length:
            raise Unusable("response_too_long", f"{len(ids)} tokens with the end token, response_length is {response_length}")
    if len(responses) == 2 and np.array_equal(*responses):
        raise Unusable("identical_responses", "both responses have the same tokens")
    return Encoded(row, prompt, responses, example._replace(image=None), images.digest(example.image) if has_image else None)


def prompt_ids(codec: Codec, question: str, has_image: bool) -> Ids:
    """Ids of the whole prompt, with one placeholder per image feature."""
    text = prompt_text(codec, question, has_image)
    bos = codec.tokenizer.bos_token
    # Some templates write the beginning-of-sequence token themselves; two of them would be a prompt no checkpoint has seen.
    ids = codec.tokenizer(text, add_special_tokens=not (bos and text.startswith(bos)))["input_ids"]
    if ids and ids[-1] == codec.eos_id and not text.rstrip().endswith(codec.tokenizer.eos_token):
        ids = ids[:-1]  # a tokenizer that ends every text with eos would have the model answer after the end
    ids = np.asarray(ids, np.int32)
    if codec.image_token_id is None:
        return ids
    found = int(np.sum(ids == codec.image_token_id))
    if found != has_image:
        raise Unusable(
            "special_token_in_text", f"the prompt has {found} image placeholders for {int(has_image)} images: {text[:80]!r}"
        )
    return np.repeat(ids, np.where(ids == codec.image_token_id, codec.image_tokens, 1))


def response_ids(codec: Codec, text: str) -> Ids:
    """Ids of a response and its end-of-sequence token."""
    ids = codec.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise Unusable("empty_response", f"no tokens in {text[:60]!r}")
    if codec.eos_id in ids or (codec.image_token_id is not None and codec.image_token_id in ids):
        raise Unusable("special_token_in_text", f"the response contains a special token: {text[:80]!r}")
    return np.asarray([*ids, codec.eos_id], np.int32)


def _without_placeholder(codec: Codec, question: str) -> str:
    """Data sets written for LLaVA carry "<image>" at the ends of the question; the chat template puts it there anyway."""
    if codec.image_token is None:
        return question
    return question.removeprefix(codec.image_token).removesuffix(codec.image_token).strip()
