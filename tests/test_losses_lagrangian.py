"""The multiplier's controllers: closed forms, direction, bounds, window, delay."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srlhfv_jax.config import ConstraintConfig
from srlhfv_jax.errors import UserError
from srlhfv_jax.losses import lagrangian
from srlhfv_jax.losses.calibration import Calibration

BASE = ConstraintConfig(
    kind="mean", calibrated=False, softness=0.0, budget=-0.25, confidence=0.0, error="difference", controller="log", init=0.8, max=5.0, learning_rate=0.1,
    kp=0.5, kd=0.3, smoothing=0.6, window=4, delay=0, tolerance=0.0,
)  # fmt: skip
MOVING = ["log", "projected", "pid"]
COST_B = jnp.array([0.5, 1.25, -0.75, 2.5])


def run(constraint, rollouts, state=None):
    """λ after each rollout."""
    state = lagrangian.init(constraint) if state is None else state
    step = jax.jit(lambda state, cost_B: lagrangian.update_multiplier(constraint, state, cost_B))
    lambdas = []
    for cost_B in rollouts:
        state = step(state, jnp.asarray(cost_B, jnp.float32))
        lambdas.append(float(lagrangian.multiplier(constraint, state)))
    return lambdas, state


def test_the_window_is_a_queue_of_the_last_costs_and_its_mean_counts_only_real_ones():
    constraint = dataclasses.replace(BASE, window=5)
    state = lagrangian.init(constraint)
    seen = []
    for cost_B in ([0.5, 1.25], [2.5], [-0.75, 0.125, 3.5], [1.0, 2.0, 3.0, 4.0, 5.0, 6.5, 7.25]):
        seen += cost_B
        state = lagrangian.update_multiplier(constraint, state, jnp.array(cost_B))
        np.testing.assert_allclose(lagrangian.window_mean(state), np.mean(seen[-5:]), rtol=1e-6)
        assert state.filled == min(len(seen), 5)


@pytest.mark.parametrize("controller", MOVING)
def test_lambda_rises_over_budget_and_falls_under_it(controller):
    constraint = dataclasses.replace(BASE, controller=controller, budget=0.3)
    _, state = run(constraint, [COST_B * 0 + 0.3])  # on budget: where each controller rests
    rest = lagrangian.multiplier(constraint, state)
    assert run(constraint, [COST_B * 0 + 0.7], state)[0][0] > rest
    assert run(constraint, [COST_B * 0 - 0.1], state)[0][0] < rest


def test_log_controller_has_the_closed_form_of_the_reference_rule():
    lambdas, _ = run(BASE, [COST_B])
    np.testing.assert_allclose(lambdas, [0.8 * np.exp(0.1 * 0.8 * (0.875 + 0.25))], rtol=1e-6)


def test_log_controller_stops_at_the_maximum():
    lambdas, state = run(dataclasses.replace(BASE, learning_rate=50.0), [COST_B, COST_B])
    np.testing.assert_allclose(lambdas, [5.0, 5.0], rtol=1e-6)
    np.testing.assert_allclose(state.value, np.log(5.0), rtol=1e-6)


def test_projected_controller_is_dual_ascent_clipped_to_its_bounds():
    constraint = dataclasses.replace(BASE, controller="projected")
    lambdas, _ = run(constraint, [COST_B, COST_B])
    np.testing.assert_allclose(lambdas, [0.8 + 0.1125, 0.8 + 0.225], rtol=1e-6)
    assert run(constraint, [COST_B + 100.5])[0] == [5.0]
    assert run(constraint, [COST_B - 100.5])[0] == [0.0]


def test_pid_controller_equals_a_loop_of_its_equations():
    constraint = dataclasses.replace(BASE, controller="pid", window=1, max=1.4)
    costs = [0.75, 1.5, 0.2, -0.9, 2.25, 2.5, -3.5]
    lambdas, _ = run(constraint, [[c] for c in costs])
    integral, error, smoothed = 0.8, None, None
    for cost, got in zip(costs, lambdas, strict=True):
        over, last = cost + 0.25, smoothed
        error = over if error is None else 0.6 * error + 0.4 * over
        smoothed = cost if last is None else 0.6 * last + 0.4 * cost
        rise = 0.0 if last is None else max(0.0, smoothed - last)
        integral = min(max(integral + 0.1 * over, 0.0), 1.4)
        np.testing.assert_allclose(got, min(max(0.5 * error + integral + 0.3 * rise, 0.0), 1.4), rtol=1e-5, atol=1e-6)


RATIO = dataclasses.replace(BASE, kind="rectified", error="ratio", controller="projected", window=1, init=2.0, max=9.0)


def test_by_the_ratio_a_multiplier_falls_at_a_tenth_of_the_budget_as_it_rises_at_ten_times_it():
    constraint = dataclasses.replace(RATIO, budget=0.04)
    up, down = (run(constraint, [[cost]])[0][0] for cost in (0.4, 0.004))
    np.testing.assert_allclose([up - 2.0, 2.0 - down], [0.1 * 9 / 11] * 2, rtol=1e-5)
    np.testing.assert_allclose(run(constraint, [[0.0]] * 3)[0], [1.9, 1.8, 1.7], rtol=1e-6)
    slow = dataclasses.replace(constraint, error="difference")
    np.testing.assert_allclose(run(slow, [[0.0]] * 3)[0], [1.996, 1.992, 1.988], rtol=1e-6)


@pytest.mark.parametrize("controller", ("projected", "pid", "log"))
def test_by_the_ratio_the_unit_of_a_cost_does_not_count(controller):
    costs = [[0.75], [1.5], [0.0], [0.03], [2.25]]
    constraint = dataclasses.replace(RATIO, controller=controller, budget=0.375)
    other = dataclasses.replace(constraint, budget=40 * 0.375)
    scaled = [[40 * cost] for (cost,) in costs]
    np.testing.assert_allclose(run(constraint, costs)[0], run(other, scaled)[0], rtol=1e-5)


@pytest.mark.parametrize(("kind", "budget"), [("mean", 0.5), ("rectified", 0.0)])
def test_the_ratio_is_refused_where_it_has_no_meaning(kind, budget):
    with pytest.raises(UserError, match=f"config.constraint.error='ratio' is for costs .* got '{kind}' and {budget}"):
        lagrangian.check(dataclasses.replace(RATIO, kind=kind, budget=budget))


def test_pid_has_no_start_up_kick():
    # Exactly at the budget from the first rollout on: neither P nor D has anything to say, λ stays at its start.
    constraint = dataclasses.replace(BASE, controller="pid", budget=1.75)
    np.testing.assert_allclose(run(constraint, [[1.75, 1.75]] * 3)[0], [0.8] * 3, rtol=1e-6)


def test_pid_does_not_wind_up():
    # However long the cost was over budget, I is at most the ceiling, so λ leaves it at the first rollout under budget.
    constraint = dataclasses.replace(BASE, controller="pid", window=1, smoothing=0.0, kp=0.1, kd=0.0)
    lambdas, state = run(constraint, [[30.5]] * 20 + [[-2.25]])
    assert lambdas[-2] == 5.0 and lambdas[-1] < 5.0
    assert state.integral <= 5.0


@pytest.mark.parametrize(("controller", "expected"), [("none", 0.0), ("fixed", 0.8)])
def test_none_and_fixed_never_move_but_watch_the_cost(controller, expected):
    lambdas, state = run(dataclasses.replace(BASE, controller=controller), [COST_B, COST_B + 0.5])
    np.testing.assert_allclose(lambdas, [expected] * 2, rtol=1e-6)
    np.testing.assert_allclose(lagrangian.window_mean(state), 0.875 + 0.5, rtol=1e-6)


@pytest.mark.parametrize("controller", MOVING)
def test_during_the_delay_only_the_window_fills(controller):
    constraint = dataclasses.replace(BASE, controller=controller, delay=2)
    lambdas, state = run(constraint, [COST_B[:1], COST_B[1:2]])
    np.testing.assert_allclose(lambdas, [0.8, 0.8], rtol=1e-6)
    assert state.filled == 2
    # The third rollout moves λ as a first one would that had seen the same window.
    late = run(constraint, [COST_B[2:]], state)[0]
    np.testing.assert_allclose(late, run(dataclasses.replace(constraint, delay=0), [COST_B])[0], rtol=1e-6)


def test_the_three_statistics():
    cost_B = jnp.array([-1.5, 0.0, 0.25, 3.5])
    np.testing.assert_array_equal(lagrangian.statistic("mean", cost_B), cost_B)
    np.testing.assert_array_equal(lagrangian.statistic("rectified", cost_B), [0.0, 0.0, 0.25, 3.5])
    np.testing.assert_array_equal(lagrangian.statistic("probability", cost_B), [0.0, 0.0, 1.0, 1.0])


def test_a_soft_border_counts_an_answer_by_its_distance_from_it():
    soft = dataclasses.replace(BASE, kind="probability", softness=0.5)
    cost_B = jnp.array([-1.5, 0.0, 0.25])
    expected = 1 / (1 + np.exp(-np.asarray(cost_B) / 0.5))
    np.testing.assert_allclose(lagrangian.statistic("probability", cost_B, lagrangian.border(soft, None)), expected, rtol=1e-6)
    assert lagrangian.border(dataclasses.replace(BASE, kind="probability"), Calibration(1.5, -0.25)) is None
    for other in ({"kind": "rectified"}, {"calibrated": True}):
        with pytest.raises(UserError, match="config.constraint.softness is of kind 'probability' without a calibration"):
            lagrangian.check(dataclasses.replace(soft, **other))


def test_very_safe_answers_pay_for_unsafe_ones_under_the_mean_only():
    cost_B = jnp.array([-9.5, -9.5, 2.5, 2.5])
    means = {}
    for kind in ("mean", "rectified", "probability"):
        _, state = run(dataclasses.replace(BASE, kind=kind), [cost_B])
        means[kind] = float(lagrangian.window_mean(state))
    assert means == {"mean": -3.5, "rectified": 1.25, "probability": 0.5}


@pytest.mark.parametrize("controller", MOVING)
def test_state_restored_from_its_leaves_goes_on_identically(controller):
    constraint = dataclasses.replace(BASE, controller=controller)
    rollouts = [COST_B, COST_B - 1.5, COST_B * 0.3]
    whole, last = run(constraint, rollouts)
    _, middle = run(constraint, rollouts[:1])
    leaves, tree = jax.tree.flatten(middle)
    restored = jax.tree.unflatten(tree, [jnp.asarray(np.array(leaf)) for leaf in leaves])
    rest, again = run(constraint, rollouts[1:], restored)
    assert rest == whole[1:]
    jax.tree.map(np.testing.assert_array_equal, last, again)


@pytest.mark.parametrize("controller", ["none", "fixed", *MOVING])
def test_update_keeps_shapes_and_types_so_that_it_can_be_carried(controller):
    constraint = dataclasses.replace(BASE, controller=controller)
    state = lagrangian.init(constraint)
    after = jax.eval_shape(lambda s: lagrangian.update_multiplier(constraint, s, COST_B), state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(lambda x: (x.shape, x.dtype), after)
    assert lagrangian.multiplier(constraint, state).dtype == jnp.float32


@pytest.mark.parametrize("controller", MOVING)
def test_the_controller_finds_the_multiplier_that_meets_the_budget(controller):
    # A policy whose mean cost is 2.5 - 1.25 λ; the budget 0.5 asks for λ = 1.6.
    constraint = dataclasses.replace(BASE, controller=controller, budget=0.5, window=1, kd=0.1, kp=0.2)
    state = lagrangian.init(constraint)

    def rollout(state, _):
        cost_B = 2.5 - 1.25 * lagrangian.multiplier(constraint, state)[None]
        return lagrangian.update_multiplier(constraint, state, cost_B), None

    state, _ = jax.lax.scan(rollout, state, None, length=300)
    np.testing.assert_allclose(lagrangian.multiplier(constraint, state), 1.6, rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"controller": "sgd"}, "config.constraint.controller must be one of .*got 'sgd'"),
        ({"kind": "median"}, "config.constraint.kind must be one of .*got 'median'"),
        ({"init": 6.0}, r"config.constraint.init must lie in \[0, max = 5.0\], got 6.0"),
        ({"init": 0.0}, "config.constraint.init must be above 0 for controller 'log'"),
    ],
)
def test_settings_that_make_no_sense_are_named(change, message):
    with pytest.raises(UserError, match=message):
        lagrangian.init(dataclasses.replace(BASE, **change))


@pytest.mark.parametrize("controller", MOVING)
def test_while_the_policy_stands_still_only_the_window_fills(controller):
    constraint = dataclasses.replace(BASE, controller=controller, delay=1)
    held = lagrangian.update_multiplier(constraint, lagrangian.init(constraint), COST_B[:2], jnp.bool_(True))
    assert held.step == 0 and held.filled == 2
    assert float(lagrangian.multiplier(constraint, held)) == pytest.approx(0.8)
    # Then all goes as it would have from the start, but for what the window holds.
    after = run(constraint, [COST_B[2:3], COST_B[3:]], held)[0]
    assert after == pytest.approx([0.8, run(dataclasses.replace(constraint, delay=0), [COST_B])[0][0]], rel=1e-6)


def test_a_calibrated_probability_is_what_the_window_holds_and_the_budget_bounds():
    """slope 2 and intercept ln 3 at costs 0 and -ln 3 / 2: probabilities 3/4 and 1/2."""
    constraint = dataclasses.replace(BASE, kind="probability", calibrated=True, controller="projected", budget=0.125)
    known = Calibration(2.0, math.log(3.0))
    cost_B = jnp.array([0.0, -math.log(3.0) / 2])
    np.testing.assert_allclose(lagrangian.statistic("probability", cost_B, known), [0.75, 0.5], rtol=1e-6)
    state = lagrangian.update_multiplier(constraint, lagrangian.init(constraint), cost_B, calibration=known)
    assert float(lagrangian.window_mean(state)) == pytest.approx(0.625)
    assert float(state.value) == pytest.approx(0.8 + 0.1 * (0.625 - 0.125))


def test_without_a_calibration_a_probability_is_the_sign():
    assert lagrangian.statistic("probability", COST_B).tolist() == [1, 1, 0, 1]


def test_only_a_probability_can_be_calibrated():
    with pytest.raises(UserError, match="set config.constraint.kind='probability', got 'mean'"):
        lagrangian.init(dataclasses.replace(BASE, calibrated=True))


def test_with_a_confidence_the_controller_follows_the_upper_bound_of_the_mean():
    """Costs 0.5, 1.25, -0.75, 2.5 have mean 0.875 and standard deviation s = 1.36...: J + 1.645 s / 2."""
    constraint = dataclasses.replace(BASE, controller="projected", confidence=0.95)
    state = lagrangian.update_multiplier(constraint, lagrangian.init(constraint), COST_B)
    bound = 0.875 + 1.6448536 * np.std(np.asarray(COST_B), ddof=1) / 2
    assert float(lagrangian.window_mean(state)) == pytest.approx(0.875)
    assert float(lagrangian.held(constraint, state)) == pytest.approx(bound, rel=1e-5)
    assert float(state.value) == pytest.approx(0.8 + 0.1 * (bound + 0.25), rel=1e-5)


def test_the_bound_counts_only_real_episodes_and_is_the_mean_at_one_half():
    constraint = dataclasses.replace(BASE, controller="projected", confidence=0.9)
    state = lagrangian.update_multiplier(constraint, lagrangian.init(constraint), COST_B[:2])
    assert float(lagrangian.held(constraint, state)) == pytest.approx(0.875 + 1.2815516 * 0.5303301 / 2**0.5, rel=1e-5)
    at_half = dataclasses.replace(constraint, confidence=0.5)
    assert float(lagrangian.held(at_half, state)) == pytest.approx(0.875)
    assert float(lagrangian.margin(0.95, COST_B[:1])) == 0


def test_a_confidence_below_one_half_is_refused():
    with pytest.raises(UserError, match="must be 0 .off. or from 0.5 on, such as 0.95, got 0.05"):
        lagrangian.init(dataclasses.replace(BASE, confidence=0.05))
