"""How a checkpoint wants to be spoken to: its tokenizer, placeholder, pictures and chat template, behind one `Codec`.

The prompt text is what the checkpoint's own chat template renders, up to and including the opening of the assistant's turn. The
response follows it directly and ends with the end-of-sequence token. No system prompt is added.
"""

from typing import Any, NamedTuple

from srlhfv_jax.data import pictures
from srlhfv_jax.errors import UserError


class Codec(NamedTuple):
    """What data needs to know about a checkpoint's processor (vision-language) or tokenizer (text-only)."""

    tokenizer: Any
    reader: pictures.Reader | None  # None: text-only
    image_token_id: int | None
    pad_id: int
    eos_id: int
    template_owner: Any | None  # the processor or tokenizer that renders the chat template; None: the fallback text


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
    return Codec(tokenizer, reader, image_token_id, pad_id, tokenizer.eos_token_id, owner)


def prompt_text(codec: Codec, question: str, has_image: bool) -> str:
    """The rendered prompt with ONE placeholder where an image is; `tokens` expands it."""
    if codec.template_owner is None:
        # LLaVA-1.5's format, which also serves a tokenizer without a template of its own.
        return f"USER: {codec.reader.written}\n{question} ASSISTANT:" if has_image else f"USER: {question} ASSISTANT:"
    content = [{"type": "image"}] if has_image else []
    content.append({"type": "text", "text": question})
    # Templates of text-only checkpoints expect a string, those of processors a list of parts.
    message = {"role": "user", "content": question if codec.reader is None else content}
    return codec.template_owner.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
