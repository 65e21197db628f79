"""SafePatching: two policies that were trained on the same harmful answers, away from them and towards them, as patches of their base.

    θ' = θ + α M_S ⊙ δ_S + β M_O ⊙ δ_O        δ_S = θ_S - θ (ascent: safety), δ_O = θ_O - θ (descent: against over-refusal)
    M_S = top_a(S) \\ top_b(O), M_O = top_b(O) \\ top_a(S)        S = |δ_S ⊙ ∇L(θ)|, O = |δ_O ⊙ ∇L(θ)|

SafePatching (arXiv 2405.13820). Before scores are taken each entry of a patch is kept with probability p, else it is 0. The paper does
not give the five constants, nor whether scores are ranked within kernels or over the whole model: here it is within each kernel of
each layer, so that a layer with large gradients does not take all places. W in SNIP's |W ⊙ ∇L| is the patch's own entry: to first order
S is what the loss would change by if it were taken out. Files and gradients are the command's (`runs/patch.py`).
"""

import re
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from srlhfv_jax.parallel import rules

Tree = dict[str, Any]
Kernel = Float[Array, "N"]  # entries of one kernel, in one row
STACKED = re.compile(r"(^|/)layers/")  # leaves whose first axis is layers


class Recipe(NamedTuple):
    """Constants by which two patches are laid over their base."""

    alpha: float  # strength of the safety patch
    beta: float  # of the other one
    top_safety: float  # a: share of a kernel's entries that are in its set, by score
    top_utility: float  # b
    keep: float  # p: probability that an entry of a patch is kept
    rescale: bool = False  # entries that are kept are divided by p


class Sizes(NamedTuple):
    """Entries of a model's kernels that a patch moves, by set."""

    entries: int  # in all of these kernels
    safety: int  # top_a(S)
    utility: int  # top_b(O)
    overlap: int  # in both: neither patch moves them
    safety_only: int  # M_S
    utility_only: int  # M_O


def patch(base: Tree, safety: Tree, utility: Tree, gradient: Tree, recipe: Recipe, key: Key[Array, ""]) -> tuple[Tree, Sizes]:
    """The patched parameters, computed in float32 and stored in each leaf's own dtype, and how large the sets are.

    Entries that no set has, and all of them at α = β = 0, stay what they are bit for bit. What is drawn depends on the key, on a leaf's
    path and on its shape.

    Args:
        base, safety, utility: arrays of the same shapes and dtypes.
        gradient: of the loss at `base`, of the same shapes.
    """
    chex.assert_trees_all_equal_shapes_and_dtypes(base, safety, utility)
    chex.assert_trees_all_equal_shapes(base, gradient)
    for share in (recipe.top_safety, recipe.top_utility, recipe.keep):
        chex.assert_scalar_in(share, 0, 1)
    treedef = jax.tree.structure(base)
    others = (treedef.flatten_up_to(tree) for tree in (safety, utility, gradient))
    patched, total = [], [0] * len(Sizes._fields)
    for (path, leaf), *rest in zip(rules.leaves(base), *others, strict=True):
        layers = leaf.shape[0] if STACKED.search(path) else 1
        rows = [jnp.asarray(array).reshape(layers, -1) for array in (leaf, *rest)]
        ranks = [round(share * rows[0].shape[1]) for share in (recipe.top_safety, recipe.top_utility)]
        keys = jax.random.split(jax.random.fold_in(key, zlib.crc32(path.encode())), layers)
        numbers = (recipe.alpha, recipe.beta, recipe.keep, 1 / recipe.keep if recipe.rescale and recipe.keep else 1.0)
        moved, counts = _layers(*rows, keys, *map(jnp.float32, numbers), *map(jnp.int32, ranks))
        patched.append(moved.reshape(leaf.shape))
        total = [one + int(count.sum(dtype="int64")) for one, count in zip(total, jax.device_get(counts), strict=True)]
    return treedef.unflatten(patched), Sizes(*total)


def top(score_N: Kernel, has_N: Bool[Array, "N"], count: Array) -> Bool[Array, "N"]:
    """The `count` entries of the largest scores, of equal ones the first; where fewer are there (`has_N`), all of these."""
    order_N = jnp.argsort(jnp.where(has_N, score_N, -1.0), descending=True, stable=True)
    rank_N = jnp.zeros(order_N.shape, jnp.int32).at[order_N].set(jnp.arange(len(order_N), dtype=jnp.int32))
    return has_N & (rank_N < count)


@jax.jit
def _layers(theta_LN, safety_LN, utility_LN, gradient_LN, keys_L, alpha, beta, keep, scale, a, b):
    """One kernel after the other: ranks of a whole stack need not be in memory at once."""

    def of_layer(layer: tuple[Array, ...]) -> tuple[Kernel, tuple[Array, ...]]:
        theta_N, safety_N, utility_N, gradient_N, key = layer
        base_N, gradient_N = theta_N.astype(jnp.float32), gradient_N.astype(jnp.float32)
        deltas, sets = [], []
        moves = jnp.bool_(False)
        for side, (other_N, count) in enumerate(((safety_N, a), (utility_N, b))):
            delta_N = other_N.astype(jnp.float32) - base_N
            moves |= jnp.any(delta_N != 0)
            kept_N = jax.random.bernoulli(jax.random.fold_in(key, side), keep, delta_N.shape)
            delta_N = jnp.where(kept_N, scale * delta_N, 0.0)
            deltas.append(delta_N)
            sets.append(top(jnp.abs(delta_N * gradient_N), delta_N != 0, count))
        both_N = sets[0] & sets[1]
        only_N = [one_N & ~both_N for one_N in sets]
        change_N = alpha * jnp.where(only_N[0], deltas[0], 0.0) + beta * jnp.where(only_N[1], deltas[1], 0.0)
        moved_N = jnp.where(change_N == 0, theta_N, (base_N + change_N).astype(theta_N.dtype))
        counts = [jnp.sum(one_N, dtype=jnp.int32) for one_N in (*sets, both_N, *only_N)]
        return moved_N, (jnp.where(moves, len(theta_N), 0), *counts)

    return jax.lax.map(of_layer, (theta_LN, safety_LN, utility_LN, gradient_LN, keys_L))


def described(sizes: Sizes) -> Iterator[str]:
    """Lines for people: each set, its entries and its share of all."""
    names = {
        "safety": "in the safety set",
        "utility": "in the utility set",
        "overlap": "in both, left as they are",
        "safety_only": "moved by the safety patch",
        "utility_only": "moved by the utility patch",
    }
    yield f"{sizes.entries} entries in kernels that a patch moves"
    for name, about in names.items():
        count = sizes._asdict()[name]
        yield f"{count} ({count / max(sizes.entries, 1):.2%}) {about}"
