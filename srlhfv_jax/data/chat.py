"""How a checkpoint wants to be spoken to: its tokenizer, placeholder, pictures and chat template, behind one `Codec`.

The prompt text is what the checkpoint's own chat template renders, up to and including the opening of the assistant's turn. The
response follows it directly and ends with the end-of-sequence token. No system prompt is added.

Images come before the question, or where the question says "<image>", as far as the template keeps them there (LLaVA's moves
them to the front).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from srlhfv_jax.data import pictures
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.errors import UserError


MARK = "<image>"  # in a question: an image belongs here
REMEMBERED = 1 << 14  # texts: data sets repeat their questions, a policy repeats its answers


class Codec(NamedTuple):
    """What data needs to know about a checkpoint's processor (vision-language) or tokenizer (text-only). It remembers texts."""

    tokenizer: Any
    reader: pictures.Reader | None  # None: text-only
    image_token_id: int | None
    pad_id: int
    eos_id: int
    prompt_text: Callable[[str, int], str]  # of a question and its number of images: `_prompt_text` of this checkpoint
    ids: Callable[..., Int[np.ndarray, "T"]]  # of a text, with the tokenizer's own keyword arguments; not to be written to


def codec(processor: Any, max_pixels: int = 0) -> Codec:
    """Describe a Hugging Face processor, its parts, or a tokenizer alone; `max_pixels` as in DataConfig.

    Raises:
        UserError: something that batches need is missing in it.
    """
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

    if isinstance(processor, (ProcessorMixin, pictures.Bundle)):
        tokenizer, image_token = processor.tokenizer, processor.image_token
        reader = pictures.limited(pictures.reader(processor), max_pixels)
        image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        if image_token_id is None or image_token_id == tokenizer.unk_token_id:
            raise UserError(f"the tokenizer does not know the image placeholder {image_token!r} of its processor")
        owners = (tokenizer,) if isinstance(processor, pictures.Bundle) else (processor, tokenizer)
        owner = next((part for part in owners if part.chat_template), None)
    elif isinstance(processor, PreTrainedTokenizerBase):
        tokenizer, reader, image_token_id = processor, None, None
        owner = tokenizer if tokenizer.chat_template else None
    else:
        raise UserError(f"expected a Hugging Face processor or tokenizer, got {type(processor).__name__}")
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no end-of-sequence token: set eos_token in tokenizer_config.json")
    # Padding is never read (masks are carried), so any id will do where a tokenizer has none of its own.
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    prompt_text = functools.lru_cache(REMEMBERED)(functools.partial(_prompt_text, owner, reader))
    ids = functools.lru_cache(REMEMBERED)(functools.partial(_ids, tokenizer))
    return Codec(tokenizer, reader, image_token_id, pad_id, tokenizer.eos_token_id, prompt_text, ids)


def _prompt_text(template_owner: Any | None, reader: pictures.Reader | None, question: str, images: int) -> str:
    """The rendered prompt with ONE placeholder where an image is; `tokens` expands it.

    Args:
        template_owner: the processor or tokenizer that renders the chat template; None: the fallback text.

    Raises:
        Unusable: the question has another number of "<image>" than there are images.
    """
    if reader is None:  # templates of text-only checkpoints expect a string, those of processors a list of parts
        content, flat = question, question
    else:
        content = _parts(question, images)
        flat = "".join(part.get("text", f"{reader.written}\n") for part in content)
    if template_owner is None:
        return f"USER: {flat} ASSISTANT:"  # LLaVA-1.5's format, which also serves a tokenizer without a template of its own
    message = {"role": "user", "content": content}
    return template_owner.apply_chat_template([message], add_generation_prompt=True, tokenize=False)


def _ids(tokenizer: Any, text: str, **how: bool) -> Int[np.ndarray, "T"]:
    ids = np.asarray(tokenizer(text, **how)["input_ids"], np.int32)
    ids.setflags(write=False)  # whoever asks again gets the same array
    return ids


def _parts(question: str, images: int) -> list[dict[str, str]]:
    """Images and texts in the order of the question. Data sets written for LLaVA have the mark of their image at either end."""
    if images == 1 and question.count(MARK) == 1:
        question = question.removeprefix(MARK).removesuffix(MARK).strip()
    marks = question.count(MARK)
    if marks == 0:
        return [{"type": "image"}] * images + [{"type": "text", "text": question}]
    if marks != images:
        raise Unusable(
            "special_token_in_text", f"the question has {marks} times {MARK} and the row {images} images: {question[:80]!r}"
        )
    parts = []
    for index, text in enumerate(question.split(MARK)):
        parts += [{"type": "image"}] * (index > 0) + [{"type": "text", "text": text}] * bool(text)
    return parts
