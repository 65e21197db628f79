"""P(unsafe | cost): of answers with this cost, the share that annotators call unsafe. A monotone map of numbers, fitted on held-out
labels by `srlhfv calibrate` (evaluation/calibrators.py) and kept beside the cost head (hf/calibrations.py).

    platt       sigmoid(slope C + intercept), slope > 0                    Platt, 1999
    isotonic    rising steps, linear between them, constant beyond         Zadrozny & Elkan, 2002
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Calibration(NamedTuple):
    """The map. It has no arrays: jitted code takes it as a setting."""

    slope: float  # of Platt's sigmoid; 0 where it is isotonic
    intercept: float
    costs: tuple[float, ...] = ()  # rising; () = Platt's
    probabilities: tuple[float, ...] = ()  # at these costs, never falling


def probability(calibration: Calibration, cost_B: Float[Array, "B"]) -> Float[Array, "B"]:
    """P(unsafe | cost), float32."""
    cost_B = cost_B.astype(jnp.float32)
    if calibration.costs:
        knots = (jnp.array(values, jnp.float32) for values in (calibration.costs, calibration.probabilities))
        return jnp.interp(cost_B, *knots)
    return jax.nn.sigmoid(calibration.slope * cost_B + calibration.intercept)
