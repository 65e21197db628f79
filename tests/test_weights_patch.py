"""Patched weights (SafePatching): the formula by hand and its closed forms, and the command from three checkpoints to an export."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srlhfv_jax.weights.patch import Recipe, patch

KEY = jax.random.key(3)
HALVES = Recipe(alpha=0.75, beta=0.5, top_safety=0.5, top_utility=0.5, keep=1.0)


def bits(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def trees(dtype: str = "float32") -> list[dict]:
    """A base with odd numbers, two policies that differ from it everywhere, and a gradient."""
    rng = np.random.default_rng(5)
    base = {
        "layers": {"kernel": rng.standard_normal((3, 4, 10))},
        "embed": rng.standard_normal((7, 3)),
        "b": np.resize([-0.0, 0.25, -3.0], 8),
    }
    others = [jax.tree.map(lambda leaf: leaf + 0.1 + rng.random(leaf.shape), base) for _ in range(2)]
    gradient = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), base)
    return [jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree) for tree in (base, *others)] + [
        jax.tree.map(jnp.float32, gradient)
    ]


def moved(base, *others, **changes):
    """The float64 change of every leaf."""
    found, _ = patch(base, *others, HALVES._replace(**changes), KEY)
    return jax.tree.map(lambda one, other: np.float64(one) - np.float64(other), found, base)


def test_values_by_hand():
    """Scores S = (.5, .25, 1, .125, 0), O = (.25, .5, 1, .0625, .125): of two places each, S has 2 and 0, O has 2 and 1."""
    base = {"w": jnp.array([1.0, 2.0, -1.0, 0.5, 4.0])}
    safety = {"w": base["w"] + jnp.array([0.5, -0.25, 0.5, 0.125, 0.0])}
    utility = {"w": base["w"] + jnp.array([-0.25, 0.5, -0.5, 0.0625, -0.125])}
    gradient = {"w": jnp.array([1.0, 1.0, -2.0, 1.0, 1.0])}
    found, sizes = patch(base, safety, utility, gradient, HALVES._replace(top_safety=0.4, top_utility=0.4), KEY)
    np.testing.assert_array_equal(found["w"], [1.0 + 0.75 * 0.5, 2.0 + 0.5 * 0.5, -1.0, 0.5, 4.0])
    assert sizes == (5, 2, 2, 1, 1, 1)


def test_layers_of_a_stack_are_ranked_apart():
    """Ranked as one, the first layer's two entries would be the two largest."""
    base = {"layers": {"w": jnp.zeros((2, 2))}}
    safety = {"layers": {"w": jnp.array([[8.0, 4.0], [2.0, 1.0]])}}
    flat = {"layers": {"w": jnp.ones((2, 2))}}
    found, sizes = patch(base, safety, base, flat, HALVES._replace(alpha=1.0), KEY)
    np.testing.assert_array_equal(found["layers"]["w"], [[8.0, 0.0], [2.0, 0.0]])
    assert sizes == (4, 2, 0, 0, 2, 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_without_strength_it_is_the_base_bit_for_bit(dtype):
    base, *others = trees(dtype)
    found, sizes = patch(base, *others, HALVES._replace(alpha=0.0, beta=0.0), KEY)
    assert bits(found) == bits(base) and sizes.safety_only > 0


def test_sets_of_everything_have_no_difference():
    base, *others = trees()
    found, sizes = patch(base, *others, HALVES._replace(top_safety=1.0, top_utility=1.0), KEY)
    assert bits(found) == bits(base)
    assert sizes == (149, 149, 149, 149, 0, 0)


@pytest.mark.parametrize("keep", [1.0, 0.6])
def test_an_entry_is_moved_by_one_patch_at_most_and_as_many_as_the_sizes_say(keep):
    base, safety, utility, gradient = trees()
    by_safety = moved(base, safety, utility, gradient, beta=0.0, keep=keep)
    by_utility = moved(base, safety, utility, gradient, alpha=0.0, keep=keep)
    assert not any(((a != 0) & (b != 0)).any() for a, b in zip(jax.tree.leaves(by_safety), jax.tree.leaves(by_utility)))
    _, sizes = patch(base, safety, utility, gradient, HALVES._replace(keep=keep), KEY)
    counts = [sum(int((leaf != 0).sum()) for leaf in jax.tree.leaves(change)) for change in (by_safety, by_utility)]
    assert counts == [sizes.safety_only, sizes.utility_only] and min(counts) > 0
    assert sizes.safety == sizes.safety_only + sizes.overlap and sizes.utility == sizes.utility_only + sizes.overlap


def test_it_is_linear_in_both_strengths():
    given = trees()
    parts = [moved(*given, alpha=1.0, beta=0.0), moved(*given, alpha=0.0, beta=1.0), moved(*given, alpha=0.3, beta=-1.7)]
    jax.tree.map(lambda a, b, both: np.testing.assert_allclose(0.3 * a - 1.7 * b, both, atol=3e-6), *parts)


def test_what_is_moved_is_moved_by_the_difference_of_the_policies():
    base, safety, utility, gradient = trees()
    change = moved(base, safety, utility, gradient, alpha=2.0, beta=0.0)

    def check(change, base, safety):
        expected = 2 * (np.float64(safety) - np.float64(base))
        np.testing.assert_allclose(change[change != 0], expected[change != 0], rtol=1e-5)

    jax.tree.map(check, change, base, safety)


def test_retention_is_drawn_by_the_key_and_rescaling_divides_by_its_probability():
    base, safety, utility, gradient = trees()
    alone = dict(top_safety=1.0, top_utility=0.0, alpha=1.0, keep=0.25)  # all that is kept of one patch
    first, again = (moved(base, safety, utility, gradient, **alone) for _ in range(2))
    assert bits(first) == bits(again)
    other, _ = patch(base, safety, utility, gradient, HALVES._replace(**alone), jax.random.key(4))
    assert any((np.asarray(a) != b).any() for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(base)))
    share = np.mean(np.concatenate([(leaf != 0).ravel() for leaf in jax.tree.leaves(first)]))
    assert abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 149)
    fresh = jax.tree.map(lambda one, theta: np.float64(one) - np.float64(theta), other, base)
    assert bits(fresh) != bits(first)
    larger = moved(base, safety, utility, gradient, rescale=True, **alone)
    jax.tree.map(lambda one, four: np.testing.assert_allclose(four, 4 * one, atol=3e-6), first, larger)


def test_nothing_is_kept_at_probability_0():
    base, *others = trees()
    found, sizes = patch(base, *others, HALVES._replace(keep=0.0, rescale=True), KEY)
    assert bits(found) == bits(base) and sizes == (149, 0, 0, 0, 0, 0)


def test_sums_are_in_float32_and_stored_in_the_dtype_of_the_leaf():
    """δ = 1 (bfloat16 has it), α δ = 0.1: 3 + 0.1 = 3.1 is nearest to 3.09375 of bfloat16; kernels that nobody moves are not counted."""
    base, safety = ({"w": jnp.array([value], jnp.bfloat16), "frozen": jnp.ones(9, jnp.bfloat16)} for value in (3.0, 4.0))
    flat = {"w": jnp.ones(1), "frozen": jnp.ones(9)}
    found, sizes = patch(base, safety, base, flat, HALVES._replace(alpha=0.1, top_safety=1.0), KEY)
    assert found["w"].dtype == jnp.bfloat16 and float(found["w"][0]) == 3.09375
    assert sizes == (1, 1, 0, 0, 1, 0)
