"""Rotary frequencies equal those of `transformers` for every scaling variant, at the sizes of real checkpoints."""

import numpy as np
import pytest
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from srlhfv_jax.hf.config import from_json
from srlhfv_jax.models import attention

KINDS = {
    "llama 3.1": dict(
        rope_type="llama3",
        rope_theta=5e5,
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    ),
    "linear": dict(rope_type="linear", rope_theta=1e4, factor=4.0),
    "dynamic": dict(rope_type="dynamic", rope_theta=1e4, factor=2.0),
    "yarn": dict(rope_type="yarn", rope_theta=1e4, factor=16.0, original_max_position_embeddings=4096),
    "yarn, own constants": dict(
        rope_type="yarn",
        rope_theta=1e6,
        factor=4.0,
        original_max_position_embeddings=2048,
        beta_fast=20.0,
        beta_slow=2.0,
        attention_factor=1.3,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_frequencies_equal_those_of_transformers(kind):
    theirs = transformers.LlamaConfig(max_position_embeddings=16384, rope_parameters=KINDS[kind])
    expected, factor = ROPE_INIT_FUNCTIONS[KINDS[kind]["rope_type"]](theirs, "cpu")
    ours = from_json(theirs.to_dict(), "here", dtype="float32", remat="none", scan_unroll=1).text
    frequency_h, our_factor = attention.frequencies(ours.rope, ours.head_dim)
    np.testing.assert_allclose(frequency_h, expected.numpy(), rtol=2e-6)
    assert our_factor == pytest.approx(factor, rel=1e-6)
