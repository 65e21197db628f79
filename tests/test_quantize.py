"""Kernels in eight bits: as near as rounding allows, and the same model as one whose kernels are those rounded numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_vlm import CONFIG, backbone, prompts

from srlhfv_jax.config import LoraConfig, MeshConfig
from srlhfv_jax.models import lora, quantize, vlm
from srlhfv_jax.parallel import rules
from srlhfv_jax.parallel.mesh import make_mesh

LORA = LoraConfig(rank=2, alpha=4.5, targets=("text/layers/.*_proj",), int8=True, activated=False)


def kernels(tree) -> dict:
    return {path.removesuffix("/kernel"): leaf for path, leaf in rules.leaves(tree) if quantize.KERNELS.search(path[:-7])}


def scales(path: str, scale_LO):
    """Broadcastable against the kernel [L, out, in] or [L, in, out]."""
    return scale_LO[:, None, :] if path.endswith(("o_proj", "down_proj")) else scale_LO[:, :, None]


def rounded(params):
    """The model that eight bits describe, in float32."""
    eight = quantize.int8(params)

    def visit(tree, path):
        if "kernel_scale" in tree:
            rest = {name: leaf for name, leaf in tree.items() if name != "kernel_scale"}
            return rest | {"kernel": tree["kernel"].astype(jnp.float32) * scales(path, tree["kernel_scale"])}
        return {name: visit(part, f"{path}/{name}") if isinstance(part, dict) else part for name, part in tree.items()}

    return visit(eight, "")


def logits(params, config=CONFIG):
    batch = prompts()
    features = vlm.encode_images(config, params, batch.images)
    hidden, _ = vlm.apply(config, params, batch.tokens_BP, batch.positions_BP, batch.mask_BP, features)
    return vlm.logits(config, params, hidden)


def test_every_weight_is_within_half_a_step_and_the_largest_of_an_output_is_127():
    params = backbone()
    before, after = kernels(params), kernels(quantize.int8(params))
    assert len(before) == 7 and after.keys() == before.keys()
    for path, kernel in before.items():
        eight, scale = after[path], quantize.int8(params)["text"]["layers"]
        for part in path.split("/")[2:]:
            scale = scale[part]
        step = scales(path, scale["kernel_scale"])
        assert eight.dtype == jnp.int8, path
        assert np.all(np.abs(eight * step - kernel) <= step * 0.5001), path
        axis = 1 if path.endswith(("o_proj", "down_proj")) else 2
        np.testing.assert_array_equal(np.abs(np.asarray(eight, np.int32)).max(axis), 127)


def test_an_output_of_zeros_stays_zero():
    params = {"text": {"layers": {"q_proj": {"kernel": jnp.zeros((1, 3, 5))}}}}
    found = quantize.int8(params)["text"]["layers"]["q_proj"]
    assert not found["kernel"].any() and np.isfinite(found["kernel_scale"]).all()


def test_nothing_but_the_decoder_changes():
    params = backbone()
    eight = quantize.int8(params)
    assert eight["text"]["embed"]["embedding"] is params["text"]["embed"]["embedding"]
    assert all(a is b for a, b in zip(jax.tree.leaves(eight["vision"]), jax.tree.leaves(params["vision"]), strict=True))


def test_the_model_is_that_of_the_rounded_kernels_and_not_far_from_the_first():
    params = backbone()
    eight = logits(quantize.int8(params))
    np.testing.assert_allclose(eight, logits(rounded(params)), atol=2e-4)
    error, spread = np.abs(eight - logits(params)).mean(), np.std(logits(params))
    assert 0 < error < 0.05 * spread


def test_an_adapter_over_eight_bits_has_the_gradient_of_one_over_the_rounded_kernels():
    params = backbone()
    adapter = lora.init(LORA, params, jax.random.key(0))
    adapter = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), adapter)

    def grad(base):
        return jax.grad(lambda own: jnp.sum(jnp.sin(logits(lora.overlay(base, own)))))(adapter)

    for (path, one), (_, other) in zip(
        rules.leaves(grad(quantize.int8(params))), rules.leaves(grad(rounded(params))), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=2e-3, rtol=2e-3, err_msg=path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_split_over_eight_devices_it_gives_the_same(dtype):
    mesh, config = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2)), dataclasses.replace(CONFIG, dtype=dtype)
    eight = quantize.int8(backbone())
    expected = jax.jit(logits, static_argnums=1)(eight, config)
    placed = rules.place(eight, mesh)
    assert placed["text"]["layers"]["mlp"]["up_proj"]["kernel_scale"].sharding.spec == jax.sharding.PartitionSpec(None, "tensor")
    with jax.set_mesh(mesh):
        found = jax.jit(logits, static_argnums=1)(placed, config)
    np.testing.assert_allclose(found, expected, atol=1e-4 if dtype == "float32" else 0.02)  # a step of bfloat16 there


def test_released_kernels_are_gone_and_the_rest_is_not():
    params = backbone()
    eight = quantize.int8(params, release=True)
    assert all(leaf.is_deleted() for leaf in kernels(params).values())
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(eight))
