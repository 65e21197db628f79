"""How a checkpoint wants to be spoken to: its tokenizer, placeholder, image processor and chat template, behind one `Codec`.

The prompt text is what the checkpoint's own chat template renders, up to and including the opening of the assistant's turn. The
response follows it directly and ends with the end-of-sequence token. No system prompt is added.
"""

from typing import Any, NamedTuple

from srlhfv_jax.errors import UserError


class Codec(NamedTuple):
    """What data needs to know about a checkpoint's processor (vision-language) or tokenizer (text-only)."""

    tokenizer: Any
    image_processor: Any | None  # None: text-only
    image_token: str | None
    image_token_id: int | None
    image_tokens: int  # N: placeholders per image, one per feature of the vision tower; 0 for text-only
    pad_id: int
    eos_id: int
    template_owner: Any | None  # the processor or tokenizer that renders the chat template; None: the fallback text


def codec(processor: Any) -> Codec:
    """Describe a Hugging Face processor or tokenizer.

    Raises:
        UserError: something that batches need is missing in it.
    """
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

    if isinstance(processor, ProcessorMixin):
        tokenizer, image_processor = processor.tokenizer, processor.image_processor
        image_token, image_tokens = processor.image_token, _image_tokens(processor)
        image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        if image_token_id is None or image_token_id == tokenizer.unk_token_id:
            raise UserError(f"the tokenizer does not know the image placeholder {image_token!r} of its processor")
        owner = next((part for part in (processor, tokenizer) if part.chat_template), None)
    elif isinstance(processor, PreTrainedTokenizerBase):
        tokenizer, image_processor, image_token, image_token_id, image_tokens = processor, None, None, None, 0
        owner = tokenizer if tokenizer.chat_template else None
    else:
        raise UserError(f"expected a Hugging Face processor or tokenizer, got {type(processor).__name__}")
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no end-of-sequence token: set eos_token in tokenizer_config.json")
    # Padding is never read (masks are carried), so any id will do where a tokenizer has none of its own.
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return Codec(tokenizer, image_processor, image_token, image_token_id, image_tokens, pad_id, tokenizer.eos_token_id, owner)


def _image_tokens(processor: Any) -> int:
    """N, as LlavaProcessor counts it: patches of the cropped image, plus the class token unless the features drop it."""
    if processor.patch_size is None or processor.vision_feature_select_strategy is None:
        raise UserError(
            "the processor does not say how many placeholders an image needs: set patch_size and "
            "vision_feature_select_strategy in processor_config.json, as newer exports of the checkpoint do"
        )
    crop = processor.image_processor.crop_size
    patches = (crop["height"] // processor.patch_size) * (crop["width"] // processor.patch_size)
    dropped = 1 if processor.vision_feature_select_strategy == "default" else 0
    return patches + processor.num_additional_image_tokens - dropped


def prompt_text(codec: Codec, question: str, has_image: bool) -> str:
    """The rendered prompt with ONE placeholder where an image is; `tokens` expands it."""
    if codec.template_owner is None:
        # LLaVA-1.5's format, which also serves a tokenizer without a template of its own.
        return f"USER: {codec.image_token}\n{question} ASSISTANT:" if has_image else f"USER: {question} ASSISTANT:"
    content = [{"type": "image"}] if has_image else []
    content.append({"type": "text", "text": question})
    # Templates of text-only checkpoints expect a string, those of processors a list of parts.
    message = {"role": "user", "content": question if codec.image_processor is None else content}
    return codec.template_owner.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
