"""Fused attention is attention: the TPU kernel in Pallas's interpreter against XLA, for every mask, on one device and on eight."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_vlm as tiny
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from srlhfv_jax.batches import Images
from srlhfv_jax.config import MeshConfig
from srlhfv_jax.errors import UserError
from srlhfv_jax.models import attention, kernels, vision, vlm
from srlhfv_jax.models.config import VisionConfig
from srlhfv_jax.parallel.mesh import AXES, make_mesh

B, T, h = 4, 150, 12  # a width of heads and a length that fill no block


def padded(rows: int = B, length: int = T):
    """Rows [pads | real | pads] of fractional shares; the last is whole."""
    rng = np.random.default_rng(3)
    left, right = rng.integers(0, length // 3, (2, rows, 1))
    left[-1] = right[-1] = 0
    place = np.arange(length)[None]
    return jnp.asarray((place >= left) & (place < length - right))


def pictures(mask_BT):
    """Two runs of image tokens a row, at different places, one of them longer than a small block."""
    place = np.arange(mask_BT.shape[1])[None]
    shift = 3 * np.arange(mask_BT.shape[0])[:, None]
    inside = ((place >= 20 + shift) & (place < 31 + shift)) | ((place >= 60 + shift) & (place < 90 + shift))
    return attention.blocks(jnp.asarray(inside) & mask_BT)


def spans(mask_BT) -> dict:
    """(bias for XLA, span) of every mask that a model has."""
    block_BT = pictures(mask_BT)
    group_BT = jnp.cumsum((jnp.arange(mask_BT.shape[1]) % 37 == 0)[None] & mask_BT, axis=1, dtype=jnp.int32)
    masks = {
        "causal": (attention.causal(mask_BT), kernels.causal("interpret", mask_BT)),
        "window": (attention.causal(mask_BT, 9), kernels.causal("interpret", mask_BT, 9)),
        "whole images": (attention.causal(mask_BT, 0, block_BT), kernels.causal("interpret", mask_BT, 0, block_BT)),
        "both": (attention.causal(mask_BT, 13, block_BT), kernels.causal("interpret", mask_BT, 13, block_BT)),
        "groups": (group_BT[:, :, None] == group_BT[:, None, :], kernels.together("interpret", group_BT)),
    }
    return {name: (attention.bias(seen_BTT), span) for name, (seen_BTT, span) in masks.items()}


def arrays(heads: int, kv_heads: int, rows: int = B, length: int = T, dtype=jnp.float32):
    """q, k, v and a weight on the output."""
    keys = jax.random.split(jax.random.key(0), 4)
    counts = (heads, kv_heads, kv_heads, heads)
    return [(1.5 * jax.random.normal(key, (rows, n, length, h))).astype(dtype) for key, n in zip(keys, counts)]


def both(q, k, v, weight, sees, mask_BT, scale=None):
    """The output at real positions, and the gradients of a weighted sum of it."""

    @jax.jit
    def run(q, k, v):
        def total(q, k, v):
            out = kernels.attend(q, k, v, sees, scale)
            assert out.dtype == q.dtype and out.shape == q.shape
            real = jnp.where(mask_BT[:, None, -q.shape[2] :, None], out, 0).astype(jnp.float32)
            return jnp.sum(weight[:, :, -q.shape[2] :].astype(jnp.float32) * real), (real, out)

        (_, outs), gradients = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(q, k, v)
        return (outs[0], *gradients), outs[1]

    compared, out = run(q, k, v)
    assert all(np.all(np.isfinite(np.asarray(x, np.float32))) for x in (out, *compared))
    return compared


def check_equal(arguments, mask_BT, bias, span, tolerance, **how):
    ours, xla = (both(*arguments, sees, mask_BT, **how) for sees in (span, bias))
    for ours_of, xla_of in zip(ours, xla):
        ours_of, xla_of = (np.asarray(x, np.float32) for x in (ours_of, xla_of))
        assert np.max(np.abs(xla_of)) > 0.1
        np.testing.assert_allclose(ours_of, xla_of, atol=tolerance * max(1, np.max(np.abs(xla_of))), rtol=0)


MASKS = ("causal", "window", "whole images", "both", "groups")


@pytest.mark.parametrize("length", (T, 300))
def test_a_span_is_the_mask_of_real_queries(length):
    mask_BT = padded(length=length)
    for name, (bias, span) in spans(mask_BT).items():
        seen_BTT = kernels.visible(span) & mask_BT[:, :, None]
        np.testing.assert_array_equal(seen_BTT, (bias[:, 0, 0] == 0) & mask_BT[:, :, None], err_msg=name)
        assert np.all(np.diagonal(kernels.visible(span), axis1=1, axis2=2))  # nobody sees nothing


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("largest", (640, 128))
def test_the_kernel_equals_xla_forward_and_backward(name, largest, monkeypatch):
    """In one block, and in several of which some are never read."""
    monkeypatch.setattr(kernels, "LARGEST", largest)
    mask_BT = padded(length=300 if largest == 128 else T)
    check_equal(arguments := arrays(4, 2, length=mask_BT.shape[1]), mask_BT, *spans(mask_BT)[name], 5e-6, scale=0.31)
    assert len(arguments) == 4
