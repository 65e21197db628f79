"""Scores of units on two sets of rows, and sets of units by rank (SSAH, Li and Kim, arXiv 2410.10862; the score is that of FLAP,
An et al., arXiv 2312.11983): which units serve safety, and which serve use.

A unit is an input channel j of an output projection W: a neuron of an MLP, or a head, whose channels are summed.

    I_j = Var(X_j) ||W_:,j||^2
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from srlhfv_jax.errors import UserError
from srlhfv_jax.models import measure
from srlhfv_jax.models.measure import Units
from srlhfv_jax.training.units import SETS, UnitScores

SHARES = {"safety": 0.013, "utility": 0.133, "complex": 0.06, "redundant": 0.148}  # of all units of a kind; published for Llama-2


def norms(backbone: Mapping[str, Any]) -> UnitScores:
    """Squared norm of what reads each channel, ||W_:,j||^2: neurons [L, F], channels of heads [L, H h]. float32."""
    layers = backbone["text"]["layers"]

    def squared(kernel: Float[Array, "L channels D"]) -> Float[Array, "L channels"]:
        return jnp.sum(jnp.square(kernel.astype(jnp.float32)), axis=2)

    return UnitScores(squared(layers["mlp"]["down_proj"]["kernel"]), squared(layers["self_attn"]["o_proj"]["kernel"]))


def importance(units: Units, norms_of: UnitScores) -> UnitScores:
    """I_j of every unit, float64. The variance is that of all tokens.

    Args:
        units: moments of the layers stacked.
        norms_of: of `norms`.
    """
    mlp_LF, heads_LHh = measure.variance(units.mlp), measure.variance(units.heads)
    norm_LF, norm_heads = (np.asarray(norm, np.float64) for norm in norms_of)
    return UnitScores(mlp_LF * norm_LF, np.sum(heads_LHh * norm_heads.reshape(heads_LHh.shape), axis=2))


def sets(safe: UnitScores, useful: UnitScores, shares: Mapping[str, float], *, disjoint: bool) -> dict[str, UnitScores]:
    """Sets of units of each kind, ranked over all layers together; of equal ones the first come first.

    safety: the largest I_safe - I_useful; utility: the smallest; complex: the largest sum; redundant: the smallest.

    Args:
        shares: of all units of a kind, from 0 to 1, by SETS. A set has round(share x units).
        disjoint: a set takes of the units that those before it (in the order of SETS) have left.

    Raises:
        UserError: as `check_shares`.
    """
    check_shares(shares, disjoint=disjoint)
    kinds = {kind: _of_kind(safe._asdict()[kind], useful._asdict()[kind], shares, disjoint) for kind in UnitScores._fields}
    return {name: UnitScores(*(kinds[kind][name] for kind in UnitScores._fields)) for name in SETS}


def check_shares(shares: Mapping[str, float], *, disjoint: bool) -> None:
    """Raise UserError for shares that no sets have."""
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise UserError(f"the share of {name} units must be from 0 to 1, got {share:g}")
    if disjoint and sum(shares.values()) > 1:
        raise UserError(
            f"disjoint sets of units cannot have {sum(shares.values()):g} of them: lower a share, or give --nodisjoint"
        )


def _of_kind(safe: np.ndarray, useful: np.ndarray, shares: Mapping[str, float], disjoint: bool) -> dict[str, np.ndarray]:
    gap, total = (safe - useful).ravel(), (safe + useful).ravel()
    order = {"safety": -gap, "utility": gap, "complex": -total, "redundant": total}
    free, chosen = np.ones(gap.size, bool), {}
    for name in SETS:
        ranked = np.argsort(order[name], kind="stable")
        ranked = ranked[free[ranked]] if disjoint else ranked
        mask = np.zeros(gap.size, bool)
        mask[ranked[: round(shares[name] * gap.size)]] = True
        free &= ~mask
        chosen[name] = mask.reshape(safe.shape)
    return chosen


def totals(units: Mapping[str, UnitScores]) -> dict[str, tuple[int, int]]:
    """(neurons, heads) of each set."""
    return {name: (int(of.mlp.sum()), int(of.heads.sum())) for name, of in units.items()}


def added(sums: Units | None, batch: Units) -> Units:
    """Moments of the tokens of both, on the host; None: there are none yet."""
    if sums is None:
        return jax.tree.map(lambda x: np.asarray(x, np.float64), batch)
    return Units(measure.joined(sums.heads, batch.heads), measure.joined(sums.mlp, batch.mlp))
