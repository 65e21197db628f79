"""A whole PPO-Lagrangian iteration, from a rollout to new parameters: what moves the policy, and what changes nothing in it."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh
from tiny_ppo import R, Step, models, rolled, static, step
from tiny_vlm import CONFIG

from srlhfv_jax.batches import Experience, Rollout
from srlhfv_jax.losses.calibration import Calibration
from srlhfv_jax.models import sequences
from srlhfv_jax.parallel.mesh import AXES
from srlhfv_jax.ppo_lag import experience, roles, update as ppo
from srlhfv_jax.ppo_lag.update import Multipliers, Training

STATISTICS = {"mean": lambda cost: cost, "rectified": lambda cost: max(cost, 0.0), "probability": lambda cost: float(cost > 0)}


def run(sharing: str = "shared", *, rollout: Rollout | None = None, trees: dict | None = None, how=None, **changes) -> Step:
    """An iteration on `rolled`, or its rollout in another form; `how` goes to `step`."""
    batch, sampled = rolled()
    rollout = sampled if rollout is None else rollout
    return step(static(sharing, **changes), rollout, batch.images, models(sharing) if trees is None else trees, **how or {})


@functools.cache
def plain() -> Step:
    return run(how={"streams": True})


def with_heads(change) -> dict[str, dict]:
    """`models`, the kernels of both heads of the scorer and of the critic changed by `change(reward, cost)`."""
    trees = models()
    for name in ("scorer", "critic"):
        kernels = change(*(trees[name]["heads"][head]["kernel"] for head in ("reward", "cost")))
        trees[name] = trees[name] | {"heads": {head: {"kernel": x} for head, x in zip(("reward", "cost"), kernels)}}
    return trees


def adv(experience, stream: str):
    return experience.streams[f"{stream}_critic"].adv_BR


def assert_close(one, other, atol=2e-5):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=atol, rtol=2e-4)


@functools.cache
def scored_alone() -> Experience:
    """`rolled`, scored without the penalty of answers that were cut."""
    batch, rollout = rolled()
    known = static(**{"ppo.missing_eos_penalty": 0.0})
    return jax.jit(functools.partial(experience.score, known, streams=True))(models(), rollout, batch.images)


class ByRole(NamedTuple):
    """What the roles say of `rolled`, asked for one by one."""

    end: dict[str, jax.Array]  # the scorer's heads
    value: dict[str, jax.Array]  # the critic's, before each token
    reference: jax.Array


@functools.cache
def by_role() -> ByRole:
    batch, rollout = rolled()

    def ask(function, tree: dict, **how):
        return function(CONFIG, tree, rollout, sequences.encode(CONFIG, tree, batch.images), **how)

    @jax.jit
    def read(trees: dict[str, dict]) -> ByRole:
        logp_BR, _ = ask(sequences.response_logp, trees["reference"], never_V=static().vocabulary.never_V(CONFIG.text.vocab))
        value_BR1 = ask(sequences.response_scores, trees["critic"])
        values = {name: jnp.where(rollout.response_mask_BR, x_BR1[:, :-1], 0.0) for name, x_BR1 in value_BR1.items()}
        return ByRole(ask(sequences.end_scores, trees["scorer"]), values, logp_BR)

    return read(models())


def test_each_score_is_read_by_the_head_of_its_name():
    np.testing.assert_allclose(scored_alone().reward_B, by_role().end["reward"], atol=1e-4)
    np.testing.assert_allclose(scored_alone().costs_B["cost"], by_role().end["cost"], atol=1e-4)


def test_each_critic_reads_its_own_head_before_each_token():
    for name, value_BR in by_role().value.items():
        np.testing.assert_allclose(scored_alone().streams[f"{name}_critic"].value_BR, value_BR, atol=1e-4)


def test_kl_is_to_the_reference():
    np.testing.assert_allclose(scored_alone().ref_logp_BR, by_role().reference, atol=1e-4)
    assert np.abs(scored_alone().ref_logp_BR - rolled()[1].logp_BR).max() > 0.1


def test_without_a_constraint_the_costs_move_nothing_in_the_policy():
    one = run(**{"constraint.controller": "none"})
    other = run(trees=with_heads(lambda reward, cost: (reward, 7 * cost)), **{"constraint.controller": "none"})
    assert float(one.metrics["lambda"]) == 0
    np.testing.assert_allclose(other.experience.costs_B["cost"], 7 * one.experience.costs_B["cost"], rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, one.params["policy"], other.params["policy"])
    assert float(one.metrics["cost_critic_loss"]) != float(other.metrics["cost_critic_loss"])


def test_a_fixed_multiplier_is_ppo_on_the_reward_less_lambda_times_the_cost():
    """Heads are linear: (R - 0.7 C) / 1.7 is the score of a head, and the same mix of both values is what its critic predicts."""
    constrained = run(**{"constraint.controller": "fixed"})
    shaped = with_heads(lambda reward, cost: ((reward - 0.7 * cost) / 1.7, cost))
    rewarded = run(trees=shaped, **{"constraint.controller": "none", "ppo.missing_eos_penalty": 0.3 / 1.7})
    assert float(constrained.metrics["lambda"]) == pytest.approx(0.7) and float(rewarded.metrics["lambda"]) == 0
    assert_close(constrained.params["policy"], rewarded.params["policy"], atol=1e-6)


def test_the_multiplier_moves_once_by_the_mean_cost_and_the_update_reads_what_it_is_then():
    one = run(**{"constraint.learning_rate": 0.3})
    expected = np.clip(0.7 + 0.3 * (float(jnp.mean(one.experience.costs_B["cost"])) - (-0.2)), 0.0, 5.0)
    np.testing.assert_allclose(one.metrics["lambda"], expected, rtol=1e-5)
    np.testing.assert_allclose(one.state.extra.controllers["cost"].value, expected, rtol=1e-5)
    at_rest = run(**{"constraint.controller": "fixed", "constraint.init": float(expected)})
    assert_close(one.params["policy"], at_rest.params["policy"], atol=1e-6)


@pytest.mark.parametrize("kind", STATISTICS)
def test_the_last_token_of_a_row_costs_the_statistic_that_is_bounded_and_every_token_the_kl(kind):
    batch, rollout = rolled()
    score = jax.jit(functools.partial(experience.score, static(**{"constraint.kind": kind}), streams=False))
    scored = score(models(), rollout, batch.images)
    costs = np.asarray(scored.costs_B["cost"])
    assert costs.min() < 0 < costs.max()
    for row, length in enumerate(np.asarray(rollout.response_mask_BR).sum(1)):
        kl = np.asarray(rollout.logp_BR)[row, :length] - np.asarray(scored.ref_logp_BR)[row, :length]
        cost, reward = np.zeros(R), np.zeros(R)
        cost[:length], reward[:length] = 0.13 * kl, -0.13 * kl
        cost[length - 1] += STATISTICS[kind](costs[row])
        reward[length - 1] += float(scored.reward_B[row])
        np.testing.assert_allclose(scored.token_BR["cost_critic"][row], cost, atol=1e-5)
        np.testing.assert_allclose(scored.token_BR["reward_critic"][row], reward, atol=1e-5)


def test_a_calibrated_constraint_costs_the_probability_and_moves_the_multiplier_by_its_mean():
    batch, rollout = rolled()
    settings = {"constraint.kind": "probability", "constraint.calibrated": True, "constraint.learning_rate": 0.3}
    known = static(**settings)._replace(calibration=Calibration(1.5, -0.25))
    one = step(known, rollout, batch.images, models())
    costs = np.asarray(one.experience.costs_B["cost"])
    probabilities = 1 / (1 + np.exp(0.25 - 1.5 * costs))
    for row, length in enumerate(np.asarray(rollout.response_mask_BR).sum(1)):
        kl = np.asarray(rollout.logp_BR)[row, length - 1] - np.asarray(one.experience.ref_logp_BR)[row, length - 1]
        np.testing.assert_allclose(
            one.experience.token_BR["cost_critic"][row, length - 1], 0.13 * kl + probabilities[row], atol=1e-5
        )
    np.testing.assert_allclose(one.metrics["constraint"], probabilities.mean(), rtol=1e-5)
    np.testing.assert_allclose(one.metrics["lambda"], np.clip(0.7 + 0.3 * (probabilities.mean() + 0.2), 0, 5), rtol=1e-5)


def test_a_response_that_was_cut_pays_the_missing_end_penalty():
    batch, rollout = rolled()
    score = jax.jit(functools.partial(experience.score, static(), streams=False))
    cut, ended = (rollout._replace(ended_B=jnp.full_like(rollout.ended_B, whether)) for whether in (False, True))
    difference = score(models(), ended, batch.images).reward_B - score(models(), cut, batch.images).reward_B
    np.testing.assert_allclose(difference, np.full(8, 0.3), atol=1e-5)


def test_the_first_minibatch_has_ratio_one():
    assert float(plain().metrics["mismatch"]) < 1e-5
    np.testing.assert_allclose(plain().metrics["ratio"], 1.0, atol=1e-5)


def test_while_the_critics_warm_up_they_move_as_always_and_the_policy_stands_still():
    warmed, before = run(how={"warming": True}), run(**{"constraint.controller": "fixed"})
    assert_close(warmed.params["critic"], before.params["critic"])
    jax.tree.map(np.testing.assert_array_equal, warmed.params["policy"], models()["policy"])
    assert "policy_loss" in before.metrics and "policy_loss" not in warmed.metrics


def widened(rollout: Rollout, left: int, right: int) -> Rollout:
    """The same rollout with more pad columns on both sides."""

    def pad(x, value=0, before=left):
        return jnp.pad(x, ((0, 0), (before, right)), constant_values=value)

    return rollout._replace(
        tokens_BT=pad(rollout.tokens_BT),
        positions_BT=pad(rollout.positions_BT),
        mask_BT=pad(rollout.mask_BT, False),
        response_mask_BR=pad(rollout.response_mask_BR, False, 0),
        logp_BR=pad(rollout.logp_BR, 0.0, 0),
    )


def test_padding_changes_nothing_in_a_whole_step():
    padded, expected = run(rollout=widened(rolled()[1], 3, 4), how={"streams": True}), plain()
    np.testing.assert_allclose(padded.experience.costs_B["cost"], expected.experience.costs_B["cost"], atol=1e-5)
    np.testing.assert_allclose(adv(padded.experience, "reward")[:, :R], adv(expected.experience, "reward"), atol=1e-5)
    assert not np.array(adv(padded.experience, "cost")[:, R:]).any()
    np.testing.assert_allclose(padded.metrics["lambda"], expected.metrics["lambda"], atol=1e-6)
    assert_close(padded.params, expected.params)


@pytest.mark.parametrize(("sharing", "microbatches"), [("shared", 1), ("shared", 2), ("separate", 1)])
@pytest.mark.slow
def test_one_gradient_step_needs_no_forward_pass_for_values(sharing, microbatches):
    """The critic's loss computes them anyway, of the same parameters."""
    changes = {"microbatches": microbatches, "rollout.score_microbatches": microbatches}
    one = run(sharing, **changes)
    before = run(sharing, how={"streams": True}, **changes)
    assert one.experience.streams is None and before.experience.streams is not None
    assert_close(one.params, before.params)
    assert one.metrics.keys() == before.metrics.keys()
    assert_close(one.metrics, before.metrics, atol=1e-4)


@pytest.mark.parametrize("microbatches", [1, 2])
@pytest.mark.slow
def test_eight_devices_make_the_step_of_one_device(eight_devices, microbatches):
    changes = {"microbatches": microbatches, "rollout.score_microbatches": microbatches}
    sharded = run(how={"mesh": eight_devices, "streams": True}, **changes)
    assert_close(sharded.experience, plain().experience)
    assert_close(sharded.params, plain().params)
    assert_close(sharded.metrics, plain().metrics, atol=1e-4)


def test_one_backbone_with_two_heads_scores_as_two_backbones_do():
    separate = run("separate", how={"streams": True})
    assert_close(separate.experience, plain().experience)
    assert_close(separate.params["policy"], plain().params["policy"])


@pytest.mark.parametrize(("sharing", "critics"), [("shared", 1), ("separate", 2)])
def test_on_cpu_each_tree_waits_until_the_one_before_is_updated(sharing, critics, monkeypatch):
    (batch, rollout), known, trees = rolled(), static(sharing), models(sharing)
    params = {name: trees[name] for name in roles.trained_trees(known.places)}
    optimizer, trainable = optax.sgd(0.05), jax.tree.map(lambda _: True, params)
    training = Training(dict.fromkeys(params, optimizer), trainable)

    def update(rollout, images):
        scored = experience.score(known, trees, rollout, images, streams=False)
        opt_state = {name: optimizer.init(tree) for name, tree in params.items()}
        return ppo.update(
            known,
            training,
            params,
            opt_state,
            scored,
            images,
            Multipliers({"cost": jnp.float32(0.7)}),
            jax.random.key(5),
            None,
            None,
        )

    for platform in ("cpu", "tpu"):
        device = AbstractDevice("of some kind", num_cores=1, platform=platform)
        with use_abstract_mesh(AbstractMesh((1, 1, 1), AXES, abstract_device=device)):
            traced = jax.make_jaxpr(update)(rollout, batch.images)
        assert ("optimization_barrier" in str(traced)) == (platform == "cpu")

    waited = []
    monkeypatch.setattr(ppo.order, "barrier_on_cpu", lambda tree: waited.append(tree) or tree)
    jax.eval_shape(update, rollout, batch.images)
    states = [ready[2:] for ready in waited if isinstance(ready, tuple) and len(ready) == 4]
    assert len(states) == critics
    for params, opt_state in states:
        assert len(params) == len(opt_state) == critics + 1  # all of them: the next one's are read when it is its turn


GOLDEN = {
    "lambda": 0.550786,
    "reward": -0.496307,
    "cost": -0.697379,
    "kl": 3.45173,
    "policy_loss": 0.096039,
    "reward_critic_loss": 0.441378,
    "cost_critic_loss": 0.85227,
    "policy_moved": 0.122924,
    "critic_moved": 0.185708,
}


def test_golden_step():
    """Numbers of one step of this file's models; they may change with the mathematics of the method, and with nothing else."""
    numbers = {name: float(value) for name, value in plain().metrics.items()}
    for name in ("policy", "critic"):
        change = jax.tree.map(lambda new, old: new - old, plain().params[name], models()[name])
        numbers[f"{name}_moved"] = float(optax.tree.norm(change))
    moved = [
        f"{name}: {numbers[name]:.6f}, was {was:.6f} ({(numbers[name] - was) / abs(was):+.2%})"
        for name, was in GOLDEN.items()
        if abs(numbers[name] - was) > 2e-3 * abs(was)
    ]
    assert not moved, (
        f"one step gives other numbers than before: {'; '.join(moved)}. If a change of the mathematics was meant, put the new ones "
        "into GOLDEN and say in the commit which formula changed; else find what changed them"
    )
