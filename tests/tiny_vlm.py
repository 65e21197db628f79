"""A tiny random LLaVA and batches for it, made without torch: left-padded prompts, rows with and without an image."""

import functools

import einops
import jax
import jax.numpy as jnp
import numpy as np

from srlhfv_jax.batches import Images, PromptBatch
from srlhfv_jax.models import score_heads, vlm
from srlhfv_jax.models.config import RopeConfig, TextConfig, VisionConfig, VLMConfig
from srlhfv_jax.rollout.generate import Vocabulary

PAD, EOS, IMAGE, VOCAB = 0, 2, 3, 29
VOCABULARY = Vocabulary(pad=PAD, eos=(EOS,), never=(PAD, 1, IMAGE))
CONFIG = VLMConfig(
    family="llava",
    text=TextConfig(
        vocab=VOCAB,
        width=16,
        mlp=24,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=4,
        norm_eps=1e-5,
        rope=RopeConfig(theta=10000.0),
        tied_head=False,
        max_positions=128,
    ),
    vision=VisionConfig(image_size=8, patch=4, width=12, mlp=20, layers=2, heads=2, norm_eps=1e-5, activation="quick_gelu"),
    image_token=IMAGE,
)
N = CONFIG.vision.features


@functools.partial(jax.jit, static_argnums=1)
def backbone(seed: int = 0, config: VLMConfig = CONFIG):
    """Random parameters, larger than an initialisation, so that distributions are far from uniform."""
    leaves, structure = jax.tree.flatten(vlm.init(config, jax.random.key(seed)))
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    return structure.unflatten([leaf + 0.25 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys)])


def scorer(seed: int = 0, names: tuple[str, ...] = ("reward", "cost")):
    return {"backbone": backbone(seed), "heads": score_heads.init(CONFIG, names, jax.random.key(seed + 7))}


def prompts(rows: int = 6, length: int = 11, seed: int = 0, pad: int = 0) -> PromptBatch:
    """Left-padded prompts of different lengths; rows 2, 5, 8, ... have no image. `pad` adds that many columns on the left."""
    rng = np.random.default_rng(seed)
    tokens_BP, mask_BP = np.full((rows, length), PAD, np.int32), np.zeros((rows, length), bool)
    pixels = rng.normal(size=(rows, 3, 8, 8)).astype(np.float32)
    patches = einops.rearrange(pixels, "B C (Y y) (X x) -> B (Y X) (C y x)", y=4, x=4)
    for row in range(rows):
        words = rng.integers(4, VOCAB, 2 + row % 4).tolist()
        ids = words[:1] + ([] if row % 3 == 2 else [IMAGE] * N) + words[1:]
        tokens_BP[row, length - len(ids) :], mask_BP[row, length - len(ids) :] = ids, True
        if row % 3 == 2:
            patches[row] = 0
    tokens_BP = np.pad(tokens_BP, ((0, 0), (pad, 0)), constant_values=PAD)
    mask_BP = np.pad(mask_BP, ((0, 0), (pad, 0)))
    positions_BP = np.maximum(np.cumsum(mask_BP, axis=1) - 1, 0).astype(np.int32)
    images = Images(patches, None, None, None)
    return jax.tree.map(jnp.asarray, PromptBatch(tokens_BP, positions_BP, mask_BP, images, np.arange(rows, dtype=np.int32)))
