"""The whole update against a loop over rows and tokens in NumPy, for a policy that is linear in what is trained of it.

The backbones are frozen: trained are the policy's output matrix and the critics' heads, so that every gradient has a closed form.
"""

import dataclasses
import functools
import operator
from collections import Counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_ppo import R, Step, iteration, static, step
from tiny_vlm import CONFIG, EOS, PAD, VOCAB, VOCABULARY, backbone, prompts

from srlhfv_jax.batches import Experience, Rollout, SupervisedBatch
from srlhfv_jax.config import OptimizerConfig, PPOLagConfig
from srlhfv_jax.models import score_heads, sequences, vlm
from srlhfv_jax.ppo_lag import advantages, experience, minibatches
from srlhfv_jax.ppo_lag.static import Static
from srlhfv_jax.ppo_lag.update import Multipliers
from srlhfv_jax.training import state as states

B, PTX_ROWS = 8, 4
MODEL = dataclasses.replace(CONFIG, vision=None, text=dataclasses.replace(CONFIG.text, layers=1))
LINEAR = {
    "policy_optimizer.freeze": ("text/embed", "text/layers", "text/norm"),
    "critic_optimizer.freeze": ("backbone/",),
    "policy_optimizer.learning_rate": 0.6,
    "critic_optimizer.learning_rate": 0.4,
}
PLAIN = LINEAR | {"ppo.clip_score": 1.0}
EVERYTHING = LINEAR | {
    "rollout.temperature": 0.7,
    "ppo.gamma": 0.9,
    "ppo.epochs": 2,
    "ppo.minibatches": 2,
    "ppo.reduction": "sequence",
    "ppo.whiten": "scale",
    "ppo.scale_scores": "std",
    "ppo.clip_score": 2.0,
    "ppo.clip_value": 0.1,
    "constraint.kind": "rectified",
    "ptx.coef": 0.5,
}
STATISTICS = {"mean": lambda cost: cost, "rectified": lambda cost: max(cost, 0.0)}


@functools.cache
def trees() -> dict[str, dict]:
    def scorer(seed: int) -> dict:
        heads = score_heads.init(MODEL, ("reward", "cost"), jax.random.key(seed))
        return {"backbone": backbone(seed, MODEL), "heads": heads}

    named = {"policy": {"backbone": backbone(0, MODEL)}, "reference": {"backbone": backbone(10, MODEL)}}
    named |= {"scorer": scorer(20), "critic": score_heads.critic(scorer(30))}
    named["critic"]["heads"]["cost"]["bias"] = np.float32(0.3)
    return jax.tree.map(np.asarray, named)


@functools.cache
def answers(rows: int, seed: int) -> Rollout:
    """Random answers of different lengths, some cut, with log-probabilities of a policy that was another one by then."""
    rng, batch = np.random.default_rng(seed), jax.tree.map(np.asarray, prompts(rows=rows)._replace(images=None))
    length_B, ended_B = rng.integers(1, R + 1, rows), np.arange(rows) % 3 > 0
    mask_BR = np.arange(R) < length_B[:, None]
    tokens_BR = np.where(mask_BR, rng.integers(4, VOCAB, (rows, R)), PAD)
    tokens_BR[np.arange(rows), length_B - 1] = np.where(ended_B, EOS, tokens_BR[np.arange(rows), length_B - 1])
    positions_BR = batch.positions_BP[:, -1:] + np.minimum(np.arange(R) + 1, length_B[:, None])
    rollout = Rollout(
        tokens_BT=np.concatenate([batch.tokens_BP, tokens_BR], axis=1).astype(np.int32),
        positions_BT=np.concatenate([batch.positions_BP, positions_BR], axis=1).astype(np.int32),
        mask_BT=np.concatenate([batch.mask_BP, mask_BR], axis=1),
        response_mask_BR=mask_BR,
        logp_BR=np.zeros((rows, R), np.float32),
        ended_B=ended_B,
        features=None,
    )
    never_V = VOCABULARY.never_V(VOCAB)
    logp_BR, _ = jax.jit(functools.partial(sequences.response_logp, MODEL, never_V=never_V))(trees()["policy"], rollout, None)
    return rollout._replace(logp_BR=np.where(mask_BR, logp_BR + 0.3 * rng.normal(size=mask_BR.shape), 0.0).astype(np.float32))


def supervised() -> SupervisedBatch:
    rows = answers(PTX_ROWS, 7)
    return SupervisedBatch(rows.tokens_BT, rows.positions_BT, rows.mask_BT, rows.response_mask_BR, None)


def run(known: Static) -> Step:
    return step(known, answers(B, 3), None, trees(), ptx=supervised() if known.settings.ptx.coef else None)


class Read(NamedTuple):
    """The hidden states that linear maps read, float64."""

    policy_BRD: np.ndarray
    reference_BRD: np.ndarray
    critic_BRD: np.ndarray
    end_BD: np.ndarray  # the scorer's, after the last token
    ptx_BRD: np.ndarray


@functools.cache
def read() -> Read:
    hidden, ends = (jax.jit(functools.partial(f, MODEL)) for f in (sequences.response_hidden, sequences.end_hidden))
    rollout = answers(B, 3)
    names = [hidden(trees()[name], rollout, None) for name in ("policy", "reference", "critic")]
    last_BD = ends(trees()["scorer"], rollout, None)[:, 1]
    return Read(*(np.asarray(x, float) for x in (*names, last_BD, hidden(trees()["policy"], supervised(), None))))


def output(tree: dict) -> np.ndarray:
    return np.asarray(vlm.unembedding(MODEL, tree["backbone"]), float)


def log_probabilities(output_VD: np.ndarray, hidden_D: np.ndarray, temperature: float = 1.0, never: tuple = ()) -> np.ndarray:
    logits_V = output_VD @ hidden_D / temperature
    logits_V[list(never)] = -np.inf
    return logits_V - np.log(np.exp(logits_V - logits_V.max()).sum()) - logits_V.max()


def descend(x: np.ndarray, gradient: np.ndarray, optimizer: OptimizerConfig, factor: float = 1.0) -> np.ndarray:
    return x - factor * optimizer.learning_rate * gradient / (np.abs(gradient) + 1)


class Loop:
    """One iteration, a row and a token at a time: scores, multiplier, GAE, then the steps of `update`."""

    def __init__(self, settings: PPOLagConfig) -> None:
        self.settings, self.rollout, self.read = settings, answers(B, 3), read()
        self.lengths = self.rollout.response_mask_BR.sum(1)
        self.seen: Counter[str] = Counter()
        self.output_VD = output(trees()["policy"])
        heads = trees()["critic"]["heads"]
        self.heads = {name: (heads[name]["kernel"].astype(float), float(heads[name]["bias"])) for name in ("reward", "cost")}
        self.lam, self.old, self.advantage, self.returns = 0.0, {}, {}, {}
        self.score()

    def value(self, name: str, b: int, t: int) -> float:
        kernel_D, bias = self.heads[name]
        return float(self.read.critic_BRD[b, t] @ kernel_D + bias)

    def policy(self, b: int, t: int, output_VD: np.ndarray, hidden_BRD: np.ndarray) -> np.ndarray:
        return log_probabilities(output_VD, hidden_BRD[b, t], self.settings.rollout.temperature, VOCABULARY.never)

    def token(self, b: int, t: int) -> int:
        return int(self.rollout.tokens_BT[b, -R + t])

    def score(self) -> None:
        ppo, constraint = self.settings.ppo, self.settings.constraint
        kernels = {name: trees()["scorer"]["heads"][name]["kernel"].astype(float) for name in ("reward", "cost")}
        penalty = [0.0 if ended else ppo.missing_eos_penalty for ended in self.rollout.ended_B]
        end = {"reward": [float(self.read.end_BD[b] @ kernels["reward"]) - penalty[b] for b in range(B)]}
        end["cost"] = [STATISTICS[constraint.kind](float(self.read.end_BD[b] @ kernels["cost"])) for b in range(B)]
        over = float(np.mean(end["cost"])) - constraint.budget
        self.lam = min(max(constraint.init + constraint.learning_rate * over, 0.0), constraint.max)
        reference_VD, streams = output(trees()["reference"]), {}
        for name, sign in (("reward", -1.0), ("cost", 1.0)):
            spread = float(np.std(end[name])) if ppo.scale_scores == "std" else 1.0
            stream = streams[name] = {}
            for b in range(B):
                later, paid = 0.0, end[name][b] / spread
                self.seen["score clipped"] += abs(paid) > ppo.clip_score
                for t in reversed(range(self.lengths[b])):
                    last = t == self.lengths[b] - 1
                    reference = self.policy(b, t, reference_VD, self.read.reference_BRD)[self.token(b, t)]
                    kl = float(self.rollout.logp_BR[b, t]) - reference
                    earned = sign * ppo.kl_coef * kl + (min(max(paid, -ppo.clip_score), ppo.clip_score) if last else 0.0)
                    now, then = self.value(name, b, t), 0.0 if last else self.value(name, b, t + 1)
                    later = earned + ppo.gamma * then - now + ppo.gamma * ppo.gae_lambda * later
                    stream[b, t], self.old[name, b, t], self.returns[name, b, t] = later, now, later + now
            if ppo.whiten == "scale":
                size = float(np.std(list(stream.values())))
                streams[name] = {place: one / size for place, one in stream.items()}
        for place, reward in streams["reward"].items():
            self.advantage[place] = (reward - self.lam * streams["cost"][place]) / (1 + self.lam)

    def weights(self, rows: list[int]) -> dict[tuple[int, int], float]:
        """What each token counts in the mean over a minibatch."""
        tokens = sum(int(self.lengths[b]) for b in rows)
        whole = {b: tokens if self.settings.ppo.reduction == "token" else self.lengths[b] * len(rows) for b in rows}
        return {(b, t): 1 / whole[b] for b in rows for t in range(self.lengths[b])}

    def step(self, rows: list[int], ptx_rows: list[int]) -> None:
        weights = self.weights(rows)
        gradient_VD = self.policy_gradient(weights) + self.settings.ptx.coef * self.ptx_gradient(ptx_rows)
        for name, (kernel_D, bias) in self.heads.items():
            kernel_gradient_D, bias_gradient = self.value_gradient(name, weights)
            optimizer, width = self.settings.critic_optimizer, np.sqrt(kernel_D.size)
            kernel_D = descend(kernel_D, kernel_gradient_D, optimizer)
            self.heads[name] = kernel_D, float(descend(np.array(bias), bias_gradient, optimizer, width))
        self.output_VD = descend(self.output_VD, gradient_VD, self.settings.policy_optimizer)

    def value_gradient(self, name: str, weights: dict) -> tuple[np.ndarray, np.ndarray]:
        """Of 1/2 max((V - Ret)^2, (V_old + clip(V - V_old) - Ret)^2)."""
        kernel_D, bias, clip = np.zeros_like(self.heads[name][0]), np.zeros(()), self.settings.ppo.clip_value
        for (b, t), weight in weights.items():
            now, old, target = self.value(name, b, t), self.old[name, b, t], self.returns[name, b, t]
            near = old + min(max(now - old, -clip), clip)
            slope = now - target
            if (near - target) ** 2 > (now - target) ** 2:
                slope = near - target if abs(now - old) < clip else 0.0
                self.seen["value clipped"] += 1
            kernel_D, bias = kernel_D + weight * slope * self.read.critic_BRD[b, t], bias + weight * slope
        return kernel_D, bias

    def policy_gradient(self, weights: dict) -> np.ndarray:
        """Of - min(ratio A, clip(ratio) A)."""
        gradient_VD, clip = np.zeros_like(self.output_VD), self.settings.ppo.clip_ratio
        for (b, t), weight in weights.items():
            logp_V = self.policy(b, t, self.output_VD, self.read.policy_BRD)
            ratio = float(np.exp(logp_V[self.token(b, t)] - self.rollout.logp_BR[b, t]))
            advantage = self.advantage[b, t]
            if (ratio > 1 + clip and advantage > 0) or (ratio < 1 - clip and advantage < 0):
                self.seen["too high" if advantage > 0 else "too low"] += 1
                continue
            self.seen["out of range, but on its way back"] += abs(ratio - 1) > clip
            slope_V = (np.arange(VOCAB) == self.token(b, t)) - np.exp(logp_V)
            scale = -weight * ratio * advantage / self.settings.rollout.temperature
            gradient_VD += scale * np.outer(slope_V, self.read.policy_BRD[b, t])
        return gradient_VD

    def ptx_gradient(self, rows: list[int]) -> np.ndarray:
        """Of the mean of - log pi over the tokens of supervised rows."""
        batch, gradient_VD = supervised(), np.zeros_like(self.output_VD)
        tokens = [(b, t) for b in rows for t in range(batch.response_mask_BR[b].sum())]
        for b, t in tokens:
            hidden_D = self.read.ptx_BRD[b, t]
            slope_V = (np.arange(VOCAB) == batch.tokens_BT[b, -R + t]) - np.exp(log_probabilities(self.output_VD, hidden_D))
            gradient_VD -= np.outer(slope_V, hidden_D) / len(tokens)
        return gradient_VD


def dealt(known: Static) -> list[list[int]]:
    """The rows of every step of the first iteration."""
    key, ppo = states.key(known.settings.seed, 0, "minibatches"), known.settings.ppo
    epochs = [minibatches.draw(jax.random.fold_in(key, epoch), B, ppo.minibatches) for epoch in range(ppo.epochs)]
    return [np.ravel(rows).tolist() for epoch in epochs for rows in epoch]


def assert_moved_alike(new: Any, expected: Any, old: Any) -> None:
    """To a thousandth of the largest change; what did not move is no proof."""
    change = np.asarray(expected, float) - np.asarray(old, float)
    assert np.abs(change).max() > 1e-3
    np.testing.assert_allclose(np.asarray(new, float) - old, change, atol=1e-3 * np.abs(change).max())


@pytest.mark.slow
def test_two_epochs_of_two_minibatches_are_four_steps_on_the_rows_of_their_permutations(one_device):
    known = static(model=MODEL, **LINEAR | {"ppo.epochs": 2, "ppo.minibatches": 2})
    whole, steps = run(known), dealt(known)
    assert [len(rows) for rows in steps] == [B // 2] * 4
    assert sorted(steps[0] + steps[1]) == sorted(steps[2] + steps[3]) == list(range(B)) and steps[0] != steps[2]
    with jax.set_mesh(one_device):
        single = iteration(static(model=MODEL, **LINEAR), trees(), one_device)
        params, opt_state, *_ = single.initial_state()
        for rows in map(np.array, steps):
            part = jax.tree.map(operator.itemgetter(rows), whole.experience)
            arguments = part, None, Multipliers({"cost": whole.metrics["lambda"]}), jax.random.key(0), None, None
            params, opt_state, _ = single.update(params, opt_state, *arguments)
    assert_moved_alike(output(whole.params["policy"]), output(params["policy"]), output(trees()["policy"]))
    for name in ("reward", "cost"):
        assert_moved_alike(*(tree["critic"]["heads"][name]["kernel"] for tree in (whole.params, params, trees())))


def gradient(new: np.ndarray, old: np.ndarray, rate: float) -> np.ndarray:
    """The one that a step of `tiny_ppo.OPTIMIZER` was made from."""
    move = (old - new) / rate
    return move / (1 - np.abs(move))


@pytest.mark.slow
def test_ptx_adds_its_coefficient_times_the_supervised_gradient():
    start = output(trees()["policy"])
    alone, beside = (run(static(model=MODEL, **LINEAR | {"ptx.coef": coef})) for coef in (0.0, 0.25))
    ppo, both = (
        gradient(output(one.params["policy"]), start, LINEAR["policy_optimizer.learning_rate"]) for one in (alone, beside)
    )

    def loss(kernel_VD: jax.Array) -> jax.Array:
        tree = jax.tree.map(lambda x: x, trees()["policy"])
        tree["backbone"]["text"]["head"]["kernel"] = kernel_VD
        logp_BR, _ = sequences.response_logp(MODEL, tree, supervised(), None)
        return -jnp.sum(logp_BR) / supervised().response_mask_BR.sum()

    value, of_rows = jax.value_and_grad(loss)(jnp.asarray(start, jnp.float32))
    np.testing.assert_allclose(beside.metrics["ptx_loss"], value, rtol=1e-5)
    np.testing.assert_allclose(both - ppo, 0.25 * np.asarray(of_rows), atol=1e-4 * float(np.abs(of_rows).max()))


def test_whiten_scale_divides_each_stream_by_its_own_deviation_before_they_are_mixed():
    known = static(model=MODEL, **{"ppo.whiten": "scale"})
    score = jax.jit(functools.partial(experience.score, known, streams=True))
    scored, mask_BR = score(trees(), answers(B, 3), None), answers(B, 3).response_mask_BR
    reward_BR, cost_BR = (np.asarray(scored.streams[role].adv_BR, float) for role in ("reward_critic", "cost_critic"))
    expected_BR = (reward_BR / reward_BR[mask_BR].std() - 0.9 * cost_BR / cost_BR[mask_BR].std()) / 1.9
    mixed_BR = advantages.combine(scored.streams, mask_BR, {"cost": jnp.float32(0.9)}, known.settings.ppo)
    np.testing.assert_allclose(mixed_BR, expected_BR, atol=1e-5)
    plain_BR = advantages.combine(scored.streams, mask_BR, {"cost": jnp.float32(0.9)}, static(model=MODEL).settings.ppo)
    np.testing.assert_allclose(plain_BR, (reward_BR - 0.9 * cost_BR) / 1.9, atol=1e-5)


def test_scale_scores_std_divides_end_scores_by_their_deviation_and_leaves_kl_and_the_constraint_alone():
    def scored(scale: str) -> Experience:
        known = static(model=MODEL, **{"ppo.scale_scores": scale})
        return jax.jit(functools.partial(experience.score, known, streams=False))(trees(), answers(B, 3), None)

    plain, scaled = scored("none"), scored("std")
    np.testing.assert_array_equal(plain.costs_B["cost"], scaled.costs_B["cost"])
    last_B, rows = answers(B, 3).response_mask_BR.sum(1) - 1, np.arange(B)
    for role, end_B in (("reward_critic", plain.reward_B), ("cost_critic", plain.costs_B["cost"])):
        end_B, expected_BR = np.asarray(end_B, float), np.array(plain.token_BR[role], float)
        expected_BR[rows, last_B] += end_B / end_B.std() - end_B
        np.testing.assert_allclose(scaled.token_BR[role], expected_BR, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "events"),
    [
        pytest.param(PLAIN, {"score clipped", "too high", "too low", "out of range, but on its way back"}, id="one_step"),
        pytest.param(
            EVERYTHING,
            {"score clipped", "too high", "too low", "out of range, but on its way back", "value clipped"},
            id="every_option",
        ),
    ],
)
def test_the_whole_update_is_this_loop_over_rows_and_tokens(changes, events):
    known = static(model=MODEL, **changes)
    after, loop = run(known), Loop(known.settings)
    for number, rows in enumerate(dealt(known)):
        first = number % known.settings.ppo.minibatches
        loop.step(rows, list(range(first, PTX_ROWS, known.settings.ppo.minibatches)))
    assert events <= {name for name, times in loop.seen.items() if times}, loop.seen
    np.testing.assert_allclose(after.metrics["lambda"], loop.lam, rtol=1e-5)
    assert_moved_alike(output(after.params["policy"]), loop.output_VD, output(trees()["policy"]))
    for name, (kernel_D, bias) in loop.heads.items():
        head, start = after.params["critic"]["heads"][name], trees()["critic"]["heads"][name]
        assert_moved_alike(head["kernel"], kernel_D, start["kernel"])
        assert_moved_alike(head["bias"], bias, start["bias"])
