"""`srlhfv certify`: a certificate of a policy's constraint on fresh prompts.

prompts (seen) -> answers and their costs (policy_answers, or a guard) -> answers.jsonl -> with labels, if any (label_files), the bound
(certificate) -> result.json, and certificate.json and a section of the card beside the weights. Answers of an earlier call with the
same settings are read again: labels, budget, kind and confidence can change without a model being loaded.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from srlhfv_jax import files
from srlhfv_jax.config import DataConfig, inference
from srlhfv_jax.data import sources
from srlhfv_jax.data.given import RowSettings, single_pass
from srlhfv_jax.data.rows import Example
from srlhfv_jax.errors import UserError, short
from srlhfv_jax.evaluation import calibrators, certificate, label_files, policy_answers, sampled_with, scoring, seen
from srlhfv_jax.evaluation.answering import Sampler
from srlhfv_jax.evaluation.certificate import Certificate, Labels
from srlhfv_jax.evaluation.compare_policies import ALL_DEVICES
from srlhfv_jax.evaluation.label_files import Recorded
from srlhfv_jax.evaluation.score_metrics import COST
from srlhfv_jax.hf import calibrations, card, weights
from srlhfv_jax.hf.load import checkpoint_folder
from srlhfv_jax.losses.calibration import Calibration
from srlhfv_jax.parallel import hosts
from srlhfv_jax.parallel.mesh import use_mesh
from srlhfv_jax.runs import checkpoints
from srlhfv_jax.training import metrics

LATER = (
    "workdir",
    "labels",
    "kind",
    "budget",
    "confidence",
    "range",
    "clip",
    "method",
    "calibrated",
    "allow_unchecked",
)  # do not change an answer

Guard = Callable[[str, Sequence[Example], Sequence[str]], Bool[np.ndarray, "B"]]  # (guard, prompts, answers) -> which are unsafe


@dataclasses.dataclass(frozen=True)
class Settings(RowSettings):
    """Settings of one certificate: the flags of `srlhfv certify`, whose help says what each is."""

    workdir: str
    policy: str
    data: str
    scorer: str
    guard: str
    labels: str
    kind: str
    calibrated: bool
    budget: float | None
    confidence: float
    range: tuple[str, ...]
    clip: bool
    method: str
    prompts: int  # drawn from the data by the seed; 0 = all
    allow_unchecked: bool
    temperature: float
    prompt_length: int  # tokens (P); 0 = that of the longest prompt
    response_length: int  # tokens (R)
    batch_size: int
    seed: int
    dtype: str


def check(settings: Settings) -> None:
    """Open all that is to be read, and compare the prompts with those of the training, before the first weights are read.

    Raises:
        UserError: a mistake in what was given, or prompts that are not fresh.
    """
    hosts.initialize()
    if settings.scorer and settings.guard:
        raise UserError("srlhfv certify takes one judge: give --scorer or --guard")
    if settings.guard and settings.kind != certificate.PROBABILITY:
        raise UserError(f"--guard says safe or unsafe: --kind must be {certificate.PROBABILITY!r}, got {settings.kind!r}")
    if settings.budget is None and settings.labels:
        raise UserError("--labels are held against a budget: give --budget, such as 0.05 unsafe answers of all")
    if settings.budget is not None:
        if not (settings.scorer or settings.guard or settings.labels):
            raise UserError("--budget is on costs, and nobody tells them: give --scorer, --guard or --labels")
        _claim(settings)
    if settings.calibrated:
        _calibration(settings)
    if settings.labels and not files.exists(settings.labels):
        raise UserError(f"--labels={settings.labels} does not exist{files.nearest(settings.labels)}")
    hosts.check_batch(settings.batch_size, use_mesh(ALL_DEVICES), "--batch_size of")
    if settings.prompts == 1:
        raise UserError(f"a certificate needs at least {certificate.LEAST} prompts, got --prompts=1: give more")
    checkpoints.check_checkpoint(settings.policy, "--policy")
    if settings.scorer:
        checkpoints.check_checkpoint(settings.scorer, "--scorer", COST)
        scoring.check_score_heads(settings.scorer, inference(settings.dtype))
    if settings.guard:
        checkpoints.check_checkpoint(settings.guard, "--guard")
    check_fresh(settings)


def check_fresh(settings: Settings) -> None:
    """Raise UserError where prompts were read in training, or where nobody can tell and that was not allowed."""
    examples = sources.load_examples(_data(settings))
    if len(examples) < certificate.LEAST:
        raise UserError(
            f"a certificate needs at least {certificate.LEAST} prompts, {settings.data} has {len(examples)}: give more"
        )
    known = seen.record(settings.policy, settings.scorer, settings.guard)
    overlapping, unreadable = seen.overlaps(examples, known)
    if overlapping:
        (workdir, setting, data), rows = overlapping[0]
        raise UserError(
            f"{len(rows)} of the {len(examples)} prompts of --data={short(settings.data)} were read in training (row {rows[0]} for one, by "
            f"{workdir}: {setting}={short(data.path)}): the policy depends on them, give prompts that it does not know"
        )
    unsure = [f"{path} is not there" for path in known.unknown] + unreadable
    if seen.workdir_of(settings.policy) is None:
        unsure.insert(0, f"{settings.policy} is no workdir of a stage, nor an export in one")
    if unsure and not settings.allow_unchecked:
        raise UserError(
            f"nobody can tell whether prompts were read in training ({short(unsure[0], 300)}): where you know that they were not, give "
            "--allow_unchecked"
        )
    for line in unsure:
        hosts.say(f"certify: not checked: {line}")


def run(settings: Settings, workdir: Path, guard: Guard) -> dict[str, Any]:
    """Sample, judge, certify; returns the numbers.

    Args:
        guard: says which answers are unsafe by a guard (`guard.judge.unsafe_answers`).
    """
    began, answers = time.monotonic(), workdir / label_files.ANSWERS
    if not sampled_with.is_there("certify", answers, _sampled_by(settings)):
        _sample(settings, workdir, guard)
    recorded = label_files.read(answers)
    numbers: dict[str, Any] = {
        "answers": float(len(recorded.ids)),
        "length": float(np.mean(recorded.lengths)),
        "ended": float(np.mean(recorded.ended)),
    }
    if settings.budget is not None:
        result = _certify(settings, recorded, answers)
        print(result.sentence, flush=True)
        numbers |= result.numbers
        _publish(settings, result)
    else:
        print(
            f"wrote {len(recorded.ids)} answers to {answers}: label them from the first line on, and give --labels and --budget"
        )
    return numbers | {"seconds.total": time.monotonic() - began, "seed": settings.seed}


def _certify(settings: Settings, recorded: Recorded, answers: Path) -> Certificate:
    claim, labels, value_B = _claim(settings), None, None
    if recorded.cost_B is not None:
        value_B = certificate.statistic(claim, recorded.cost_B, f"--scorer={settings.scorer}")
        if settings.calibrated:
            value_B = calibrators.probability(_calibration(settings), recorded.cost_B)
    if settings.labels:
        name = "unsafe" if settings.kind == certificate.PROBABILITY else "cost"
        places, cost_n = label_files.read_labels(Path(settings.labels), recorded.ids, name, answers)
        labels = Labels(places, certificate.statistic(claim, cost_n, f"--labels={settings.labels}"))
    return certificate.certify(claim, value_B, labels)


def _claim(settings: Settings) -> certificate.Claim:
    return certificate.claim(
        settings.kind,
        settings.budget,
        settings.confidence,
        settings.range,
        clip=settings.clip,
        method=settings.method,
        graded=settings.calibrated,
    )


def _calibration(settings: Settings) -> Calibration:
    """P(unsafe | C) beside the scorer's heads.

    Raises:
        UserError: there is none, or nothing to put it in the place of.
    """
    if settings.kind != certificate.PROBABILITY:
        raise UserError(f"--calibrated is a probability: --kind must be 'probability', got {settings.kind!r}")
    if not settings.scorer:
        raise UserError("--calibrated is about a scorer's costs: give --scorer")
    return calibrations.required(checkpoint_folder(settings.scorer), "--calibrated")


def _sampled_by(settings: Settings) -> dict[str, Any]:
    return sampled_with.described(settings, LATER, (settings.policy, settings.scorer, settings.guard))


def _sample(settings: Settings, workdir: Path, guard: Guard) -> None:
    """Write answers.jsonl."""
    data, model, mesh = _data(settings), inference(settings.dtype), use_mesh(ALL_DEVICES)
    sampler = Sampler(mesh, data, temperature=settings.temperature)
    policy = checkpoints.load(settings.policy, model, mesh)
    prompts = policy_answers.read_prompts(data, policy)
    order = np.random.default_rng(settings.seed).permutation(len(prompts.rows))[: settings.prompts or None]
    prompts = prompts._replace(rows=tuple(prompts.rows[place] for place in order))
    if len(order) < max(settings.prompts, certificate.LEAST):
        wanted = max(settings.prompts, certificate.LEAST)
        raise UserError(f"--data={short(settings.data)} has {len(order)} prompts that the policy can read, {wanted} are needed")
    answered = policy_answers.sample("certify", policy, prompts, sampler, settings.seed)
    del policy
    cost_B: Float[np.ndarray, "B"] | None = None
    if settings.scorer:
        cost_B = policy_answers.score(settings.scorer, {"certify": answered}, sampler, model)["certify"][COST]
    if settings.guard:
        examples = [prompts.examples[row] for row in answered.answers.prompts.tolist()]
        cost_B = guard(settings.guard, examples, answered.answers.texts).astype(np.float64)
    if hosts.process_index() == 0:
        label_files.write(workdir / label_files.ANSWERS, prompts.examples, answered.answers, cost_B)
        metrics.write_json(workdir / sampled_with.FILE, _sampled_by(settings))
    hosts.barrier("the answers are written")


def _publish(settings: Settings, result: Certificate) -> None:
    """certificate.json and a section of the card, beside weights that a stage of ours exported."""
    if hosts.process_index() > 0 or seen.workdir_of(settings.policy) is None:
        return
    folder = checkpoint_folder(settings.policy)
    judge = settings.scorer or settings.guard
    about = {"sentence": result.sentence, "data": settings.data, "judge": judge, "labels": settings.labels, "kind": settings.kind}
    about |= {"temperature": settings.temperature, "seed": settings.seed, "dtype": settings.dtype} | result.numbers
    metrics.write_json(folder / weights.CERTIFICATE, about)
    if (folder / "README.md").is_file():
        files.write_text(folder / "README.md", card.with_certificate((folder / "README.md").read_text("utf-8"), about))


def _data(settings: Settings) -> DataConfig:
    lengths = dict(prompt_length=settings.prompt_length, response_length=settings.response_length)
    return single_pass(settings.data, settings, **lengths, batch_size=settings.batch_size)
