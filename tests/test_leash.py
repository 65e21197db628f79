"""Beta that follows the KL, a reference that follows the policy or is not there, and the penalty of P3O."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_ppo import models, rolled, static, step
from tiny_stages import adapter_stages, numbers, picture_task, rows, settings

from srlhfv_jax.config import PPOLagConfig
from srlhfv_jax.data.quickstart import rows as task_rows
from srlhfv_jax.errors import UserError
from srlhfv_jax.hf.load import load_pretrained
from srlhfv_jax.losses import ppo
from srlhfv_jax.parallel import hosts
from srlhfv_jax.ppo_lag import check, leash, run as ppo_lag
from srlhfv_jax.quickstart.pipeline import write_rows

ADAPTED = static(**{"ppo.kl_target": 4.0, "ppo.kl_horizon": 100.0}).settings.ppo


@pytest.mark.parametrize(
    ("kl", "factor"), [(4.4, 1 + 0.1 * 0.25), (3.0, 1 - 0.2 * 0.25), (9.0, 1 + 0.2 * 0.25), (-1.0, 1 - 0.2 * 0.25)]
)
def test_beta_follows_the_error_of_the_kl_up_to_a_fifth(kl, factor):
    adapted = leash.adapted(ADAPTED, jnp.float32(0.13), jnp.float32(kl), 25)
    assert float(adapted) == pytest.approx(0.13 * factor, rel=1e-5)


def run(trees=None, **changes):
    batch, rollout = rolled()
    known = static(**changes)
    return step(known, rollout, batch.images, {n: t for n, t in models().items() if n in {p.tree for p in known.places.values()}})


def same(one, other, atol=1e-6) -> bool:
    return all(np.allclose(a, b, atol=atol) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


@pytest.mark.parametrize("kl_in", ("reward", "loss"))
@pytest.mark.slow
def test_an_adapted_beta_is_that_of_the_settings_at_first_and_another_one_next(kl_in):
    plain, adapted = run(**{"ppo.kl_in": kl_in}), run(**{"ppo.kl_in": kl_in, "ppo.kl_target": 0.5, "ppo.kl_horizon": 100.0})
    assert same(plain.params, adapted.params) and plain.state.extra.kl_coef is None
    expected = leash.adapted(static(**{"ppo.kl_target": 0.5, "ppo.kl_horizon": 100.0}).settings.ppo, 0.13, plain.metrics["kl"], 8)
    assert float(adapted.state.extra.kl_coef) == pytest.approx(float(expected), rel=1e-5) != 0.13


@pytest.mark.slow
def test_kl_as_a_loss_pulls_towards_the_reference_and_leaves_the_streams_alone():
    free, held = run(**{"ppo.kl_in": "loss", "ppo.kl_coef": 0.0}), run(**{"ppo.kl_in": "loss", "ppo.kl_coef": 5.0})
    np.testing.assert_array_equal(free.experience.token_BR["reward_critic"], held.experience.token_BR["reward_critic"])
    assert (
        float(held.metrics["kl_loss"]) == pytest.approx(float(free.metrics["kl_loss"]), rel=1e-5)
        and float(free.metrics["kl_loss"]) > 0
    )
    assert not same(free.params["policy"], held.params["policy"], 1e-4)


def test_without_a_reference_there_is_no_kl_and_the_step_is_that_of_beta_0():
    plain, without = run(**{"ppo.kl_coef": 0.0}), run(**{"ppo.kl_coef": 0.0, "reference": "none"})
    assert "kl" in plain.metrics and "kl" not in without.metrics
    assert same(plain.params, without.params)


def test_a_reference_moves_when_it_is_due():
    config = static(**{"moving_reference.every": 3}).settings.moving_reference
    assert [done for done in range(1, 10) if leash.is_due(config, done)] == [3, 6, 9]
    old, new = {"x": jnp.asarray([0.5, 2.0])}, {"x": jnp.asarray([1.5, -1.0])}
    np.testing.assert_allclose(leash.followed(0.0, old, new)["x"], new["x"])
    np.testing.assert_allclose(leash.followed(0.75, old, new)["x"], [0.75, 1.25])


def penalty(adv, excess, log_ratio=((0.0, 0.3), (0.5, 0.0))) -> float:
    mask_BR = jnp.asarray([[True, True], [True, False]])
    old_BR = jnp.full((2, 2), -1.5)
    how = dict(clip_ratio=0.2)
    return float(ppo.penalty(old_BR + jnp.asarray(log_ratio), old_BR, jnp.asarray(adv), mask_BR, jnp.float32(excess), **how))


def test_the_penalty_is_the_cost_over_budget_of_the_next_policy_and_never_negative():
    adv = [[0.4, -1.0], [0.7, 9.0]]
    terms = [0.4, -1.0 * 1.2, 0.7 * np.exp(0.5)]  # the larger of both: a fall of the cost is clipped, a rise is not
    assert penalty(adv, 0.9) == pytest.approx(sum(terms) / 3 + 0.9 * 2 / 3, rel=1e-5)
    assert penalty(adv, -5.0) == 0


@pytest.mark.slow
def test_p3o_is_ppo_while_the_cost_is_under_its_budget_and_lowers_it_above():
    how = {"constraint.controller": "p3o", "constraint.max": 20.0}
    under = run(**how | {"constraint.budget": 1e3})
    plain = run(**{"constraint.controller": "none"})
    assert same(under.params["policy"], plain.params["policy"]) and float(under.metrics["penalty"]) == 0
    over = run(**how | {"constraint.budget": -1e3})
    assert not same(over.params["policy"], plain.params["policy"], 1e-3) and float(over.metrics["penalty"]) > 0


@pytest.mark.slow
def test_a_moving_reference_and_an_adapted_beta_resume_to_the_same_numbers(tmp_path):
    folder = picture_task(tmp_path)
    adapter_stages(folder, folder, {"lora.rank": 4} | rows(folder))
    write_rows(folder / "prompts.parquet", task_rows.prompt_rows(0, task_rows.split_cells(0), "train", 16))
    where = {"policy": str(folder / "sft"), "scorer": str(folder / "scores"), "sharing": "adapters", "iterations": 4}
    where |= {"data.path": str(folder / "prompts.parquet"), "data.split": "", "data.prompt_length": 40, "data.response_length": 8}
    where |= {"ppo.kl_target": 0.5, "ppo.kl_horizon": 10.0, "checkpoint.every_steps": 1, "policy_optimizer.learning_rate": 0.01}
    for moving in ({"moving_reference.decay": 0.5}, {"moving_reference.every": 2}):
        run, out = settings(PPOLagConfig, "ppo_lag", **where, **moving), tmp_path / "".join(moving)
        ppo_lag.run(run, out / "whole")
        shutil.copytree(out / "whole", out / "cut")
        for number in (3, 4):
            shutil.rmtree(out / "cut" / "checkpoints" / str(number))
        ppo_lag.run(run, out / "cut")
        log = numbers(out / "whole")
        assert numbers(out / "cut") == log
        one, other = (hosts.to_host(load_pretrained(out / name).params) for name in ("whole", "cut"))
        jax.tree.map(np.testing.assert_array_equal, one, other)
        steps = [line for line in log if "kl_coef" in line]
        assert len({line["kl_coef"] for line in steps}) == 4
        if "moving_reference.every" in moving:  # after two iterations the reference is the policy that answers
            assert abs(steps[2]["kl"]) < 1e-4 < abs(steps[1]["kl"])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"moving_reference.every": 2, "moving_reference.decay": 0.9}, "give every or decay, not both"),
        ({"moving_reference.every": 2, "reference": "there"}, "leave config.reference empty, got 'there'"),
        ({"reference": "none"}, "config.ppo.kl_coef is 0.1 and would be ignored: config.reference is 'none'"),
        ({"constraint.controller": "p3o", "microbatches": 2}, "config.microbatches must be 1 with .*'p3o', got 2"),
        (
            {
                "constraint.controller": "p3o",
                "constraint.init": 0.0,
                "reference": "none",
                "ppo.kl_coef": 0.0,
                "ppo.kl_target": 1.0,
            },
            "kl_target",
        ),
    ],
)
def test_a_reference_that_cannot_be_is_refused(changes, text):
    with pytest.raises(UserError, match=text):
        check.check(settings(PPOLagConfig, "ppo_lag", policy="p", scorer="s", **changes))
