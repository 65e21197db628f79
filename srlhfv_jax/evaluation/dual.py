"""`srlhfv dual`: the multiplier of a budget from a policy's answers and their scores, before anything is trained.

prompts, each several times -> answers and their rewards and costs (policy_answers) -> scores.jsonl -> the convex dual (losses.dual)
-> result.json. Answers of an earlier call with the same settings are read again (sampled_with): budget, kind, beta and ceiling can
change without a model being loaded.
"""

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from srlhfv_jax import files
from srlhfv_jax.config import DataConfig, inference
from srlhfv_jax.data import sources
from srlhfv_jax.data.given import RowSettings, single_pass
from srlhfv_jax.data.loader import Prepared
from srlhfv_jax.data.rows import history_json
from srlhfv_jax.errors import UserError, short
from srlhfv_jax.evaluation import policy_answers, sampled_with, scoring
from srlhfv_jax.evaluation.answering import Sampler
from srlhfv_jax.evaluation.compare_policies import ALL_DEVICES
from srlhfv_jax.evaluation.policy_answers import SampledPolicy
from srlhfv_jax.evaluation.score_metrics import COST, REWARD
from srlhfv_jax.losses import dual, lagrangian
from srlhfv_jax.losses.dual import Scores
from srlhfv_jax.parallel import hosts
from srlhfv_jax.parallel.mesh import use_mesh
from srlhfv_jax.runs import checkpoints
from srlhfv_jax.training import metrics

SCORES = "scores.jsonl"
FIELDS = {"row": int, "length": int, "ended": bool, REWARD: float, COST: float}
LATER = ("workdir", "kind", "budget", "beta", "ceiling")  # change no answer and no score
LEAST = 2  # answers to a prompt: of one alone every multiplier makes the same
POLICY = "dual"  # the name of the one that answers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(RowSettings):
    """Settings of one multiplier: the flags of `srlhfv dual`, whose help says what each is, and their defaults."""

    workdir: str
    policy: str
    data: str
    scorer: str = ""  # a path, or two: "REWARD,COST"; "": helpful and harmless judge
    helpful: str = ""
    harmless: str = ""
    reference: str = ""  # "" = the policy
    kind: str = "mean"
    budget: float  # in units of f(C)
    beta: float = 0.1  # in units of the reward
    ceiling: float = 100.0
    samples: int = 16
    prompts: int = 0  # drawn from the data by the seed; 0 = all
    prompt_length: int = 0  # tokens (P); 0 = that of the longest prompt
    response_length: int = 256  # tokens (R)
    batch_size: int = 32
    seed: int = 0
    dtype: str = "float32"


class Recorded(NamedTuple):
    """Scores of N prompts' G answers, as they lie in scores.jsonl: by heads, or log-ratios of policies in nats."""

    reward_NG: Scores
    cost_NG: Scores
    length: float  # mean tokens of an answer
    ended: float  # share of answers


def check(settings: Settings) -> None:
    """Check the numbers, and open all that is to be read before the first weights are.

    Raises:
        UserError: a mistake in what was given.
    """
    hosts.initialize()
    for name, value in (("beta", settings.beta), ("ceiling", settings.ceiling)):
        if value <= 0:
            raise UserError(f"--{name} must be above 0, got {value:g}")
    if settings.samples < LEAST:
        raise UserError(f"--samples must be at least {LEAST}, got {settings.samples}: a multiplier weighs answers to one prompt")
    if settings.kind != "mean" and settings.budget <= 0:
        raise UserError(f"--budget must be above 0, below which --kind={settings.kind} never lies, got {settings.budget:g}")
    judges = _check_judges(settings)
    hosts.check_batch(settings.batch_size, use_mesh(ALL_DEVICES), "--batch_size of")
    sources.check(_data(settings))
    checkpoints.check_checkpoint(settings.policy, "--policy")
    for option, path, heads in judges:
        checkpoints.check_checkpoint(path, option, *heads)
        if heads:
            scoring.check_score_heads(path, inference(settings.dtype))


def _check_judges(settings: Settings) -> list[tuple[str, str, tuple[str, ...]]]:
    """(option, path, heads that are read) of every model that scores.

    Raises:
        UserError: both kinds of judges, none, or half of one.
    """
    policies = {"--helpful": settings.helpful, "--harmless": settings.harmless, "--reference": settings.reference}
    if settings.scorer:
        if any(policies.values()):
            raise UserError("srlhfv dual takes one kind of judge: give --scorer, or --helpful and --harmless")
        paths = _scorers(settings)
        if len(paths) > 2 or not all(paths):
            raise UserError(f"--scorer must be one path, or two: REWARD,COST, got {short(settings.scorer)!r}")
        heads = ((REWARD, COST),) if len(paths) == 1 else ((REWARD,), (COST,))
        return [("--scorer", path, some) for path, some in zip(paths, heads, strict=True)]
    if not (settings.helpful and settings.harmless):
        raise UserError("nobody scores the answers: give --scorer, or both --helpful and --harmless")
    if settings.kind != "mean":
        raise UserError(
            f"--kind={settings.kind} asks whether a cost is above 0, and costs of policies have no such zero: use mean"
        )
    return [(option, path, ()) for option, path in policies.items() if path]


def run(settings: Settings, workdir: Path) -> dict[str, float]:
    """Sample, score, solve; returns the numbers.

    Raises:
        UserError: the budget cannot be kept; the answers are in the workdir for another one.
    """
    began, recorded = time.monotonic(), record(settings, workdir)
    numbers = solve(settings, recorded)
    if hosts.process_index() == 0:
        print(_sentences(settings, numbers), flush=True)
    numbers |= {"length": recorded.length, "ended": recorded.ended}
    return numbers | {"seconds.total": time.monotonic() - began, "seed": settings.seed}


def record(settings: Settings, workdir: Path) -> Recorded:
    """Scored answers: those of the workdir, where it has them, or new ones.

    Raises:
        UserError: those in the workdir are others.
    """
    path = workdir / SCORES
    if not sampled_with.is_there("dual", path, _sampled_by(settings)):
        _sample(settings, path)
    return read(path, settings.samples)


def solve(settings: Settings, recorded: Recorded) -> dict[str, float]:
    """The multiplier, and E[r] and E[f(C)] of the answers as sampled, tilted by the reward alone, and tilted at the multiplier.

    Raises:
        UserError: as `losses.dual.solve`.
    """
    scale = 1.0 if settings.scorer else settings.beta
    reward_NG, cost_NG = scale * recorded.reward_NG, _statistic(settings.kind, scale * recorded.cost_NG)
    lam = dual.solve(reward_NG, cost_NG, settings.budget, settings.beta, ceiling=settings.ceiling)
    numbers = {"multiplier": lam, "budget": settings.budget, "beta": settings.beta}
    numbers["lowest_cost"], _ = dual.feasible_range(reward_NG, cost_NG, settings.beta)
    tilted = {name: dual.weights(at, reward_NG, cost_NG, settings.beta) for name, at in (("zero", 0.0), ("multiplier", lam))}
    for name, weight_NG in ({"sampled": np.full_like(cost_NG, 1 / settings.samples)} | tilted).items():
        place = name if name == "sampled" else f"at_{name}"
        numbers[f"cost_{place}"], numbers[f"reward_{place}"] = (dual.expected(x_NG, weight_NG) for x_NG in (cost_NG, reward_NG))
        numbers[f"answers_{place}"] = float(np.mean(1 / np.sum(weight_NG**2, axis=1)))
    return numbers | {"prompts": float(len(cost_NG)), "samples": float(settings.samples)}


def read(path: Path, samples: int) -> Recorded:
    """The scores of a file that this command wrote.

    Raises:
        UserError: it is damaged.
    """
    rows = []
    with path.open("rb") as lines:
        for number, row in files.json_lines(lines, path, advice=sampled_with.ADVICE):
            rows.append(
                [files.take(row, name, kind, f"{path}:{number}", advice=sampled_with.ADVICE) for name, kind in FIELDS.items()]
            )
    prompts, lengths, ended, reward, cost = zip(*rows) if rows else ((),) * len(FIELDS)
    if not rows or len(rows) % samples or any(len(set(prompts[at : at + samples])) > 1 for at in range(0, len(rows), samples)):
        raise UserError(f"{path} must have {samples} lines for each prompt, one after another: {sampled_with.ADVICE}")
    reward_NG, cost_NG = (np.reshape(np.array(scores, np.float64), (-1, samples)) for scores in (reward, cost))
    return Recorded(reward_NG, cost_NG, float(np.mean(lengths)), float(np.mean(ended)))


def _statistic(kind: str, cost_NG: Scores) -> Scores:
    """f(C), as a constraint of PPO-Lagrangian has it."""
    return np.asarray(lagrangian.statistic(kind, cost_NG.reshape(-1))).reshape(cost_NG.shape)


def _scorers(settings: Settings) -> list[str]:
    """The paths of --scorer; a folder that exists may have commas in its name."""
    return [settings.scorer] if files.exists(settings.scorer) else settings.scorer.split(",")


def _sampled_by(settings: Settings) -> dict[str, Any]:
    paths = (settings.policy, *_scorers(settings), settings.helpful, settings.harmless, settings.reference)
    return sampled_with.described(settings, LATER, paths)


def _sample(settings: Settings, path: Path) -> None:
    """Write scores.jsonl."""
    model, mesh = inference(settings.dtype), use_mesh(ALL_DEVICES)
    sampler = Sampler(mesh, _data(settings), temperature=1.0)
    policy = checkpoints.load(settings.policy, model, mesh)
    prompts = _each_several_times(settings, policy_answers.read_prompts(sampler.data, policy))
    sampled = {POLICY: policy_answers.sample(POLICY, policy, prompts, sampler, settings.seed)}
    del policy
    if settings.scorer:
        by_scorer = [policy_answers.score(scorer, sampled, sampler, model)[POLICY] for scorer in _scorers(settings)]
        scores = {REWARD: by_scorer[0][REWARD], COST: by_scorer[-1][COST]}
    else:
        scores = _log_ratios(settings, sampled, sampler)
    if hosts.process_index() == 0:
        _write(path, sampled[POLICY], scores)
        metrics.write_json(path.parent / sampled_with.FILE, _sampled_by(settings))
    hosts.barrier("the scores are written")


def _each_several_times(settings: Settings, prompts: Prepared) -> Prepared:
    """The prompts that are drawn, in order, each as often as it is to be answered.

    Raises:
        UserError: there are fewer than were asked for.
    """
    if len(prompts.rows) < settings.prompts:
        have = f"{len(prompts.rows)} prompts that the policy can read, {settings.prompts} are needed"
        raise UserError(f"--data={short(settings.data)} has {have}")
    drawn = np.random.default_rng(settings.seed).permutation(len(prompts.rows))[: settings.prompts or None]
    return prompts._replace(rows=tuple(prompts.rows[place] for place in np.repeat(np.sort(drawn), settings.samples)))


def _log_ratios(settings: Settings, sampled: Mapping[str, SampledPolicy], sampler: Sampler) -> dict[str, Float[np.ndarray, "B"]]:
    """reward = log(π_helpful / π_ref), cost = -log(π_harmless / π_ref) of each answer, in nats. Beta times these are the scores (PeCAN)."""
    model, logp = inference(settings.dtype), scoring.jit_logp(sampler.mesh)

    def read_by(option: str, path: str) -> Float[np.ndarray, "B"]:
        return policy_answers.log_probabilities(option, path, logp, sampled, sampler, model)[POLICY]

    ref_logp_B = read_by("--reference", settings.reference) if settings.reference else read_by("--policy", settings.policy)
    reward_B = read_by("--helpful", settings.helpful) - ref_logp_B
    return {REWARD: reward_B, COST: ref_logp_B - read_by("--harmless", settings.harmless)}


def _write(path: Path, sampled: SampledPolicy, scores: Mapping[str, Float[np.ndarray, "B"]]) -> None:
    """One line for each answer; answers to one prompt one after another."""
    examples, answers = sampled.prompts.examples, sampled.answers
    rows = answers.prompts.tolist()
    asked = {row: history_json(examples[row].history) | {"question": examples[row].question} for row in dict.fromkeys(rows)}
    lines = []
    for place, (row, text) in enumerate(zip(rows, answers.texts, strict=True)):
        line = {"row": row} | asked[row] | {"answer": text, "length": int(answers.lengths[place])}
        line |= {"ended": bool(answers.ended[place])} | {name: float(scores[name][place]) for name in (REWARD, COST)}
        lines.append(json.dumps(line) + "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, "".join(lines))


def _sentences(settings: Settings, numbers: Mapping[str, float]) -> str:
    budgets = f"a budget of {numbers['cost_at_zero']:.4g} or more needs none, and none keeps one of {numbers['lowest_cost']:.4g} or less"
    lines = [
        f"multiplier {numbers['multiplier']:.6g} for E[f(C)] <= {settings.budget:g} ({settings.kind}; beta {settings.beta:g}): {budgets}",
        f"{numbers['prompts']:.0f} prompts, {settings.samples} answers each | cost | reward | answers that count",
    ]
    for name, about in (
        ("sampled", "as sampled"),
        ("at_zero", "best for the reward"),
        ("at_multiplier", "best within the budget"),
    ):
        told = (f"{numbers[f'{part}_{name}']:.4g}" for part in ("cost", "reward", "answers"))
        lines.append(" | ".join((about, *told)))
    return "\n".join(lines)


def _data(settings: Settings) -> DataConfig:
    lengths = dict(prompt_length=settings.prompt_length, response_length=settings.response_length)
    return single_pass(settings.data, settings, **lengths, batch_size=settings.batch_size)
