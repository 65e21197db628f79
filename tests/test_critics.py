"""Where the critics start, how long they learn alone, what the multiplier does meanwhile, and which policy counts as feasible."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_hf
from tiny_ppo import models, rolled, static
from tiny_stages import numbers, settings

from srlhfv_jax.config import PPOLagConfig, ScoresConfig
from srlhfv_jax.models import score_heads
from srlhfv_jax.ppo_lag import advantages, critics, roles, run as ppo_lag
from srlhfv_jax.ppo_lag.experience import score
from srlhfv_jax.supervised import scores
from srlhfv_jax.training import loop


def test_a_head_is_fitted_by_least_squares_held_to_a_line_through_the_scorer():
    """Against the normal equations in double precision, and whatever stands off the mask."""
    rng = np.random.default_rng(3)
    hidden_BRD, kernel_D = rng.normal(size=(6, 5, 4)) + 0.7, rng.normal(size=4)
    mask_BR = rng.random((6, 5)) < 0.7
    y_BR = hidden_BRD @ np.array([0.3, -1.2, 0.5, 0.1]) + 0.4 + 0.2 * rng.normal(size=(6, 5))
    h, y = hidden_BRD[mask_BR], y_BR[mask_BR]
    a, b = np.polyfit(h @ kernel_D, y, 1)
    x = np.concatenate([h, np.ones((len(h), 1))], 1)
    held = np.diag([critics.RIDGE * (h**2).sum() / 4] * 4 + [0.0])
    line = np.append(a * kernel_D, b)
    expected = line + np.linalg.solve(x.T @ x + held, x.T @ (y - x @ line))
    found = critics.fit(
        jnp.asarray(kernel_D, jnp.float32),
        jnp.where(mask_BR[..., None], jnp.asarray(hidden_BRD, jnp.float32), jnp.nan),
        jnp.where(mask_BR, jnp.asarray(y_BR, jnp.float32), jnp.nan),
        jnp.asarray(mask_BR),
    )
    np.testing.assert_allclose(np.append(found["kernel"], found["bias"]), expected, rtol=2e-4, atol=1e-5)
    assert np.var(y - x @ expected) < np.var(y - x @ line)


def test_what_the_hidden_states_say_nothing_of_is_predicted_by_its_mean():
    y_BR, mask_BR = jnp.array([[0.5, 1.25, -2.0], [0.75, 0.0, 3.5]]), jnp.array([[True, True, False], [True, False, False]])
    found = critics.fit(jnp.zeros(4), jnp.full((2, 3, 4), 1.5), y_BR, mask_BR)
    np.testing.assert_allclose(jnp.full(4, 1.5) @ found["kernel"] + found["bias"], 2.5 / 3, rtol=1e-5)


@pytest.mark.parametrize("sharing", ["shared", "separate"])
@pytest.mark.parametrize("kind", ["mean", "rectified", "probability"])
def test_critics_start_at_the_quantity_that_they_are_to_predict(kind, sharing):
    batch, rollout = rolled()
    trees, known = models(sharing), static(sharing, **{"constraint.kind": kind, "rollout.score_microbatches": 2})
    holding = {name: score_heads.critic(trees[name]) for name in roles.critic_trees(known.places)}

    @jax.jit
    def run(trees, holding):
        experience = score(known, trees | holding, rollout, batch.images, streams=True)
        fitted = critics.start(known, holding, experience, batch.images)
        holding = {name: tree | {"heads": fitted[name]} for name, tree in holding.items()}
        return experience, score(known, trees | holding, rollout, batch.images, streams=True)

    before, after = run(trees, holding)
    mask_BR = np.asarray(rollout.response_mask_BR)
    for role in ("reward_critic", "cost_critic"):
        returns_BR = np.cumsum(np.asarray(before.token_BR[role])[:, ::-1], 1)[:, ::-1]
        value_BR, copied_BR = (np.asarray(one.streams[role].value_BR) for one in (after, before))
        assert ((value_BR - returns_BR)[mask_BR] ** 2).mean() < ((copied_BR - returns_BR)[mask_BR] ** 2).mean()
        np.testing.assert_allclose(value_BR[mask_BR].mean(), returns_BR[mask_BR].mean(), atol=1e-4)
    found = advantages.stream_metrics(after.streams, rollout.response_mask_BR)
    assert found["cost_explained_variance"][0] > 0 and found["reward_explained_variance"][0] > 0


def test_the_warm_up_ends_when_explained_variance_stops_rising():
    warm_up, ended = critics.init(), []
    for explained in (-2.5, 0.125, 0.25, 0.25, 0.5):
        warm_up = critics.after(warm_up, jnp.float32(explained))
        ended.append(bool(warm_up.ended))
    assert ended == [False, False, False, True, True]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A random Llama, scores trained a step from it, and rows of PKU-SafeRLHF."""
    folder = tmp_path_factory.mktemp("text")
    tiny_hf.save(folder / "llama", tiny_hf.llama_config())
    row = {"response_0": "w5 w6", "response_1": "w8 w9 w10", "better_response_id": 0, "safer_response_id": 1}
    row |= {f"is_response_{k}_safe": bool(k) for k in (0, 1)} | {f"response_{k}_severity_level": 2 - 2 * k for k in (0, 1)}
    rows = [row | {"prompt": f"w{7 + i} w{9 + i}"} for i in range(8)]
    (folder / "pku.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores.run(settings(ScoresConfig, "scores", init=str(folder / "llama"), steps=1, **where(folder)), folder / "scores")
    return folder


def where(folder) -> dict:
    return {"data.path": str(folder / "pku.jsonl"), "data.split": "", "data.response_length": 6}


def constrained(folder, **changes) -> PPOLagConfig:
    paths = {"policy": str(folder / "llama"), "scorer": str(folder / "scores")}
    changes = {"validation.path": "", "constraint.init": 0.375, "constraint.learning_rate": 0.5} | changes
    return settings(PPOLagConfig, "ppo_lag", **paths, **where(folder), **changes)


WARM = {"critic_warmup": 4, "critic_warmup_rate": 3e-3, "iterations": 6}


@pytest.fixture(scope="module")
def warmed(text, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("warmed")
    ppo_lag.run(constrained(text, **WARM), workdir)
    return numbers(workdir)


@pytest.mark.slow
def test_while_the_critics_learn_alone_the_multiplier_rests_and_its_window_fills(warmed):
    alone = [line for line in warmed if "policy_loss" not in line]
    assert 1 <= len(alone) <= WARM["critic_warmup"] and warmed[: len(alone)] == alone
    assert {line["lambda"] for line in alone} == {0.375} and warmed[len(alone)]["lambda"] != 0.375
    costs = [line["constraint"] for line in warmed]
    for seen, line in enumerate(warmed, start=1):
        assert line["window_cost"] == pytest.approx(np.mean(costs[:seen]), rel=1e-5)
    explained = [(line["reward_explained_variance"] + line["cost_explained_variance"]) / 2 for line in warmed]
    stopped = [i for i in range(1, WARM["critic_warmup"]) if explained[i] <= max(explained[:i])]
    assert len(alone) == (stopped[0] + 1 if stopped else WARM["critic_warmup"])


@pytest.mark.parametrize("stop", [1, 3])
@pytest.mark.slow
def test_a_run_stopped_while_the_critics_learn_alone_goes_on_with_the_same_bits(text, warmed, tmp_path, monkeypatch, stop):
    with monkeypatch.context() as patched:
        patched.setattr(loop, "run", functools.partial(loop.run, stop=lambda step: step == stop))
        with pytest.raises(loop.Preempted):
            ppo_lag.run(constrained(text, **WARM), tmp_path)
    ppo_lag.run(constrained(text, **WARM), tmp_path)
    assert numbers(tmp_path) == warmed


@pytest.mark.parametrize("kind, budget, kept", [("mean", -50.0, False), ("probability", 1.0, True), ("rectified", 0.0, False)])
@pytest.mark.slow
def test_the_best_feasible_policy_keeps_the_constraint_of_the_run(text, tmp_path, kind, budget, kept):
    paths = {"validation.path": str(text / "pku.jsonl"), "validation.every_steps": 1, "iterations": 1}
    wanted = constrained(text, **paths, **{"constraint.kind": kind, "constraint.budget": budget, "validation.budget": -3.25})
    done = ppo_lag.run(wanted, tmp_path)
    said = [line for line in numbers(tmp_path) if "validation.constraint" in line][-1]["validation.constraint"]
    assert (said <= budget) == kept
    assert (done["best_feasible.step"] >= 0) == kept == (tmp_path / "best_feasible").is_dir()
