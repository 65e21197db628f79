"""A whole PPO-Lagrangian step, from a rollout to new parameters: padding, meshes and ways of sharing change nothing in it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh
from tiny_stages import settings as tiny
from tiny_vlm import CONFIG, VOCABULARY, backbone, prompts, scorer

from srlhfv_jax.batches import Rollout
from srlhfv_jax.config import ConstraintConfig, PPOConfig, PPOLagConfig
from srlhfv_jax.losses import lagrangian
from srlhfv_jax.parallel import hosts, rules
from srlhfv_jax.parallel.mesh import AXES
from srlhfv_jax.ppo_lag import experience, roles, update as ppo
from srlhfv_jax.ppo_lag.static import Static
from srlhfv_jax.ppo_lag.update import Training
from srlhfv_jax.rollout.generate import generate

R = 7
PPO = PPOConfig(
    kl_coef=0.13,
    gamma=1.0,
    gae_lambda=0.95,
    clip_ratio=0.2,
    clip_value=5.0,
    clip_score=50.0,
    epochs=1,
    minibatches=1,
    reduction="token",
    whiten="none",
    scale_scores="none",
    missing_eos_penalty=0.3,
)
CONSTRAINT = ConstraintConfig(
    kind="mean",
    budget=-0.2,
    controller="projected",
    init=0.7,
    max=5.0,
    learning_rate=0.3,
    kp=0.0,
    kd=0.0,
    smoothing=0.9,
    window=16,
    delay=0,
)
OPTIMIZER = optax.sgd(0.05)


def models(sharing: str = "shared") -> dict:
    """Trees of every role: the policy has moved away from the reference, the critics are not the scorer."""
    trees = {"policy": {"backbone": backbone(0)}, "reference": {"backbone": backbone(10)}}
    if sharing == "shared":
        return trees | {"scorer": scorer(20), "critic": scorer(30)}
    for name, seed, head in (
        ("reward", 20, "reward"),
        ("cost", 20, "cost"),
        ("reward_critic", 30, "reward"),
        ("cost_critic", 30, "cost"),
    ):
        tree = scorer(seed)
        trees[name] = {"backbone": tree["backbone"], "heads": {head: tree["heads"][head]}}
    return trees


def static(sharing: str = "shared", ppo: PPOConfig = PPO, constraint: ConstraintConfig = CONSTRAINT, parts: int = 1) -> Static:
    """Every tree but the policy has a tower of its own."""
    changes = {"sharing": sharing, "microbatches": parts, "rollout.score_microbatches": parts}
    changes |= {f"ppo.{name}": value for name, value in vars(ppo).items()}
    changes |= {f"constraint.{name}": value for name, value in vars(constraint).items()}
    own_towers = frozenset(models(sharing)) - {"policy"}
    return Static(tiny(PPOLagConfig, "ppo_lag", **changes), CONFIG, roles.assign(sharing), own_towers, VOCABULARY)


@functools.cache
def rolled() -> tuple:
    batch = prompts(rows=8)
    run = jax.jit(functools.partial(generate, CONFIG, response_length=R, vocabulary=VOCABULARY))
    return batch, run(backbone(0), batch, jax.random.key(2))


def step(
    rollout: Rollout,
    pixels,
    *,
    sharing="shared",
    settings=PPO,
    constraint=CONSTRAINT,
    mesh=None,
    optimizer=OPTIMIZER,
    train_policy=True,
    streams=True,
    microbatches=1,
):
    """(experience, multiplier, new trained trees, metrics) of one step."""
    trees = models(sharing)
    if mesh is not None:
        trees = rules.place(trees, mesh)
        rollout, pixels = hosts.global_batch(jax.tree.map(np.asarray, (rollout, pixels)), mesh)
    known = static(sharing, settings, constraint, microbatches)
    trained = {name: trees[name] for name in roles.trained_trees(known.places)}
    trainable = {name: jax.tree.map(lambda _: True, tree) for name, tree in trained.items()}
    training = Training(dict.fromkeys(trained, optimizer), trainable, train_policy)

    @jax.jit
    def run(trees, rollout, pixels):
        scored = experience.score(known, trees, rollout, pixels, streams=streams)
        controller = lagrangian.update_multiplier(constraint, lagrangian.init(constraint), scored.cost_B)
        lam = lagrangian.multiplier(constraint, controller)
        params = {name: trees[name] for name in trained}
        opt_state = {name: optimizer.init(tree) for name, tree in params.items()}
        params, _, metrics = ppo.update(known, training, params, opt_state, scored, pixels, lam, jax.random.key(5), None, None)
        return scored, lam, params, metrics

    return run(trees, rollout, pixels)


def assert_close(one, other, atol=2e-5):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=atol, rtol=2e-4)


def adv(experience, stream: str):
    return experience.streams[f"{stream}_critic"].adv_BR


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


@functools.cache
def plain():
    batch, rollout = rolled()
    return step(rollout, batch.images)


def test_padding_changes_nothing_in_a_whole_step():
    batch, rollout = rolled()
    experience, lam, params, metrics = step(widened(rollout, 3, 4), batch.images)
    expected = plain()
    np.testing.assert_allclose(experience.cost_B, expected[0].cost_B, atol=1e-5)
    np.testing.assert_allclose(adv(experience, "reward")[:, :R], adv(expected[0], "reward"), atol=1e-5)
    assert not np.array(adv(experience, "cost")[:, R:]).any()
    np.testing.assert_allclose(lam, expected[1], atol=1e-6)
    assert_close(params, expected[2])


@pytest.mark.parametrize(("sharing", "microbatches"), [("shared", 1), ("shared", 2), ("separate", 1)])
def test_one_gradient_step_needs_no_forward_pass_for_values(sharing, microbatches):
    """The critic's loss computes them anyway, of the same parameters."""
    batch, rollout = rolled()
    settings = dict(sharing=sharing, microbatches=microbatches)
    experience, lam, params, metrics = step(rollout, batch.images, streams=False, **settings)
    before = step(rollout, batch.images, **settings)
    assert experience.streams is None and before[0].streams is not None
    assert_close(params, before[2])
    assert metrics.keys() == before[3].keys()
    assert_close(metrics, before[3], atol=1e-4)


@pytest.mark.parametrize("microbatches", [1, 2])
def test_eight_devices_make_the_step_of_one_device(eight_devices, microbatches):
    batch, rollout = rolled()
    with jax.set_mesh(eight_devices):
        experience, lam, params, metrics = step(rollout, batch.images, mesh=eight_devices, microbatches=microbatches)
    assert_close(experience, plain()[0])
    np.testing.assert_allclose(lam, plain()[1], atol=1e-6)
    assert_close(params, plain()[2])
    assert_close(metrics, plain()[3], atol=1e-4)


@pytest.mark.parametrize(("sharing", "critics"), [("shared", 1), ("separate", 2)])
def test_on_cpu_each_tree_waits_until_the_one_before_is_updated(sharing, critics, monkeypatch):
    batch, rollout = rolled()
    for platform in ("cpu", "tpu"):
        device = AbstractDevice("of some kind", num_cores=1, platform=platform)
        with use_abstract_mesh(AbstractMesh((1, 1, 1), AXES, abstract_device=device)):
            traced = jax.make_jaxpr(functools.partial(step, sharing=sharing))(rollout, batch.images)
        assert ("optimization_barrier" in str(traced)) == (platform == "cpu")

    waited = []
    monkeypatch.setattr(ppo.order, "barrier_on_cpu", lambda tree: waited.append(tree) or tree)
    jax.eval_shape(functools.partial(step, sharing=sharing), rollout, batch.images)
    trees = [ready[2:] for ready in waited if isinstance(ready, tuple) and len(ready) == 4]
    assert len(trees) == critics
    for params, opt_state in trees:
        assert len(params) == len(opt_state) == critics + 1  # all of them: the next one's are read when it is its turn


def test_while_the_critics_warm_up_they_move_as_always_and_the_policy_stands_still():
    batch, rollout = rolled()
    _, _, params, metrics = step(rollout, batch.images, train_policy=False)
    assert_close(params["critic"], plain()[2]["critic"])
    jax.tree.map(np.testing.assert_array_equal, params["policy"], models()["policy"])
    assert "policy_loss" in plain()[3] and "policy_loss" not in metrics


def test_one_backbone_with_two_heads_scores_as_two_backbones_do():
    batch, rollout = rolled()
    experience, lam, params, _ = step(rollout, batch.images, sharing="separate")
    expected = plain()
    assert_close(experience, expected[0])
    assert_close(params["policy"], expected[2]["policy"])


def test_the_multiplier_moves_once_by_the_mean_cost_before_the_update():
    experience, lam, _, _ = plain()
    expected = 0.7 + 0.3 * (float(jnp.mean(experience.cost_B)) - (-0.2))
    np.testing.assert_allclose(lam, np.clip(expected, 0.0, 5.0), rtol=1e-5)


def test_the_end_scores_sit_on_the_last_real_token_and_kl_on_every_token():
    experience = plain()[0]
    rollout = experience.rollout
    kl_BR = np.array(rollout.logp_BR - experience.ref_logp_BR) * np.array(rollout.response_mask_BR)
    # GAE's return at lambda = gamma = 1 would be the plain sum; at 0.95 the last token's return is its own reward alone.
    last_B = np.array(rollout.response_mask_BR).sum(1) - 1
    rows = np.arange(len(last_B))
    np.testing.assert_allclose(
        np.array(experience.streams["reward_critic"].return_BR)[rows, last_B],
        np.array(experience.reward_B) - 0.13 * kl_BR[rows, last_B],
        atol=1e-5,
    )
    np.testing.assert_allclose(
        np.array(experience.streams["cost_critic"].return_BR)[rows, last_B],
        np.array(experience.cost_B) + 0.13 * kl_BR[rows, last_B],
        atol=1e-5,
    )


def test_a_response_that_was_cut_pays_the_missing_end_penalty():
    batch, rollout = rolled()
    cut = rollout._replace(ended_B=jnp.zeros_like(rollout.ended_B))
    whole = rollout._replace(ended_B=jnp.ones_like(rollout.ended_B))
    difference = step(whole, batch.images)[0].reward_B - step(cut, batch.images)[0].reward_B
    np.testing.assert_allclose(difference, np.full(8, 0.3), atol=1e-5)


def test_the_first_minibatch_has_ratio_one():
    assert float(plain()[3]["mismatch"]) < 1e-5
    np.testing.assert_allclose(plain()[3]["ratio"], 1.0, atol=1e-5)


@pytest.mark.parametrize("controller", ["none", "fixed"])
def test_without_a_constraint_it_is_ppo_and_with_a_fixed_multiplier_reward_shaping(controller):
    batch, rollout = rolled()
    import dataclasses

    constraint = dataclasses.replace(CONSTRAINT, controller=controller)
    experience, lam, params, _ = step(rollout, batch.images, constraint=constraint)
    assert float(lam) == pytest.approx(0.0 if controller == "none" else 0.7)
    advantage = lagrangian.combine(adv(experience, "reward"), adv(experience, "cost"), lam)
    expected = adv(experience, "reward")
    if controller == "fixed":
        expected = (expected - 0.7 * adv(experience, "cost")) / 1.7
    np.testing.assert_allclose(advantage, expected, atol=1e-6)


def test_golden_step():
    """One step of this file's tiny run. If a change of the mathematics was meant, put the new numbers in; else find what changed."""
    experience, lam, params, metrics = plain()
    moved = optax.tree.norm(jax.tree.map(lambda a, b: a - b, params["policy"], models()["policy"]))
    got = [float(x) for x in (lam, jnp.mean(experience.reward_B), metrics["policy_loss"], metrics["cost_critic_loss"], moved)]
    np.testing.assert_allclose(got, GOLDEN, rtol=2e-3)


GOLDEN = [0.550786, -0.496307, 0.096039, 0.852270, 0.138243]
