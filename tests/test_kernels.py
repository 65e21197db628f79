"""Fused attention is attention: the TPU kernel in Pallas's interpreter against XLA, for every mask, on one device and on eight."""

import dataclasses
import functools
import re

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
        "two answers": (attention.causal(mask_BT, backwards=40), kernels.causal("interpret", mask_BT, backwards=40)),
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


MASKS = ("causal", "window", "whole images", "both", "two answers", "groups")


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
    check_equal(arrays(4, 2, length=mask_BT.shape[1]), mask_BT, *spans(mask_BT)[name], 5e-6, scale=0.31)


@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (4, 1)])
def test_query_heads_share_keys_as_in_xla(heads, kv_heads):
    mask_BT = padded()
    check_equal(arrays(heads, kv_heads), mask_BT, *spans(mask_BT)["causal"], 5e-6)


def test_bfloat16_is_as_near_to_float32_as_xla_is():
    """Twice XLA's own error at most: the kernel keeps the weights in float32, where XLA rounds them."""
    mask_BT = padded()
    bias, span = spans(mask_BT)["both"]
    halves = arrays(4, 2, dtype=jnp.bfloat16)
    exact = both(*(x.astype(jnp.float32) for x in halves), bias, mask_BT)
    for exact_of, ours, xla in zip(exact, both(*halves, span, mask_BT), both(*halves, bias, mask_BT)):
        error, allowed = (np.max(np.abs(np.asarray(x, np.float32) - exact_of)) for x in (ours, xla))
        assert 0 < error < 2 * allowed < 0.02 * np.max(np.abs(exact_of))


def test_the_last_queries_alone_see_what_they_see_among_all():
    mask_BT = padded()
    for asked in (130, 40):  # by the kernel, and too few for it
        q, k, v, weight = arrays(4, 2)
        check_equal((q[:, :, -asked:], k, v, weight), mask_BT, *spans(mask_BT)["both"], 5e-6)


@pytest.mark.parametrize("asked", (130, 40))
def test_queries_at_any_positions_see_what_they_see_among_all(asked):
    """By the kernel, and too few for it."""
    mask_BT = padded()
    read_BQ = jnp.asarray(np.random.default_rng(5).integers(0, T, (B, asked)), jnp.int32)
    q, k, v, _ = arrays(4, 2)

    def at(x_BHTh):
        return attention.at(x_BHTh.swapaxes(1, 2), read_BQ).swapaxes(1, 2)

    for name, (_, span) in spans(mask_BT).items():
        some, every = kernels.attend(at(q), k, v, span, read=read_BQ), kernels.attend(q, k, v, span)
        real = attention.at(mask_BT, read_BQ)[:, None, :, None]
        np.testing.assert_allclose(jnp.where(real, some, 0), jnp.where(real, at(every), 0), atol=5e-6, err_msg=name)


@pytest.mark.parametrize(("heads", "kv_heads", "rows"), [(4, 2, 4), (4, 1, 2), (3, 3, 3)])
def test_eight_devices_equal_one(heads, kv_heads, rows, eight_devices):
    """Also where the mesh divides neither the key-value heads, nor the query heads, nor the rows."""
    mask_BT = padded(rows)
    bias, span = spans(mask_BT)["both"]
    with jax.set_mesh(eight_devices):
        check_equal(arrays(heads, kv_heads, rows), mask_BT, bias, span, 5e-6)


def test_more_tensor_shards_than_key_heads_repeat_them():
    mask_BT = padded(2)
    with jax.set_mesh(make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))):
        check_equal(arrays(8, 2, 2), mask_BT, *spans(mask_BT)["causal"], 5e-6)


def test_rows_of_nothing_but_padding_are_finite_and_move_nothing():
    q, k, v, weight = arrays(4, 2)
    mask_BT = padded().at[1].set(False)
    _, d_q, d_k, d_v = both(q, k, v, weight, spans(mask_BT)["both"][1], mask_BT)
    for gradient in (d_q, d_k, d_v):
        assert not np.any(gradient[1]) and np.any(gradient[0])


def model(name: str):
    """(config, image batch): one like LLaVA; one whose layers differ in what they see, as Gemma 3's; one of Qwen2.5-VL's towers."""
    if name == "llava":
        return tiny.CONFIG, tiny.prompts(rows=4, length=16)
    text = dataclasses.replace(tiny.CONFIG.text, layers=3, window=5, local_layers=(0, 2), sees_whole_images=True, query_scale=0.3)
    gemma = dataclasses.replace(tiny.CONFIG, text=text, scan_unroll=1)
    return gemma, tiny.prompts(rows=4, length=16)


def logits_of(config, prompts, params, kernel: str):
    run = dataclasses.replace(config, attention=kernel)
    features = jax.lax.stop_gradient(vlm.encode_images(run, params, prompts.images))  # towers are frozen
    hidden = vlm.apply(run, params, prompts.tokens_BP, prompts.positions_BP, prompts.mask_BP, features, read=12)[0]
    return jnp.where(prompts.mask_BP[:, -12:, None], vlm.logits(run, params, hidden), 0)


@pytest.mark.parametrize("name", ("llava", "gemma"))
def test_a_whole_model_gives_the_same_logits_and_gradients(name, eight_devices):
    """Layers scanned, recomputed in the backward pass."""
    config, prompts = model(name)
    config = dataclasses.replace(config, scan_unroll=1, remat="layer")
    params, found = tiny.backbone(config=config), {}

    def loss(params, kernel: str):
        logits = logits_of(config, prompts, params, kernel)
        return jnp.mean(jax.nn.log_softmax(logits)[..., 5]), logits

    with jax.set_mesh(eight_devices):
        for kernel in ("xla", "interpret"):
            (_, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)(params, kernel)
            found[kernel] = (logits, *jax.tree.leaves(gradient))
    for ours, xla in zip(found["interpret"], found["xla"]):
        np.testing.assert_allclose(ours, xla, atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize("name", ("llava", "gemma"))
def test_an_unrolled_model_gives_the_same_logits(name):
    """Its last layer asks for the last positions alone."""
    config, prompts = model(name)
    config = dataclasses.replace(config, scan_unroll=1 << 30)
    params = tiny.backbone(config=config)
    ours, xla = (jax.jit(lambda p, k=k: logits_of(config, prompts, p, k))(params) for k in ("interpret", "xla"))
    np.testing.assert_allclose(ours, xla, atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize("name", ("causal", "window", "both", "groups"))
def test_what_cudnn_is_asked_for_is_the_same_attention(name, monkeypatch):
    """Layout, mask and even lengths, with XLA in cuDNN's place; the diagonal is named wherever nobody looks past it."""
    original, asked = jax.nn.dot_product_attention, []

    def stand_in(*arrays, implementation, is_causal, **how):
        assert implementation == "cudnn" and all(x.shape[1] % 2 == 0 for x in arrays)
        asked.append(is_causal)
        return original(*arrays, implementation="xla", is_causal=is_causal, **how)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    mask_BT = padded(length=151)
    bias, span = spans(mask_BT)[name]
    span = dataclasses.replace(span, kernel="cudnn")
    check_equal(arrays(4, 2, length=151), mask_BT, bias, span, 5e-6)
    assert set(asked) == {name in ("causal", "window")}
    q, k, v, weight = arrays(4, 2, length=151)
    asked.clear()
    check_equal((q[:, :, -131:], k, v, weight), mask_BT, bias, span, 5e-6)
    assert set(asked) == {False}


@pytest.mark.parametrize("unroll", (1, 0))
def test_no_attention_is_computed_twice_where_products_are_kept(unroll, eight_devices):
    """Calls of the kernel in a gradient: forward, and backward for the queries and for the keys; with `layer` forward again."""
    config, prompts = model("llava")
    params, found = tiny.backbone(config=config), {}

    def loss(params, run):
        return jnp.sum(logits_of(run, prompts, params, "interpret"))

    with jax.set_mesh(eight_devices):
        for remat in ("none", "dots", "layer"):
            run = dataclasses.replace(config, scan_unroll=unroll, remat=remat)
            found[remat] = str(jax.make_jaxpr(jax.grad(functools.partial(loss, run=run)))(params)).count("pallas_call[")
    assert found["none"] == found["dots"] < found["layer"]


def test_prefill_by_the_kernel_and_decode_by_xla_fill_the_same_cache():
    config, prompts = model("gemma")
    params, found = tiny.backbone(config=config), {}
    for kernel in ("xla", "interpret"):
        run = dataclasses.replace(config, attention=kernel)
        features = jax.jit(lambda images, run=run: vlm.encode_images(run, params, images))(prompts.images)
        cache = vlm.init_cache(run, 4, 18, jnp.float32)
        seen = (prompts.tokens_BP, prompts.positions_BP, prompts.mask_BP, features)
        _, cache = jax.jit(lambda *x, run=run: vlm.apply(run, params, *x))(*seen, cache)
        step = (jnp.full((4, 1), 7), jnp.full((4, 1), 16), jnp.ones((4, 1), bool))
        hidden, cache = jax.jit(lambda *x, run=run: vlm.apply(run, params, *x))(*step, None, cache)
        found[kernel] = (hidden, *(jnp.where(cache.mask_BT[None, :, None, :, None], x, 0) for x in cache.kv))
    for ours, xla in zip(found["interpret"], found["xla"]):
        np.testing.assert_allclose(ours, xla, atol=2e-5, rtol=2e-4)


def test_towers_that_see_pictures_and_windows_give_the_same_features():
    tower = VisionConfig(0, 2, 12, 20, 3, 3, 1e-5, "silu", kind="qwen2_5", feature_layer=-1, merge=2, window=4, full_layers=(1,))
    config = dataclasses.replace(tiny.CONFIG, vision=tower, scan_unroll=1)
    params = vlm.init(config, jax.random.key(0))["vision"]
    rng = np.random.default_rng(0)
    grid_N2 = np.stack(np.meshgrid(np.arange(8), np.arange(8), indexing="ij"), axis=-1).reshape(64, 2)
    grid_BN2 = np.stack([grid_N2, np.concatenate([grid_N2[:32], grid_N2[:32]])]).astype(np.int32)
    picture_BN = np.stack([np.ones(64), np.repeat([1, 2], 32)]).astype(np.int32)
    picture_BN[1, 56:] = 0
    images = Images(rng.normal(size=(2, 64, 12)).astype(np.float32), None, grid_BN2, picture_BN)
    ours, xla = (
        jax.jit(lambda images, run=dataclasses.replace(config, attention=kernel): vision.encode(run, params, images))(images)
        for kernel in ("interpret", "xla")
    )
    real_BN1 = picture_BN[:, :, None] > 0
    np.testing.assert_allclose(np.where(real_BN1, ours, 0), np.where(real_BN1, xla, 0), atol=2e-5, rtol=2e-4)


def on(platform: str, kind: str):
    device = AbstractDevice(device_kind=kind, num_cores=1, platform=platform)
    return AbstractMesh((1, 4, 2), AXES, axis_types=(AxisType.Auto,) * 3, abstract_device=device)


@pytest.mark.parametrize(
    ("platform", "kind", "dtype", "head_dim", "kernel"),
    [
        ("tpu", "TPU v5 lite", "bfloat16", 128, "splash"),
        ("tpu", "TPU v6 lite", "float32", 72, "splash"),
        ("gpu", "NVIDIA H100 80GB HBM3", "bfloat16", 128, "cudnn"),
        ("gpu", "NVIDIA H100 80GB HBM3", "float32", 128, "xla"),
        ("gpu", "NVIDIA A100-SXM4-40GB", "bfloat16", 256, "xla"),
        ("gpu", "Tesla T4", "bfloat16", 128, "xla"),
        ("cpu", "cpu", "bfloat16", 128, "xla"),
    ],
)
def test_auto_asks_the_mesh_and_not_this_machine(platform, kind, dtype, head_dim, kernel):
    with jax.sharding.use_abstract_mesh(on(platform, kind)):
        assert kernels.choose("auto", dtype, head_dim) == kernel
    assert kernels.choose("auto", dtype, head_dim) == "xla"  # no mesh


def test_a_kernel_of_another_platform_is_one_clear_line():
    with pytest.raises(UserError, match="'splash', a kernel for tpu, and the devices of the mesh are cpu: set it to 'auto'"):
        kernels.choose("splash", "bfloat16", 128)
    with pytest.raises(UserError, match="must be one of 'auto', 'xla', 'splash', 'interpret', 'cudnn', got 'flash'"):
        kernels.check("flash", "tpu")
    with jax.sharding.use_abstract_mesh(on("gpu", "NVIDIA H100")):
        with pytest.raises(UserError, match="'cudnn', which needs config.model.dtype 'bfloat16', not 'float32'"):
            kernels.choose("cudnn", "float32", 128)
        with pytest.raises(UserError, match="a kernel for tpu, and the devices of the mesh are gpu"):
            kernels.choose("splash", "bfloat16", 128)
    span = kernels.causal("interpret", jnp.ones((1, 1 << 15), bool))
    with pytest.raises(UserError, match="sequences of 32768 tokens are longer than fused attention takes"):
        q, k, v, _ = arrays(1, 1, 1, 1 << 15)
        kernels.attend(q, k, v, span)


@pytest.mark.parametrize(("dtype", "exactly"), [("float32", True), ("bfloat16", False)])
def test_kernels_multiply_float32_as_such_forwards_and_backwards_and_half_precision_as_it_is(dtype, exactly):
    q, k, v, _ = arrays(2, 1, dtype=jnp.dtype(dtype))
    span = kernels.causal("interpret", padded())
    traced = jax.make_jaxpr(jax.grad(lambda *x: jnp.sum(kernels.attend(*x, span).astype(jnp.float32)), argnums=(0, 1, 2)))(
        q, k, v
    )
    products = re.findall(r"dot_general\[.*?\n *\]", str(traced), re.DOTALL)
    assert len(products) == 10  # two forwards, eight in the two kernels that go back
    assert all(("HIGHEST" in one) == exactly for one in products)
