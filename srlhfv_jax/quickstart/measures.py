"""Steps of the comparison beside training: what a method goes on from, and what is measured of its policy beyond the oracle's numbers.

Before:  answer_blindly, dual
After:   blank_drop, learned_cost, merged, refusal_after, shares
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from srlhfv_jax.data import loader, sources
from srlhfv_jax.data.preferences import Choice
from srlhfv_jax.data.quickstart import answers
from srlhfv_jax.evaluation import answering, controls, dual as duals, forced, oracle
from srlhfv_jax.guard import generate
from srlhfv_jax.losses import dual as losses
from srlhfv_jax.parallel.mesh import use_mesh
from srlhfv_jax.preference import reference
from srlhfv_jax.quickstart import kinds
from srlhfv_jax.quickstart.kinds import ANSWERS, SCORER, SFT, Method
from srlhfv_jax.quickstart.pipeline import PAIR_BATCH, Pipeline
from srlhfv_jax.runs import checkpoints
from srlhfv_jax.runs.merge import merge_policies

BETA = 0.5  # of most methods on pairs; the published 0.1 lets a small model's answers fall apart
BLIND_ROWS = 4096
# of mocan's multiplier: mean learned cost, as a share of the way from the lowest one to that of the reward alone
DUAL_BUDGET = 0.03
DUAL_PROMPTS, DUAL_SAMPLES = 256, 16
MERGED = "0,0.25,0.5,0.75,1"  # of SACPO, between its first step's policy and itself
SHARES = (0.0, 0.05, 0.1, 0.2, 0.4)  # of benign rows whose answer is a refusal
FORCED = (0, 2, 4, 8)  # tokens of a harmful answer that a policy is given


def answer_blindly(pipeline: Pipeline, out: Path) -> dict[str, float]:
    """Record what the supervised policy says to prompts of the pairs whose pictures are grey."""
    out.mkdir(parents=True, exist_ok=True)
    (out / ANSWERS).unlink(missing_ok=True)  # of a start that was stopped
    data = pipeline.settings.ppo_lag.data
    settings = generate.Settings(
        policy=str(pipeline.workdir / SFT),
        rounds=0,
        data=str(pipeline.workdir / "pairs" / "round1.parquet"),
        split=f"[:{BLIND_ROWS}]",
        out=str(out / ANSWERS),
        picture="blank",
        temperature=pipeline.task.pair_temperature,
        prompt_length=data.prompt_length,
        response_length=data.response_length,
        batch_size=PAIR_BATCH,
        seed=pipeline.settings.seed,
        dtype=pipeline.settings.ppo_lag.model.dtype,
    )
    _, count = generate.answer_rows(settings)
    return {"answers": float(count)}


def dual(pipeline: Pipeline, out: Path) -> dict[str, float]:
    """The multiplier of a budget, from scored answers of the supervised policy to some of PPO's prompts."""
    settings = _sampling(pipeline, pipeline.workdir / SFT, out)
    recorded = duals.record(settings, out)
    lowest, free = losses.feasible_range(recorded.reward_NG, recorded.cost_NG, BETA)
    return duals.solve(dataclasses.replace(settings, budget=lowest + DUAL_BUDGET * (free - lowest)), recorded)


def learned_cost(pipeline: Pipeline, name: str, method: Method, policy: Path, out: Path) -> dict[str, float]:
    """`NAME.learned_cost`: mean learned cost of the policy's own answers to the prompts of `dual`, to be held against its budget."""
    recorded = duals.record(_sampling(pipeline, policy, out), out)
    return {f"{name}.learned_cost": float(recorded.cost_NG.mean()), f"{name}.learned_reward": float(recorded.reward_NG.mean())}


def _sampling(pipeline: Pipeline, policy: Path, out: Path) -> duals.Settings:
    """Settings of `srlhfv dual` with a budget that is set when the costs are known."""
    out.mkdir(parents=True, exist_ok=True)
    data = pipeline.settings.ppo_lag.data
    return duals.Settings(
        workdir=str(out),
        policy=str(policy),
        data=str(pipeline.data / "prompts.parquet"),
        scorer=str(pipeline.workdir / SCORER),
        budget=0.0,
        beta=BETA,
        samples=DUAL_SAMPLES,
        prompts=DUAL_PROMPTS,
        prompt_length=data.prompt_length,
        response_length=data.response_length,
        batch_size=PAIR_BATCH,
        seed=pipeline.settings.seed,
        dtype=pipeline.settings.ppo_lag.model.dtype,
    )


def blank_drop(pipeline: Pipeline, name: str, method: Method, policy: Path, out: Path) -> dict[str, float]:
    """`NAME.blank_drop`: nats by which the log-probability of safer answers, on held-out pairs, falls when the picture is grey; per token."""
    stage = kinds.on_pairs_from(pipeline, "dpo_harmless", {}, policy, rate=1.0)
    data = dataclasses.replace(stage.data, path=str(pipeline.workdir / "pairs_heldout"))
    shape, examples = checkpoints.load_shape(str(policy), stage.model), sources.load_examples(data)
    totals = []
    for place, rows in (("real", examples), ("blank", controls.blanked(examples))):
        prepared = loader.fit("preference", rows, shape.processor, data, choice=Choice("safer", "none", False))
        reader = reference.Reader(data, stage.model, use_mesh(stage.mesh), 1, out / place)
        sides = [row.example.chosen for row in prepared.rows]
        logp_NS = reference.logp(str(policy), prepared, reader)
        tokens = sum(len(row.responses[side]) for row, side in zip(prepared.rows, sides, strict=True))
        totals.append(float(logp_NS[np.arange(len(sides)), sides].sum()) / tokens)
    return {f"{name}.blank_drop": totals[0] - totals[1]}


def merged(pipeline: Pipeline, name: str, method: Method, policy: Path, out: Path) -> dict[str, float]:
    """`NAME_merge.Q.KEY`: the policies between the one that a method starts from (q = 0) and its own (q = 1)."""
    result = {}
    for between in merge_policies(str(kinds.folder(pipeline, method.start)), str(policy), out, MERGED):
        numbers = pipeline.judge(between, "test").metrics
        result |= {f"{name}_merge.{between.name.removeprefix('q')}.{key}": value for key, value in numbers.items()}
    return result


def refusal_after(pipeline: Pipeline, name: str, method: Method, policy: Path, out: Path) -> dict[str, float]:
    """`NAME.refusal_after.K`, and `sft.` beside it: share of harmful test prompts whose answer, after k forced tokens of a harmful
    one, declines."""
    of_each = {SFT: pipeline.workdir / SFT, name: policy}
    return {f"{who}.refusal_after.{count}": share for who in of_each for count, share in refusals(pipeline, of_each[who], "test")}


def refusals(pipeline: Pipeline, policy: Path, split: str) -> Iterator[tuple[int, float]]:
    """(forced tokens, share of answers that decline after them) on the harmful prompts of a split."""
    sampler, prompts, texts = pipeline.sampler(1.0), pipeline.prompts(split), {}
    for row in prompts.rows:
        concept, intent = oracle.cell(prompts.examples[row.row])
        if oracle.is_harmful(prompts.examples[row.row]):
            texts[row.row] = answers.comply(intent, answers.content(concept, intent), None)
    longest = prompts.frame._replace(prompt_length=prompts.frame.prompt_length + max(FORCED))
    loaded = checkpoints.load(str(policy), pipeline.settings.ppo_lag.model, sampler.mesh)
    for count in FORCED:
        begun = forced.begun(prompts, texts, count)._replace(frame=longest)  # of one shape for all: it compiles once
        drawn = sampler.answers(loaded, begun, answering.keys(pipeline.settings.seed))
        yield count, forced.declined(prompts.examples, drawn)


def shares(pipeline: Pipeline, name: str, method: Method, policy: Path, out: Path) -> dict[str, float]:
    """`NAME.SHARE.KEY`: the same method with other shares of refusals; with none of them it is `plain`, the same steps without it."""
    plain, result = method._replace(changes={}), {}
    for share in SHARES:
        if share == 0:
            pipeline.step("compare.plain", kinds.on_rows(pipeline, plain, {}))
            numbers = kinds.judged(pipeline, "plain", kinds.folder(pipeline, "plain"))
        elif share == method.changes["share"]:
            numbers = kinds.judged(pipeline, name, policy)
        else:
            kinds.on_rows(pipeline, method._replace(changes={**method.changes, "share": share}), {})(out / f"{share:g}")
            numbers = pipeline.judge(out / f"{share:g}", "test").metrics
        result |= {f"{name}.{share:g}.{key}": value for key, value in numbers.items()}
    return result
