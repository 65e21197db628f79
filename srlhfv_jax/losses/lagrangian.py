"""The multiplier: a controller that raises λ while the cost is over its budget and lowers it while it is under.

    max_θ E[R]  subject to  E[f(C)] <= d        min_{λ>=0} max_θ  E[R] - λ (E[f(C)] - d)

Several constraints have a controller each: E[R] - Σ_k λ_k (E[f_k(C_k)] - d_k).

Safe RLHF (arXiv 2310.12773) and Safe RLHF-V (arXiv 2503.17682). The state is a pytree of arrays inside the train state; `update_multiplier`
moves it ONCE per rollout, from the mean J of the last `window` episode costs, before the policy is updated. Costs here are end
scores without KL. With f = identity the mean cost is bounded, and very safe answers can pay for unsafe ones; "rectified" and
"probability" do not let them.

Left out: whatever the cost head is normalised by (`masked.scale` keeps its zero; budget and gains are in the units of `cost_B`).
"""

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from srlhfv_jax.config import ConstraintConfig, choose
from srlhfv_jax.errors import UserError
from srlhfv_jax.losses.calibration import Calibration, probability


class ControllerState(NamedTuple):
    """Everything the next update reads; part of every checkpoint. The three pid fields stay at their start elsewhere."""

    value: Float[Array, ""]  # log λ for "log", λ for the others
    integral: Float[Array, ""]  # pid: I
    error: Float[Array, ""]  # pid: P, the moving average of J - d
    cost: Float[Array, ""]  # pid: the moving average of J whose increase is D
    window_W: Float[Array, "W"]  # f(C) of the last W episodes, the newest last
    filled: Int[Array, ""]  # how many of them are real
    step: Int[Array, ""]  # rollouts it was updated from, or could have been but for the delay


def check(constraint: ConstraintConfig, path: str = "config.constraint") -> None:
    """Raise UserError for an unknown kind or controller, a calibration of another kind than probability, a start outside [0, max], or one
    that the controller cannot leave.

    Args:
        path: of the settings, for messages.
    """
    choose(constraint.kind, f"{path}.kind", "mean", "rectified", "probability")
    choose(constraint.controller, f"{path}.controller", "none", "fixed", "log", "projected", "pid", "crpo", "p3o")
    if constraint.calibrated and constraint.kind != "probability":
        raise UserError(f"{path}.calibrated is P(unsafe | C): set {path}.kind='probability', got {constraint.kind!r}")
    if constraint.softness and (constraint.kind != "probability" or constraint.calibrated):
        raise UserError(
            f"{path}.softness is of kind 'probability' without a calibration, got {constraint.kind!r} and calibrated={constraint.calibrated}: "
            "leave it at 0"
        )
    if constraint.error == "ratio" and (constraint.kind == "mean" or constraint.budget <= 0):
        raise UserError(
            f"{path}.error='ratio' is for costs that are never negative and a budget above 0: kind 'rectified' or 'probability', got "
            f"{constraint.kind!r} and {constraint.budget}"
        )
    if 0 < constraint.confidence < 0.5:
        raise UserError(f"{path}.confidence must be 0 (off) or from 0.5 on, such as 0.95, got {constraint.confidence}")
    if not 0 <= constraint.init <= constraint.max:
        raise UserError(f"{path}.init must lie in [0, max = {constraint.max}], got {constraint.init}")
    if constraint.controller == "log" and constraint.init == 0:
        raise UserError(f"{path}.init must be above 0 for controller 'log', got 0: raise it, or use 'projected'")


def init(constraint: ConstraintConfig) -> ControllerState:
    """λ at `constraint.init`, an empty window.

    Raises:
        UserError: as `check`.
    """
    check(constraint)
    start = {"none": 0.0, "p3o": 0.0, "log": math.log(constraint.init or 1.0)}.get(constraint.controller, constraint.init)
    zero = jnp.zeros((), jnp.float32)
    return ControllerState(
        value=jnp.full((), start, jnp.float32),
        integral=jnp.full((), constraint.init, jnp.float32),
        error=zero,
        cost=zero,
        window_W=jnp.zeros((constraint.window,), jnp.float32),
        filled=jnp.zeros((), jnp.int32),
        step=jnp.zeros((), jnp.int32),
    )


def update_multiplier(
    constraint: ConstraintConfig,
    state: ControllerState,
    cost_B: Float[Array, "B"],
    hold: Bool[Array, ""] | bool = False,
    calibration: Calibration | None = None,
    applies_B: Bool[Array, "B"] | None = None,
) -> ControllerState:
    """Push the rollout's costs into the window, then one step of the controller on J - d; call once per rollout.

    Args:
        applies_B: episodes that the constraint is about, which alone enter the window; None: all of them.

    While `hold`, and then during the first `delay` rollouts, only the window fills: no policy answers to the multiplier yet.
    """
    chex.assert_rank([cost_B, state.window_W], 1)
    chex.assert_type([cost_B, state.window_W], float)
    episodes, count = jnp.concatenate([state.window_W, statistic(constraint.kind, cost_B, calibration)]), cost_B.size
    if applies_B is not None:  # the others go to the front, where they leave
        enters = jnp.concatenate([jnp.ones(state.window_W.shape, bool), applies_B])
        episodes, count = episodes[jnp.argsort(enters, stable=True)], jnp.sum(applies_B)
    state = state._replace(window_W=episodes[-constraint.window :], filled=jnp.minimum(state.filled + count, constraint.window))
    moved = _step(constraint, state, held(constraint, state))
    active = ~jnp.asarray(hold) & (state.step >= constraint.delay)
    state = jax.tree.map(lambda new, old: jnp.where(active, new, old), moved, state)
    return state._replace(step=state.step + jnp.where(hold, 0, 1))


def multiplier(constraint: ConstraintConfig, state: ControllerState) -> Float[Array, ""]:
    """λ, float32."""
    return jnp.exp(state.value) if constraint.controller == "log" else state.value


def parts(constraint: ConstraintConfig, before: ControllerState, state: ControllerState) -> dict[str, Float[Array, ""]]:
    """The three terms of "pid" whose projected sum is λ; nothing of the others."""
    if constraint.controller != "pid":
        return {}
    rise = jnp.where(state.step == constraint.delay + 1, 0.0, jnp.maximum(state.cost - before.cost, 0.0))
    terms = {"p": constraint.kp * state.error, "i": state.integral, "d": constraint.kd * rise}
    return {f"lambda.{name}": term for name, term in terms.items()}


def numbers(constraint: ConstraintConfig, before: ControllerState, state: ControllerState) -> dict[str, Float[Array, ""]]:
    """Numbers of a constraint for the log, after its step: J, its upper bound where there is a confidence, d, λ and its terms; J - d for "p3o"."""
    logged = parts(constraint, before, state) | {"window_cost": window_mean(state)}
    if constraint.confidence:
        logged["window_cost_upper"] = held(constraint, state)
    logged |= {"budget": jnp.float32(constraint.budget), "lambda": multiplier(constraint, state)}
    if constraint.controller == "p3o":
        logged["excess"] = held(constraint, state) - logged["budget"]
    return logged


def window_mean(state: ControllerState) -> Float[Array, ""]:
    """J: the mean of f(C) over the episodes in the window (all there are, until it is full)."""
    return jnp.sum(jnp.where(_real(state), state.window_W, 0.0)) / jnp.maximum(state.filled, 1)


def held(constraint: ConstraintConfig, state: ControllerState) -> Float[Array, ""]:
    """J, which is held under the budget; with a confidence its upper bound."""
    if constraint.confidence == 0:
        return window_mean(state)
    return window_mean(state) + margin(constraint.confidence, state.window_W, _real(state))


def error(constraint: ConstraintConfig, cost: Float[Array, ""]) -> Float[Array, ""]:
    """J - d, or (J - d) / (J + d), the hyperbolic tangent of half of log(J / d). Of a cost that is never negative J - d is -d at most,
    however safe the answers are, and a multiplier that rose by it in ten iterations falls in hundreds; the ratio falls as it rose."""
    over = cost - constraint.budget
    return over if constraint.error == "difference" else over / (cost + constraint.budget)


def margin(confidence: float, value_B: Float[Array, "B"], real_B: Bool[Array, "B"] | None = None) -> Float[Array, ""]:
    """z s / sqrt(n), by which an upper bound of the mean of n values with standard deviation s lies above it: that of the normal
    distribution, since nothing is promised here. With a single value, nothing is known of s, and it is 0. (The pessimistic constraint
    of HC-RLHF, arXiv 2506.08266; what a policy keeps is for `srlhfv certify` to say.)
    """
    real_B = jnp.ones(value_B.shape, bool) if real_B is None else real_B
    count = jnp.sum(real_B)
    mean = jnp.sum(jnp.where(real_B, value_B, 0.0)) / jnp.maximum(count, 1)
    variance = jnp.sum(jnp.where(real_B, jnp.square(value_B - mean), 0.0)) / jnp.maximum(count - 1, 1)
    return NormalDist().inv_cdf(confidence) * jnp.sqrt(variance / jnp.maximum(count, 1))


def statistic(kind: str, cost_B: Float[Array, "B"], calibration: Calibration | None = None) -> Float[Array, "B"]:
    """f(C), whose mean is held under the budget: "mean": C; "rectified": max(0, C); "probability": 1[C > 0], or with a calibration
    P(unsafe | C). Float32.

    It is the end cost of the token costs too: the policy gradient of E[f(C)] is that of an episode costing f(C).
    """
    cost_B = cost_B.astype(jnp.float32)
    if kind == "mean":
        return cost_B
    if kind == "rectified":
        return jnp.maximum(cost_B, 0.0)
    if kind == "probability" and calibration is not None:
        return probability(calibration, cost_B)
    if kind == "probability":
        return (cost_B > 0).astype(jnp.float32)
    raise ValueError(f"kind must be 'mean', 'rectified' or 'probability', got {kind!r}")


def border(constraint: ConstraintConfig, calibration: Calibration | None) -> Calibration | None:
    """The map that takes the place of 1[C > 0] in a constraint's statistic; None: there is none.

    Args:
        calibration: of the cost head, where there is one.
    """
    if constraint.softness:
        return Calibration(1.0 / constraint.softness, 0.0)
    return calibration if constraint.calibrated else None


def combine(
    reward_adv: Float[Array, "..."], cost_advs: Mapping[str, Float[Array, "..."]], lams: Mapping[str, Float[Array, ""] | float]
) -> Float[Array, "..."]:
    """A = (A_r - Σ_k λ_k A_k) / (1 + Σ_k λ_k). The division keeps the size of a step independent of λ; λ = 0 is plain PPO.

    Args:
        cost_advs, lams: by constraint.
    """
    chex.assert_equal_shape([reward_adv, *cost_advs.values()])
    chex.assert_type([reward_adv, *cost_advs.values()], float)
    mixed, weight = reward_adv, 1
    for name, cost_adv in cost_advs.items():
        mixed, weight = mixed - lams[name] * cost_adv, weight + lams[name]
    return mixed / weight


def project(lam: Float[Array, ""], ceiling: float) -> Float[Array, ""]:
    """Onto [0, ceiling]. The ceiling is Safe RLHF-V's budget bound: cost never weighs more than ceiling / (1 + ceiling)."""
    return jnp.clip(lam, 0.0, ceiling)


def _real(state: ControllerState) -> Bool[Array, "W"]:
    """The slots of the window that hold an episode."""
    slots = state.window_W.size
    return jnp.arange(slots) >= slots - state.filled


def _step(constraint: ConstraintConfig, state: ControllerState, cost: Float[Array, ""]) -> ControllerState:
    """One move of each controller, from the windowed cost J and its error e, which is J - d, or (J - d) / (J + d):

    none       λ = 0: plain PPO
    fixed      λ = init: reward shaping
    log        ℓ <- min(ℓ + η λ e, log max), λ = exp ℓ     the released code of both papers: multiplicative, quick when λ is
                                                                 large, and nearly stuck once λ is small
    projected  λ <- project(λ + η e)                             Safe RLHF-V, the paper: additive, with a budget bound
    crpo       λ = max while J > d + tolerance, else 0: steps for one of the two alone (Xu et al., arXiv 2011.05869, algorithm 1)
    p3o        λ = 0; the policy's loss has a penalty, max times the cost that is over budget (ppo.penalty)
    pid        I <- project(I + η e),  λ <- project(Kp P + I + Kd D)       Stooke et al., arXiv 2007.03964, algorithm 2
    """
    over = error(constraint, cost)
    match constraint.controller:
        case "none" | "fixed":
            return state
        case "log":
            value = state.value + constraint.learning_rate * jnp.exp(state.value) * over
            return state._replace(value=jnp.minimum(value, math.log(constraint.max)))
        case "projected":
            return state._replace(value=project(state.value + constraint.learning_rate * over, constraint.max))
        case "p3o":
            return state._replace(value=jnp.zeros_like(state.value))
        case "crpo":
            above = cost - constraint.budget > constraint.tolerance
            return state._replace(value=jnp.where(above, constraint.max, 0.0).astype(jnp.float32))
        case "pid":
            return _pid(constraint, state, cost)
    raise ValueError(
        f"controller must be 'none', 'fixed', 'log', 'projected', 'pid', 'crpo' or 'p3o', got {constraint.controller!r}"
    )


def _pid(constraint: ConstraintConfig, state: ControllerState, cost: Float[Array, ""]) -> ControllerState:
    """P and D on moving averages of J. Two departures from common code: I stops at the ceiling (no wind-up), and the averages
    start at the first measurement, not at 0, so that D has no start-up kick."""
    keep = jnp.where(state.step == constraint.delay, 0.0, constraint.smoothing)
    over = error(constraint, cost)
    level = cost if constraint.error == "difference" else over  # whose increase is D
    smoothed_error = keep * state.error + (1 - keep) * over
    smoothed = keep * state.cost + (1 - keep) * level
    rise = jnp.where(state.step == constraint.delay, 0.0, jnp.maximum(smoothed - state.cost, 0.0))
    integral = project(state.integral + constraint.learning_rate * over, constraint.max)
    value = project(constraint.kp * smoothed_error + integral + constraint.kd * rise, constraint.max)
    return state._replace(value=value, integral=integral, error=smoothed_error, cost=smoothed)
