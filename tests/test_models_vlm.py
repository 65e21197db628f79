"""The model as functions: what may influence what, and that caching, padding, sharding and recomputation change nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srlhfv_jax.batches import Images
from srlhfv_jax.errors import UserError
from srlhfv_jax.hf import names
from srlhfv_jax.models import attention, language, projector, stack, vlm
from srlhfv_jax.models.config import RopeConfig, TextConfig, VisionConfig, VLMConfig
from srlhfv_jax.parallel import rules

IMAGE = 36
TEXT = TextConfig(
    vocab=40, width=16, mlp=20, layers=2, heads=4, kv_heads=2, head_dim=6, norm_eps=1e-6, rope=RopeConfig(500.0), tied_head=False
)
VISION = VisionConfig(image_size=8, patch=4, width=12, mlp=16, layers=3, heads=2, norm_eps=1e-5, activation="quick_gelu")
CONFIG = VLMConfig("llava", TEXT, VISION, IMAGE)
N = VISION.features


@functools.cache
def params():
    """Random everywhere, norms and biases too."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: vlm.init(CONFIG, jax.random.key(0)))
    return jax.tree.map(lambda leaf: jnp.asarray(0.4 * rng.standard_normal(leaf.shape), jnp.float32), shapes)


@functools.cache
def rows():
    """Three rows of 12: image and no padding, three pads and no image, one pad and an image."""
    rng = np.random.default_rng(2)
    tokens_BT, mask_BT = rng.integers(1, 30, (3, 12)), np.ones((3, 12), bool)
    mask_BT[1, :3] = mask_BT[2, :1] = False
    tokens_BT[0, 2 : 2 + N] = tokens_BT[2, 3 : 3 + N] = IMAGE
    patches = rng.standard_normal((3, N, VISION.patch_values)).astype(np.float32)
    return (
        tokens_BT,
        np.maximum(mask_BT.cumsum(1) - 1, 0),
        mask_BT,
        jax.jit(functools.partial(vlm.encode_images, CONFIG))(params(), Images(patches, None, None, None)),
    )


@functools.partial(jax.jit, static_argnums=0)
def hidden(config, params, tokens_BT, positions_BT, mask_BT, features):
    return vlm.apply(config, params, tokens_BT, positions_BT, mask_BT, features)[0]


@functools.partial(jax.jit, static_argnums=0)
def cached(config, params, tokens_BT, positions_BT, mask_BT, features, cache):
    return vlm.apply(config, params, tokens_BT, positions_BT, mask_BT, features, cache)


def assert_close(x, y, atol=2e-6):
    np.testing.assert_allclose(np.asarray(x), np.asarray(y), atol=atol)


@pytest.mark.parametrize("unroll", [1, 0])
def test_cached_decode_equals_full_forward(unroll):
    config = dataclasses.replace(CONFIG, scan_unroll=unroll)
    tokens_BT, positions_BT, mask_BT, features = rows()
    mask_BT = mask_BT.copy()
    mask_BT[0, 10:] = False  # a row that has ended goes on with pads nobody sees
    full_BTD = hidden(config, params(), tokens_BT, positions_BT, mask_BT, features)
    P = 8
    cache = vlm.init_cache(config, 3, 14, jnp.float32)
    prefill_BTD, cache = cached(config, params(), tokens_BT[:, :P], positions_BT[:, :P], mask_BT[:, :P], features, cache)
    assert_close(prefill_BTD[mask_BT[:, :P]], full_BTD[:, :P][mask_BT[:, :P]])
    for t in range(P, 12):
        step = slice(t, t + 1)
        step_B1D, cache = cached(config, params(), tokens_BT[:, step], positions_BT[:, step], mask_BT[:, step], None, cache)
        assert_close(step_B1D[:, 0][mask_BT[:, t]], full_BTD[:, t][mask_BT[:, t]])
    assert int(cache.index) == 12
    np.testing.assert_array_equal(cache.mask_BT[:, :12], mask_BT)
    assert not cache.mask_BT[:, 12:].any()


def test_no_gradient_from_the_future_and_none_from_padding():
    tokens_BT, positions_BT, mask_BT, _ = rows()
    rotation = attention.rotation(TEXT.rope, TEXT.head_dim, jnp.asarray(positions_BT))
    bias = attention.bias(attention.causal(jnp.asarray(mask_BT)))
    x_BTD = jax.random.normal(jax.random.key(3), (3, 12, 16))
    at = 6

    def output(x_BTD):
        return jnp.sum(
            language.decode(CONFIG, params()["text"], x_BTD, language.Sight(rotation, bias), None, None, None, x_BTD.shape[1])[0][
                :, at
            ]
            ** 2
        )

    influence_BT = np.abs(np.asarray(jax.jit(jax.grad(output))(x_BTD))).sum(-1)
    assert (influence_BT[:, at + 1 :] == 0).all()
    assert (influence_BT[~mask_BT] == 0).all()
    assert (influence_BT[:, : at + 1][mask_BT[:, : at + 1]] > 0).all()


@pytest.mark.parametrize("remat", ["none", "layer"])
@pytest.mark.parametrize("unroll", [0, 1])
@pytest.mark.parametrize("where", ["last", "scattered"])
def test_reading_some_positions_only_changes_neither_values_nor_gradients(unroll, remat, where):
    config = dataclasses.replace(CONFIG, scan_unroll=unroll, remat=remat)
    tokens_BT, positions_BT, mask_BT, features = rows()
    B, T = tokens_BT.shape
    asked = 5 if where == "last" else jnp.asarray(np.random.default_rng(0).integers(T // 2, T, (B, 2)), jnp.int32)

    def values(params, read):
        hidden = vlm.apply(config, params, tokens_BT, positions_BT, mask_BT, features, read=read)[0]
        picked = attention.at(hidden, asked) if read is None else hidden
        return jnp.sum(jnp.sin(picked)), picked

    def both(read):
        return jax.jit(jax.value_and_grad(lambda params: values(params, read), has_aux=True))(params())

    ((_, some), some_gradient), ((_, every), every_gradient) = both(asked), both(None)
    assert_close(some, every, atol=1e-5)
    jax.tree.map(functools.partial(assert_close, atol=2e-5), some_gradient, every_gradient)


def test_padding_changes_nothing():
    tokens_BT, positions_BT, mask_BT, features = rows()
    filled = ((tokens_BT, 7), (positions_BT, 0), (mask_BT, False))
    wide = [np.pad(x, ((0, 0), (4, 2)), constant_values=fill) for x, fill in filled]
    plain_BTD = hidden(CONFIG, params(), tokens_BT, positions_BT, mask_BT, features)
    padded_BTD = hidden(CONFIG, params(), *wide, features)[:, 4:-2]
    assert_close(padded_BTD[mask_BT], plain_BTD[mask_BT])


def test_the_image_matters_to_its_own_row_after_its_place_and_nowhere_else():
    tokens_BT, positions_BT, mask_BT, features = rows()
    before = hidden(CONFIG, params(), tokens_BT, positions_BT, mask_BT, features)
    changed = features._replace(tower_BNE=features.tower_BNE.at[:2].add(1.5))
    after = hidden(CONFIG, params(), tokens_BT, positions_BT, mask_BT, changed)
    moved_BT = np.abs(np.asarray(after - before)).max(-1) > 1e-4
    assert not moved_BT[1:].any()  # row 1 has no placeholder, row 2 kept its features
    assert not moved_BT[0, :2].any() and moved_BT[0, 2:].all()


def test_the_kth_feature_goes_to_the_kth_placeholder():
    x_BTD = jnp.zeros((2, 5, 1))
    features_BND = jnp.asarray([[[1.5], [2.5]], [[3.5], [4.5]]])
    is_image_BT = jnp.asarray([[False, True, True, False, False], [False, True, False, False, True]])
    placed = projector.place(x_BTD, features_BND, is_image_BT)[:, :, 0]
    np.testing.assert_array_equal(placed, [[0, 1.5, 2.5, 0, 0], [0, 3.5, 0, 0, 4.5]])


@functools.cache
def value_and_gradient(config):
    tokens_BT, positions_BT, mask_BT, features = rows()

    def loss(params):
        hidden_BTD, _ = vlm.apply(config, params, tokens_BT, positions_BT, mask_BT, features)
        return jnp.sum(jnp.sin(hidden_BTD) * mask_BT[:, :, None])

    return jax.jit(jax.value_and_grad(loss))(params())


@pytest.mark.parametrize("remat, unroll", [("none", 0), ("dots", 1), ("layer", 1), ("layer", 0)])
def test_recomputation_and_unrolling_change_neither_values_nor_gradients(remat, unroll):
    changed = dataclasses.replace(CONFIG, remat=remat, scan_unroll=unroll)
    jax.tree.map(functools.partial(assert_close, atol=1e-4), value_and_gradient(changed), value_and_gradient(CONFIG))


def test_a_partly_unrolled_stack_equals_a_loop():
    kernels = jax.random.normal(jax.random.key(0), (5, 3, 3)) * 0.5
    x = jnp.asarray([[0.3, -0.2, 0.7]])
    expected = x
    for i in range(5):
        expected = jnp.tanh(expected @ kernels[i]) + i
    for unroll in (0, 1, 2, 5, 9):
        ran = stack.run(lambda x, kernel, i: jnp.tanh(x @ kernel) + i, kernels, x, unroll=unroll, remat="none")
        assert_close(ran, expected)


@pytest.mark.parametrize("groups, halves", [(1, False), (2, False), (2, True)])
def test_the_written_derivative_of_attention_is_the_automatic_one(groups, halves, one_device):
    """On one CPU, where rows are taken in halves, too."""
    if halves:
        jax.set_mesh(one_device)
    keys = jax.random.split(jax.random.key(4), 3)
    k, v = jax.random.normal(keys[0], (2, 2, 3, 5, 4))
    q = jax.random.normal(keys[1], (2, 3 * groups, 5, 4))
    mask_BT = jnp.asarray([[True] * 5, [False, False, True, True, True]])
    bias = attention.bias(attention.causal(mask_BT))
    weight = jax.random.normal(keys[2], q.shape) * mask_BT[:, None, :, None]

    def plain(q, k, v):
        k, v = (jnp.repeat(x, groups, axis=1) for x in (k, v))
        scores = jnp.einsum("bhtd,bhsd->bhts", q, k) / 2 + jnp.broadcast_to(bias[:, 0], (2, 3 * groups, 5, 5))
        return jnp.sum(weight * jnp.einsum("bhts,bhsd->bhtd", jax.nn.softmax(scores), v))

    def ours(q, k, v):
        return jnp.sum(weight * attention.attend(q, k, v, bias))

    automatic, written = (jax.jit(jax.value_and_grad(f, (0, 1, 2)))(q, k, v) for f in (plain, ours))
    jax.tree.map(functools.partial(assert_close, atol=1e-5), automatic, written)


def test_a_row_with_nothing_to_attend_to_stays_finite():
    tokens_BT, positions_BT, mask_BT, features = rows()
    nothing = np.zeros_like(mask_BT)
    assert np.isfinite(hidden(CONFIG, params(), tokens_BT, positions_BT, nothing, features)).all()


def test_the_name_table_covers_every_leaf_once():
    plain = dataclasses.replace(CONFIG, vision=None)
    tied = dataclasses.replace(
        CONFIG, text=dataclasses.replace(TEXT, tied_head=True, qkv_bias=True, output_bias=True, mlp_bias=True)
    )
    last = dataclasses.replace(CONFIG, vision=dataclasses.replace(VISION, feature_layer=-1), projector_bias=False)
    for config in (CONFIG, plain, tied, last):
        shapes = jax.eval_shape(lambda config=config: vlm.init(config, jax.random.key(0)))
        paths = sorted(path for path, _ in rules.leaves(shapes))
        assert sorted("/".join(leaf.path) for leaf in names.table(config)) == paths
        stored = [name for leaf in names.table(config) for name in leaf.names]
        assert len(set(stored)) == len(stored)


def test_sharded_forward_equals_one_device_forward(eight_devices):
    tokens_BT, positions_BT, mask_BT, features = jax.tree.map(lambda x: np.repeat(np.asarray(x), 4, axis=0), rows())
    expected = hidden(CONFIG, params(), tokens_BT, positions_BT, mask_BT, features)
    data = jax.sharding.NamedSharding(eight_devices, jax.sharding.PartitionSpec(("data", "fsdp")))
    placed = rules.place(params(), eight_devices)
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(placed))
    batch = jax.device_put((tokens_BT, positions_BT, mask_BT, features), data)
    assert_close(hidden(CONFIG, placed, *batch), expected, atol=1e-5)


def test_dynamic_rope_refuses_sequences_longer_than_the_checkpoint_knows():
    rope = RopeConfig(500.0, "dynamic", factor=2.0)
    config = dataclasses.replace(CONFIG, text=dataclasses.replace(TEXT, rope=rope, max_positions=11))
    tokens_BT, positions_BT, mask_BT, features = rows()
    with pytest.raises(UserError, match="12 tokens exceed the 11"):
        vlm.apply(config, params(), tokens_BT, positions_BT, mask_BT, features)


def test_a_random_start_is_neither_flat_nor_saturated():
    tokens_BT, positions_BT, mask_BT, features = rows()
    start = jax.jit(functools.partial(vlm.init, CONFIG))(jax.random.key(0))
    hidden_BTD = hidden(CONFIG, start, tokens_BT, positions_BT, mask_BT, features)
    assert 0.9 < float(jnp.std(hidden_BTD)) < 1.1
    assert 0.02 < float(jnp.std(vlm.logits(CONFIG, start, hidden_BTD))) < 1.0


def test_a_tied_head_is_the_embedding_and_logits_are_float32():
    tied = dataclasses.replace(CONFIG, text=dataclasses.replace(TEXT, tied_head=True))
    assert vlm.unembedding(tied, params()) is params()["text"]["embed"]["embedding"]
    hidden_BD = jax.random.normal(jax.random.key(5), (2, 16), jnp.bfloat16)
    logits_BV = vlm.logits(CONFIG, params(), hidden_BD)
    assert logits_BV.dtype == jnp.float32
    assert_close(logits_BV, hidden_BD.astype(jnp.float32) @ params()["text"]["head"]["kernel"].T, atol=0.05)
