"""`srlhfv evaluate`: several policies on the same prompts, judged by the embedded task's oracle, by learned models, or by both.

prompts -> every policy's answers, then their scores (policy_answers) -> numbers of each and of each against the baseline (compare)
-> result.json, and the files that the report reads (records). One model is in memory at a time.
"""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from srlhfv_jax.config import DataConfig, MeshConfig, inference
from srlhfv_jax.data import sources
from srlhfv_jax.data.given import RowSettings, single_pass
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation import compare, measure_scorer, policy_answers, records, scoring
from srlhfv_jax.evaluation.answering import Sampler, named_paths
from srlhfv_jax.evaluation.score_metrics import judge_metrics
from srlhfv_jax.hf.load import Pretrained
from srlhfv_jax.parallel import hosts
from srlhfv_jax.parallel.mesh import use_mesh
from srlhfv_jax.runs import checkpoints

ALL_DEVICES = MeshConfig(data=-1, fsdp=1, tensor=1)


@dataclasses.dataclass(frozen=True)
class Settings(RowSettings):
    """Settings of one comparison: the flags of `srlhfv evaluate`, whose help says what each is."""

    workdir: str
    policies: str | None  # "name=path,name=path"
    baseline: str
    data: str | None
    pairs: str  # "" = the scorer itself is not measured
    scorer: str  # a path, or two: "REWARD,COST"; "" = none
    judge: str  # "oracle", "models" or ""
    temperature: float
    budget: float | None
    prompt_length: int  # tokens (P); 0 = that of the longest prompt
    response_length: int  # tokens (R)
    batch_size: int
    seed: int
    samples: int  # rows of samples.jsonl
    dtype: str


def check(settings: Settings) -> None:
    """Open all that is to be read before the first weights are: the last of them may be needed hours later.

    Raises:
        UserError: a mistake in what was given.
    """
    hosts.initialize()
    policies, scorers = _policies(settings), _scorers(settings)
    if settings.pairs and not scorers:
        raise UserError("--pairs measures reward and cost models: give --scorer=PATH, or REWARD,COST")
    if policies and settings.judge == "models" and not scorers:
        raise UserError(
            "--judge=models needs --scorer=PATH (the workdir of `srlhfv scores`, or REWARD,COST of two separate models)"
        )
    hosts.check_batch(settings.batch_size, use_mesh(ALL_DEVICES), "--batch_size of")
    for data in filter(None, (settings.pairs, policies and settings.data)):
        sources.check(_data(settings, data))
    for path in policies.values():
        checkpoints.check_checkpoint(path, "--policies")
    for path in scorers:
        checkpoints.check_checkpoint(path, "--scorer")
        scoring.check_score_heads(path, inference(settings.dtype))


def run(settings: Settings, workdir: Path) -> dict[str, float]:
    """Measure the scorer, compare the policies, or both; returns the numbers."""
    began, mesh = time.monotonic(), use_mesh(ALL_DEVICES)
    policies, scorers = _policies(settings), _scorers(settings)
    result: dict[str, float] = {}
    if settings.pairs:
        # lengths are those of the pairs
        data = dataclasses.replace(_data(settings, settings.pairs), prompt_length=0, response_length=0)
        result |= measure_scorer.measure(scorers, data, inference(settings.dtype), mesh, seed=settings.seed)
    if policies:
        result |= _compare(settings, workdir, policies, scorers, mesh)
    return result | {"seconds.total": time.monotonic() - began, "seed": settings.seed}


def _policies(settings: Settings) -> dict[str, str]:
    """Policies by name; {}: only the scorer is measured."""
    return named_paths(settings.policies or "") if settings.policies or not settings.pairs else {}


def _scorers(settings: Settings) -> list[str]:
    return [path for path in settings.scorer.split(",") if path]


def _compare(settings: Settings, workdir: Path, policies: Mapping[str, str], scorers: list[str], mesh: Mesh) -> dict[str, float]:
    """Sample every policy, then score, then compare."""
    data, model = _data(settings, settings.data), inference(settings.dtype)
    judge = settings.judge or ("models" if scorers else "oracle")
    sampler = Sampler(mesh, data, temperature=settings.temperature)
    sampled = {
        name: _sample(name, checkpoints.load(path, model, mesh), sampler, settings.seed) for name, path in policies.items()
    }
    scores: dict[str, dict[str, Any]] = {name: {} for name in policies}
    for path in scorers:
        for name, by_head in policy_answers.score(path, sampled, sampler, model).items():
            scores[name] |= by_head
    examples = next(iter(sampled.values())).prompts.examples
    judged = {}
    for name, policy in sampled.items():
        if judge == "oracle":
            judged[name] = compare.by_oracle(examples, policy.answers)
            judged[name].metrics.update(judge_metrics(scores[name]))
        else:
            judged[name] = compare.by_models(policy.answers, scores[name], budget=settings.budget)
    result = compare.compare(judged, settings.baseline or None)
    if settings.budget is not None:
        result["oracle_budget" if judge == "oracle" else "controller_budget"] = settings.budget
    if hosts.process_index() == 0:
        records.write_samples(workdir / records.SAMPLES, examples, judged, count=settings.samples, seed=settings.seed)
        records.write_answers(workdir / records.ANSWERS, examples, judged)
        records.write_distributions(workdir / records.DISTRIBUTIONS, judged)
    return result


def _sample(name: str, policy: Pretrained, sampler: Sampler, seed: int) -> policy_answers.SampledPolicy:
    return policy_answers.sample(name, policy, policy_answers.read_prompts(sampler.data, policy), sampler, seed)


def _data(settings: Settings, path: str) -> DataConfig:
    lengths = dict(prompt_length=settings.prompt_length, response_length=settings.response_length)
    return single_pass(path, settings, **lengths, batch_size=settings.batch_size)
