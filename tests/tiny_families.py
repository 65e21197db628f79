"""A small checkpoint of every family, prompts with one, no and two pictures for it, and the same for its torch model."""

import io

import jax
import numpy as np
import tiny_hf
import torch
import transformers
from PIL import Image
from tiny_data import settings

from srlhfv_jax.data import loader
from srlhfv_jax.data.rows import Example
from srlhfv_jax.models import vlm

R = 32
VARIANTS = {
    "llava": tiny_hf.llava_config(),
    "llava_next, llama": tiny_hf.llava_next_config(),
    "llava_next, mistral": tiny_hf.llava_next_config("mistral"),
    "qwen2_vl": tiny_hf.qwen2_vl_config(),
    "qwen2_vl, tied": tiny_hf.qwen2_vl_config(tied=True),
    "qwen2_5_vl": tiny_hf.qwen2_5_vl_config(),
    "smolvlm": tiny_hf.smolvlm_config(),
    "idefics3": tiny_hf.smolvlm_config(transformers.Idefics3Config),
    "gemma3": tiny_hf.gemma3_config(),
    "mistral": tiny_hf.mistral_config(),
    "mistral with a window": tiny_hf.mistral_config(sliding_window=6),
    "qwen2": tiny_hf.qwen2_config(),
    "gemma3_text": tiny_hf.gemma3_text_config(),
}
SIZES = (((40, 17),), (), ((13, 33), (26, 21)))  # width and height of the pictures of each row
QUESTIONS = ("w7 w9 w8", "w11 w12", "w20 <image> w21 w22 <image> w23")


def picture(size: tuple[int, int]) -> Image.Image:
    """A gradient with an edge: turned, mirrored or shifted it would be another picture."""
    rng = np.random.default_rng(size)
    smooth = np.linspace(0, 255, size[0] * size[1]).reshape(size[1], size[0], 1)
    return Image.fromarray(((smooth + rng.uniform(0, 200, (size[1], size[0], 3))) % 256).astype(np.uint8))


def examples(with_images: bool) -> list[Example]:
    if not with_images:
        return [Example((), question.replace("<image>", "w30"), ()) for question in QUESTIONS]
    return [Example(tuple(map(png, sizes)), question, ()) for question, sizes in zip(QUESTIONS, SIZES)]


def png(size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    picture(size).save(buffer, "PNG")
    return buffer.getvalue()


def batch(pretrained):
    """The prompts as the stages read them, a little longer than the longest."""
    data = settings(prompt_length=80, response_length=R, batch_size=3, workers=0)
    prepared = loader.fit("prompts", examples(pretrained.config.vision is not None), pretrained.processor, data)
    assert len(prepared.rows) == 3
    return next(iter(loader.all_batches(prepared, "prompts", None, data, batch_size=3)))[0]


def theirs(config, pretrained, prompts) -> dict:
    """Keyword arguments of the torch model."""
    inputs = {"input_ids": torch.tensor(prompts.tokens_BP).long(), "attention_mask": torch.tensor(prompts.mask_BP).long()}
    if pretrained.config.vision is None:
        return inputs
    images = [[picture(size) for size in sizes] for sizes in SIZES if sizes]
    if config.model_type not in ("smolvlm", "idefics3"):
        images = sum(images, [])
    made = pretrained.processor.image_processor(images=images, return_tensors="pt")
    inputs |= {"pixel_values": made["pixel_values"]}
    if config.model_type == "llava_next":
        inputs |= {"image_sizes": made["image_sizes"]}
    if config.model_type in ("qwen2_vl", "qwen2_5_vl"):
        kinds = torch.tensor(prompts.tokens_BP == tiny_hf.IMAGE_TOKEN).int()
        inputs |= {"image_grid_thw": made["image_grid_thw"], "mm_token_type_ids": kinds}
    if config.model_type in ("smolvlm", "idefics3"):
        inputs |= {"pixel_attention_mask": made["pixel_attention_mask"]}
    if config.model_type == "gemma3":
        inputs |= {"token_type_ids": torch.tensor(prompts.tokens_BP == tiny_hf.IMAGE_TOKEN).int()}
    return inputs


def logits_of(config, prompts):
    """Jitted: parameters -> logits at every position of these prompts."""

    @jax.jit
    def logits(params):
        features = None if prompts.images is None else vlm.encode_images(config, params, prompts.images)
        hidden = vlm.apply(config, params, prompts.tokens_BP, prompts.positions_BP, prompts.mask_BP, features)[0]
        return vlm.logits(config, params, hidden)

    return logits
