"""One update: microbatches, counts, frozen leaves, the optimizer's schedule and decay, keys."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_training as tiny
from optax import contrib

from srlhfv_jax.config import OptimizerConfig
from srlhfv_jax.errors import UserError
from srlhfv_jax.losses.masked import Loss
from srlhfv_jax.parallel import microbatches, rules
from srlhfv_jax.training import optimizer, state, step

ROWS = jnp.asarray(np.random.default_rng(0).normal(size=(12, 6)).astype(np.float32))


def config(**changes) -> OptimizerConfig:
    return OptimizerConfig(**(tiny.OPTIMIZER.__dict__ | changes))


def assert_close(left, right, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), left, right)


accumulate = jax.jit(step.accumulate, static_argnums=(0, 3))


def test_microbatches_change_nothing_though_their_counts_differ():
    whole, metrics, rows = accumulate(tiny.loss, tiny.initial(), ROWS, 1)
    split, split_metrics, split_rows = accumulate(tiny.loss, tiny.initial(), ROWS, 4)
    assert_close(split, whole, rtol=2e-5, atol=1e-7)
    assert_close(split_metrics, metrics, rtol=1e-5)
    assert_close(split_rows, rows, rtol=1e-5)


def test_the_gradient_is_that_of_the_mean_over_everything_counted():
    def mean(params):
        total, count = tiny.loss(params, ROWS)[:2]
        return total / count

    assert_close(accumulate(tiny.loss, tiny.initial(), ROWS, 4)[0], jax.jit(jax.grad(mean))(tiny.initial()), rtol=2e-5, atol=1e-7)


def test_nothing_counted_gives_no_gradient():
    def empty(params, x):
        return Loss(0.0 * jnp.sum(params["w"] ** 2) * jnp.sum(x), jnp.float32(0), {})

    grads, metrics, _ = step.accumulate(empty, {"w": jnp.full(3, 0.7)}, ROWS, 2)
    assert not jnp.any(grads["w"]) and metrics["loss"] == (0.0, 0.0)


def test_frozen_leaves_get_zeros_and_the_rest_the_same_gradient():
    params = tiny.initial()
    trainable = optimizer.trainable(tiny.OPTIMIZER, params)
    grads, _, _ = jax.jit(lambda params, rows: step.accumulate(tiny.loss, params, rows, 4, trainable))(params, ROWS)
    full, _, _ = accumulate(tiny.loss, params, ROWS, 4)
    assert not jnp.any(grads["projector"]["linear_2"]["kernel"]) and jnp.any(full["projector"]["linear_2"]["kernel"])
    full["projector"]["linear_2"]["kernel"] = jnp.zeros((8, 2))
    assert_close(grads, full, rtol=1e-6)


def test_low_precision_gradients_are_summed_in_float32():
    """256 microbatches of gradient 1 and then 1/256 each: a bfloat16 sum would stop at 256."""
    values = jnp.ones((512, 1))

    def loss(params, x):
        return Loss(jnp.sum(params["w"].astype(jnp.float32) * x), jnp.float32(1), {})

    grads, _, _ = step.accumulate(loss, {"w": jnp.bfloat16(0.5)}, values, 512)
    assert grads["w"].dtype == jnp.bfloat16 and float(grads["w"]) == 1.0


def test_parts_of_a_batch_are_strided_so_that_no_row_leaves_its_device():
    batch = {"x": jnp.arange(6), "none": None}
    split = microbatches.split(batch, 3)
    np.testing.assert_array_equal(split["x"], [[0, 3], [1, 4], [2, 5]])
    chex.assert_trees_all_equal(microbatches.join(split), batch)
    with pytest.raises(UserError, match="config.microbatches 4 must divide the 6 rows"):
        accumulate(tiny.loss, tiny.initial(), ROWS[:6], 4)


def test_frozen_leaves_own_no_optimizer_state_and_never_move():
    params = tiny.initial() | {"vision": {"unused": {"fc1": {"kernel": jnp.full((2, 2), 0.9)}}}}
    transform = optimizer.make(tiny.OPTIMIZER, params, 10)
    opt_state = transform.init(params)
    names = [path for path, _ in rules.leaves(opt_state)]
    assert any("linear_1/kernel" in name for name in names)
    assert not any("linear_2" in name or "unused" in name for name in names)
    ones = jax.tree.map(jnp.ones_like, params)
    moved, _, _ = jax.jit(lambda *trees: step.apply_updates(transform, *trees))(params, opt_state, ones)
    for where in (lambda p: p["projector"]["linear_2"]["kernel"], lambda p: p["vision"]["unused"]["fc1"]["kernel"]):
        np.testing.assert_array_equal(where(moved), where(params))
    assert jnp.all(moved["text"]["norm"]["scale"] != params["text"]["norm"]["scale"])


def test_clipping_measures_trained_leaves_only():
    """A frozen leaf with a huge gradient must not shrink the step of the others."""
    params = tiny.initial()
    transform = optimizer.make(config(clip_norm=1e6), params, 10)
    small = jax.tree.map(lambda p: jnp.full_like(p, 0.01), params)
    huge = jax.tree.map(lambda g: g, small)
    huge["projector"]["linear_2"]["kernel"] = jnp.full((8, 2), 1e9)
    update = jax.jit(lambda grads: transform.update(grads, transform.init(params), params)[0])
    assert_close(update(small), update(huge), rtol=0)


def test_decay_touches_matrices_only():
    params = {
        "text": {
            "embed": {"embedding": jnp.ones((3, 2))},
            "layers": {"q_proj": {"kernel": jnp.ones((2, 3, 2)), "bias": jnp.ones((2, 3))}, "norm": {"scale": jnp.ones((2, 3))}},
        },
        "vision": {"embeddings": {"position_embedding": jnp.ones((4, 2)), "class_embedding": jnp.ones(2)}},
        "heads": {"reward": {"kernel": jnp.ones(3)}},
    }
    decays = {path: leaf for path, leaf in rules.leaves(optimizer.decayed(params))}
    assert sorted(path for path, decay in decays.items() if decay) == ["text/embed/embedding", "text/layers/q_proj/kernel"]
    transform = optimizer.make(config(freeze=(), clip_norm=0.0), params, 10)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates = jax.jit(lambda grads: transform.update(grads, transform.init(params), params)[0])(zeros)
    rate = optimizer.learning_rate(config(), 10)(0)
    np.testing.assert_allclose(updates["text"]["layers"]["q_proj"]["kernel"], -rate * 0.1, rtol=1e-6)
    assert not jnp.any(updates["text"]["layers"]["norm"]["scale"]) and not jnp.any(updates["heads"]["reward"]["kernel"])


def test_schedules_follow_their_formulas():
    """Warm-up over 4 of 20 steps, the first of them not at 0; then cos or a line to 0 over the other 16."""
    for schedule, decay in (
        ("constant", lambda done: 1.0),
        ("linear", lambda done: 1 - done),
        ("cosine", lambda done: 0.5 * (1 + math.cos(math.pi * done))),
    ):
        rate = optimizer.learning_rate(config(learning_rate=0.3, schedule=schedule, warmup_fraction=0.2), 20)
        found = [float(rate(k)) for k in range(21)]
        expected = [0.3 * min((k + 1) / 4, 1) * decay(max(k - 4, 0) / 16) for k in range(21)]
        np.testing.assert_allclose(found, expected, atol=1e-7)


def test_muon_turns_every_layer_by_an_orthogonal_matrix_and_leaves_the_rest_to_nadam():
    """One step from nothing: a momentum of any spectrum becomes, layer by layer, one of nearly equal singular values, whose root
    mean square entry is 0.2 of the rate, as AdamW's would be 1; embeddings and norms move as NAdam moves them."""
    rng = np.random.default_rng(3)
    params = {
        "text": {
            "embed": {"embedding": jnp.asarray(rng.normal(size=(11, 6)), jnp.float32)},
            "layers": {
                "mlp": {
                    "up_proj": {"kernel": jnp.asarray(rng.normal(size=(3, 8, 6)), jnp.float32)},
                    "down_proj": {"kernel": jnp.asarray(rng.normal(size=(3, 8, 6)), jnp.float32)},
                },
                "self_attn": {"q_proj": {"kernel": jnp.asarray(rng.normal(size=(3, 6, 6)), jnp.float32)}},
            },
            "norm": {"scale": jnp.ones(6)},
        }
    }
    grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) ** 3, jnp.float32), params)
    settings = config(algorithm="muon", freeze=(), warmup_fraction=0.0, schedule="constant", weight_decay=0.0, clip_norm=0.0)
    nadam = optax.nadamw(settings.learning_rate, settings.b1, settings.b2, settings.eps, weight_decay=0.0)
    muon, rest = (
        transform.update(grads, transform.init(params), params)[0]["text"]
        for transform in (optimizer.make(settings, params, 10), nadam)
    )
    for part in ("embed", "norm"):
        assert_close(muon[part], rest[part], rtol=1e-5, atol=1e-8)
    one_by_one = contrib.muon(
        settings.learning_rate,
        muon_weight_dimension_numbers=contrib.MuonDimensionNumbers(reduction_axis=2, output_axis=1),
        consistent_rms=0.2,
    )
    layers, gradients = params["text"]["layers"], grads["text"]["layers"]
    assert_close(muon["layers"], one_by_one.update(gradients, one_by_one.init(layers), layers)[0], rtol=1e-4, atol=1e-6)
    turned_LFD = np.asarray(muon["layers"]["mlp"]["up_proj"]["kernel"]) / settings.learning_rate
    singular_LD = np.linalg.svd(turned_LFD, compute_uv=False) / (0.2 * math.sqrt(8))
    assert 0.5 < singular_LD.min() and singular_LD.max() < 1.3
    gradient_LD = np.linalg.svd(np.asarray(gradients["mlp"]["up_proj"]["kernel"]), compute_uv=False)
    assert (gradient_LD.max(-1) / gradient_LD.min(-1)).min() > 3


@pytest.mark.parametrize("algorithm", ["adamw", "muon"])
def test_heads_have_a_rate_of_their_own_and_their_biases_keep_up_with_their_kernels(algorithm):
    """Against the same optimizer at the heads' rate for all: kernels move as there, biases sqrt(width) times as far, and the
    backbone as without heads."""
    head = {"kernel": jnp.linspace(-0.5, 0.5, 9), "bias": jnp.array([0.4, -0.3, 0.1])}
    params = {"backbone": tiny.initial(), "guard": {"severity": head}, "heads": {"cost": {"kernel": jnp.linspace(0.2, 0.7, 5)}}}
    grads = jax.tree.map(lambda p: 0.1 * jnp.cos(9 * p), params)

    def moved(**rates):
        transform = optimizer.make(config(algorithm=algorithm, weight_decay=0.0, freeze=(), **rates), params, 10)
        return jax.jit(lambda: transform.update(grads, transform.init(params), params)[0])()

    apart, high, low = moved(head_learning_rate=0.07), moved(learning_rate=0.07), moved()
    assert_close(apart["heads"], high["heads"], rtol=1e-6)
    assert_close(apart["guard"], high["guard"], rtol=1e-6)
    assert_close(apart["backbone"], low["backbone"], rtol=1e-6)
    speed = jax.tree.map(lambda move: float(jnp.abs(move).max()), apart["guard"]["severity"])
    np.testing.assert_allclose(speed["bias"], 3 * speed["kernel"], rtol=1e-3)  # the width is 9


@pytest.mark.parametrize("algorithm", ["adamw", "muon"])
def test_a_part_has_the_rate_that_the_last_pattern_which_matches_it_says(algorithm):
    params = {"backbone": tiny.initial()}
    grads = jax.tree.map(lambda p: 0.1 * jnp.cos(9 * p), params)

    def moved(**rates):
        transform = optimizer.make(config(algorithm=algorithm, weight_decay=0.0, freeze=(), **rates), params, 10)
        return jax.jit(lambda: transform.update(grads, transform.init(params), params)[0])()

    apart, low, high = moved(part_rates=(".*=0.5", "text/=0.06", "projector/linear_1=0")), moved(), moved(learning_rate=0.06)
    assert_close(apart["backbone"]["text"], high["backbone"]["text"], rtol=1e-5)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(apart["backbone"]["projector"]["linear_1"]))
    assert_close(moved(part_rates=()), low, rtol=0)


def test_optimizer_mistakes_are_named():
    with pytest.raises(UserError, match="optimizer.part_rates 'nowhere/=0.1' needs a parameter that it matches .* got 0 of them"):
        optimizer.make(config(part_rates=("nowhere/=0.1",)), tiny.initial(), 10)
    with pytest.raises(UserError, match="head_learning_rate 0.1 is for heads .* got 0 parameters of heads"):
        optimizer.make(config(head_learning_rate=0.1), tiny.initial(), 10)
    with pytest.raises(UserError, match="freeze pattern 'visoin/' matches no parameter"):
        optimizer.make(config(freeze=("visoin/",)), tiny.initial(), 10)
    with pytest.raises(UserError, match="freezes every parameter"):
        optimizer.make(config(freeze=("text/", "projector/")), tiny.initial(), 10)
    with pytest.raises(UserError, match="optimizer.algorithm must be one of 'adamw', 'muon', got 'adam'"):
        optimizer.make(config(algorithm="adam"), tiny.initial(), 10)
    with pytest.raises(UserError, match="optimizer.schedule must be one of 'constant', 'cosine', 'linear', got 'cosin'"):
        optimizer.make(config(schedule="cosin"), tiny.initial(), 10)


def test_keys_repeat_and_differ_by_seed_step_and_purpose():
    draws = {
        (seed, number, purpose): float(jax.random.normal(state.key(seed, number, purpose)))
        for seed in (0, 1)
        for number in (0, 1)
        for purpose in state.PURPOSES
    }
    assert len(set(draws.values())) == len(draws)
    assert float(jax.random.normal(state.key(1, jnp.int32(1), "rollout"))) == draws[1, 1, "rollout"]
