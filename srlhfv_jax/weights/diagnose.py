"""The place of a change of weights, and how far apart two kinds of prompts are (Jain et al., arXiv 2407.10264).

The paper's claim: safety tuning adds to the MLPs of a model a change ΔW that sends activations of unsafe prompts towards the left null
space of W, the directions that W itself does not write to; so safe and unsafe prompts come to lie apart. Measured here is the part of ΔW
outside the left singular vectors that hold most of W's energy. The official script measures another thing: it compares the singular
vectors of two whole kernels, the tuned and the untuned one with their row means taken off, and never looks at ΔW.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

ENERGY = 0.9  # of W, that its left singular vectors hold


class Outside(NamedTuple):
    """Energy of a change outside the left singular vectors that hold most of W's."""

    share: float  # of ||ΔW||^2; nan where ΔW is 0
    random: float  # mean of that share over random ΔW: 1 - directions / outputs
    directions: int  # left singular vectors that hold ENERGY of W
    change: float  # ||ΔW|| / ||W||


def outside(
    before: Float[np.ndarray, "outputs inputs"], after: Float[np.ndarray, "outputs inputs"], energy: float = ENERGY
) -> Outside:
    """The change between two kernels, in float64.

    A random ΔW whose entries are independent, with one variance, has 1 - k/d of its energy outside k directions of d, in the mean.

    Args:
        energy: share of ||W||^2 that the kept singular vectors hold, from 0 to 1.
    """
    w, change = np.asarray(before, np.float64), np.asarray(after, np.float64) - np.asarray(before, np.float64)
    outputs, inputs = w.shape
    # Of the smaller Gram matrix: W W^T = U S^2 U^T, or W^T W = V S^2 V^T and U = W V / S.
    values, vectors = np.linalg.eigh(w @ w.T if outputs <= inputs else w.T @ w)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    count = min(int(np.searchsorted(np.cumsum(values), energy * values.sum() * (1 - 1e-12))) + 1, len(values))
    left = vectors[:, :count] if outputs <= inputs else w @ vectors[:, :count] / np.sqrt(np.maximum(values[:count], 1e-300))
    whole = np.sum(change**2)
    inside = np.sum((left.T @ change) ** 2)
    share = float(max(1 - inside / whole, 0.0)) if whole > 0 else float("nan")
    return Outside(share, 1 - count / outputs, count, float(np.sqrt(whole / max(np.sum(w**2), 1e-300))))


def separation(safe: Float[np.ndarray, "L N D"], unsafe: Float[np.ndarray, "L M D"]) -> Float[np.ndarray, "L"]:
    """Distance of the two classes' means over their spread, in each layer: the root of the mean squared distance to the own class's
    mean, over all rows. L2; nan where there is no spread."""
    a, b = np.asarray(safe, np.float64), np.asarray(unsafe, np.float64)
    apart = np.linalg.norm(a.mean(axis=1) - b.mean(axis=1), axis=1)
    squares = [np.sum((x - x.mean(axis=1, keepdims=True)) ** 2, axis=(1, 2)) for x in (a, b)]
    spread = np.sqrt(sum(squares) / (a.shape[1] + b.shape[1]))
    return np.divide(apart, spread, out=np.full(len(a), np.nan), where=spread > 0)
