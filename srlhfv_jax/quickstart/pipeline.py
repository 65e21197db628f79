"""The whole pipeline on the embedded task, one stage after the other, each in a folder of its own under the workdir.

    base -> data -> naming, sft -> for each round: pairs -> scores -> ppo_lag -> ppo (no constraint) -> evaluation
    -> guard -> guarded answers -> report

A finished stage is not run again: the same command goes on where it was stopped. Final numbers come from the oracle on test
prompts, sampled at temperature 1; the learned models' scores appear only as their own accuracies.
"""

import dataclasses
import json
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from srlhfv_jax import files
from srlhfv_jax.config import GuardConfig, PPOLagConfig, QuickstartConfig, TaskConfig
from srlhfv_jax.data import loader
from srlhfv_jax.data.quickstart import oracle, processor, rows as task_rows
from srlhfv_jax.errors import UserError, reason
from srlhfv_jax.evaluation import answering, compare, records
from srlhfv_jax.guard import train as guard_training
from srlhfv_jax.parallel import hosts
from srlhfv_jax.parallel.mesh import use_mesh
from srlhfv_jax.ppo_lag import run as ppo_lag
from srlhfv_jax.quickstart import guard as quickstart_guard, probes
from srlhfv_jax.runs import checkpoints
from srlhfv_jax.runs.run import write_settings
from srlhfv_jax.supervised import scores, sft
from srlhfv_jax.training.metrics import write_json, write_result


def run(settings: QuickstartConfig, workdir: Path, sweep: bool = False) -> dict[str, float]:
    """Run every stage that is not done yet; writes WORKDIR/result.json, samples.jsonl and score_distributions.json.

    `seconds.total` leaves the fixed multipliers out: they are no part of a run.

    Args:
        sweep: also train `settings.sweep` fixed multipliers, to compare with (`fixed_lambda.*`).
    """
    pipeline = Pipeline(settings, Path(workdir))
    write_settings(pipeline.workdir, settings)
    result: dict[str, Any] = pipeline.start()
    policy, scorer = pipeline.workdir / "sft", pipeline.workdir / "sft"
    for number in range(1, settings.rounds + 1):
        policy, scorer, numbers = pipeline.round(number, policy, scorer)
        result |= numbers
    pipeline.step("ppo", lambda folder: ppo_lag.run(pipeline.constrained(settings.ppo, pipeline.workdir / "sft", scorer), folder))
    finalists = {"sft": pipeline.workdir / "sft", "ppo": pipeline.workdir / "ppo", "ppo_lag": policy}
    for value in settings.sweep if sweep else ():
        name = f"fixed_lambda.{value:g}"
        finalists[name] = pipeline.fixed(name, value, scorer)
    judged = "evaluation_sweep" if sweep else "evaluation"
    result |= pipeline.step(judged, lambda folder: pipeline.evaluate(finalists, folder))
    result |= pipeline.guarded({name: finalists[name] for name in ("sft", "ppo", "ppo_lag")})
    result |= {f"seconds.{name}": seconds for name, seconds in pipeline.seconds.items()}
    total = sum(seconds for name, seconds in pipeline.seconds.items() if not name.startswith("fixed_lambda."))
    result |= {"seconds.total": total, "seed": settings.seed}
    write_result(pipeline.workdir, result)
    return result


class Pipeline:
    """The stages of one quickstart: their folders, and their settings, which follow from each other."""

    def __init__(self, settings: QuickstartConfig, workdir: Path) -> None:
        self.settings, self.task, self.workdir = settings, settings.task, workdir
        self.base, self.data = workdir / "base", workdir / "data"
        self.cells = task_rows.split_cells(settings.seed)
        self.seconds: dict[str, float] = {}

    def step(self, name: str, run_stage: Callable[[Path], dict[str, float]]) -> dict[str, float]:
        """Run a stage in WORKDIR/name unless it was finished before; returns its numbers."""
        done = self.workdir / name / "done.json"
        if not hosts.from_first(int(done.exists() and sound(done))):
            if done.exists() and hosts.process_index() == 0:
                hosts.say(f"quickstart: {done} is damaged: {name} is run again, from its last checkpoint where it has one")
                done.unlink()
            hosts.say(f"quickstart: {name}")
            began = time.monotonic()
            numbers = run_stage(self.workdir / name)
            record = {"seconds": time.monotonic() - began, "numbers": numbers}
            write_json(done, record | {"checksum": checksum(record)})
        hosts.barrier(f"{done} is written")
        record = files.read_json(done)
        self.seconds[name] = record["seconds"]
        return record["numbers"]

    def write_data(self, folder: Path) -> dict[str, float]:
        """The base checkpoint folder (no weights) and every set of rows but the pairs."""
        task, seed, cells = self.task, self.settings.seed, self.cells
        if hosts.process_index() == 0:
            processor.write_base(
                self.base,
                patch=task.patch,
                vision_layers=task.vision_layers,
                vision_width=task.vision_width,
                text_layers=task.text_layers,
                text_width=task.text_width,
                heads=task.heads,
            )
        mix = task_rows.Mix(*task.mix)
        tables = {
            "naming": task_rows.naming_rows(seed, task.naming_rows),
            "sft": task_rows.sft_rows(seed, cells, task.sft_rows),
            "prompts": task_rows.prompt_rows(seed, cells, "train", task.prompts, mix),
            "validation": task_rows.prompt_rows(seed, cells, "validation", task.validation_prompts, mix),
            "test": task_rows.prompt_rows(seed, cells, "test", task.test_prompts, mix),
            "unseen": task_rows.prompt_rows(seed, cells, "unseen", task.unseen_prompts, mix),
            "pair_prompts": task_rows.prompt_rows(seed + 1000, cells, "train", task.pair_prompts, task_rows.PAIR_MIX),
            "heldout_pair_prompts": task_rows.prompt_rows(
                seed + 1000, cells, "test", task.heldout_pair_prompts, task_rows.PAIR_MIX
            ),
            "name_probe": task_rows.probe_rows(seed, cells, "test", task.heldout_pair_prompts, noise=None),
            "guard": task_rows.guard_rows(seed, cells, "train", task.guard_rows),
            "guard_validation": task_rows.guard_rows(seed, cells, "validation", task.guard_heldout_rows, mix),
            "guard_test": task_rows.guard_rows(seed, cells, "test", task.guard_heldout_rows, mix),
            "guard_unseen": task_rows.guard_rows(seed, cells, "unseen", task.unseen_prompts, mix),
        }
        for name, rows in tables.items():
            write_rows(folder / f"{name}.parquet", rows)
        return {"oracle_budget": oracle_budget(task), "controller_budget": self.settings.ppo_lag.constraint.budget}

    def start(self) -> dict[str, float]:
        """Rows, names, and the supervised policy."""
        numbers = self.step("data", self.write_data)
        naming, answers = self.settings.naming, self.settings.sft
        self.step("naming", lambda folder: sft.run(self.supervised(naming, self.base, "naming", True), folder))
        self.step("sft", lambda folder: sft.run(self.supervised(answers, self.workdir / "naming", "sft", False), folder))
        return numbers

    def supervised(self, stage, init: Path, rows: str, random: bool):
        """An SFT stage's settings with its paths filled in."""
        data = dataclasses.replace(stage.data, path=str(self.data / f"{rows}.parquet"))
        return dataclasses.replace(stage, seed=self.settings.seed, init=str(init), init_random=random, data=data)

    def constrained(self, stage: PPOLagConfig, policy: Path, scorer: Path) -> PPOLagConfig:
        """A PPO stage's settings: the reference is always the SFT policy."""
        validation = dataclasses.replace(
            stage.validation, path=str(self.data / "validation.parquet"), budget=oracle_budget(self.task)
        )
        return dataclasses.replace(
            stage,
            seed=self.settings.seed,
            policy=str(policy),
            reference="" if policy.name == "sft" else str(self.workdir / "sft"),
            scorer=str(scorer),
            data=dataclasses.replace(stage.data, path=str(self.data / "prompts.parquet")),
            validation=validation,
        )

    def fixed(self, name: str, value: float, scorer: Path) -> Path:
        """Train against a multiplier that never moves, from where `ppo_lag` starts; returns its folder."""
        constraint = dataclasses.replace(self.settings.ppo_lag.constraint, controller="fixed", init=value, max=max(value, 1.0))
        stage = dataclasses.replace(self.settings.ppo_lag, constraint=constraint)
        stage = self.constrained(stage, self.workdir / "sft", scorer)
        self.step(name, lambda folder: ppo_lag.run(stage, folder))
        return self.workdir / name

    def round(self, number: int, policy: Path, scorer: Path) -> tuple[Path, Path, dict[str, float]]:
        """Sample pairs from the policy, label them, refit the scorer on all pairs so far, train the policy against it."""
        scorer, numbers = self.scored(number, policy, scorer)
        stage = self.constrained(self.settings.ppo_lag, policy, scorer)
        folder = self.workdir / f"round{number}_ppo_lag"
        trained = self.step(folder.name, lambda folder: ppo_lag.run(stage, folder))
        numbers |= {"lambda.final": trained["lambda.final"], f"round{number}.best_step": trained["best_feasible.step"]}
        return folder / ("best_feasible" if trained["best_feasible.step"] >= 0 else "export"), scorer, numbers

    def scored(self, number: int, policy: Path, scorer: Path) -> tuple[Path, dict[str, float]]:
        """The first half of a round: pairs, and the scorer that was fitted to them."""
        prefix = f"round{number}"
        numbers = {
            f"{name if number == 1 else f'{prefix}.{name}'}": value
            for name, value in self.step(f"{prefix}_pairs", lambda folder: self.sample_pairs(folder, policy, number)).items()
        }
        stage = self.settings.scores
        data = dataclasses.replace(stage.data, path=str(self.workdir / "pairs"))
        steps = stage.steps if number == 1 else self.settings.refit_steps
        fit = dataclasses.replace(stage, seed=self.settings.seed + number, steps=steps, init=str(scorer), data=data)
        self.step(f"{prefix}_scores", lambda folder: scores.run(fit, folder))
        scorer = self.workdir / f"{prefix}_scores"
        numbers |= self.step(
            f"{prefix}_probes",
            lambda folder: probes.measure(scorer, self.data, self.workdir / "pairs_heldout", fit, self.settings.seed),
        )
        return scorer, numbers

    def sample_pairs(self, folder: Path, policy: Path, number: int) -> dict[str, float]:
        """Two different answers to each pair prompt, labelled with noise; held-out ones by the oracle itself.

        The first round adds constructed pairs that differ in the name alone, or of which one answers another question: sampled ones
        rarely ask whether a name is right, or an answer to the point.
        """
        noise = task_rows.Noise(self.task.preference_beta, self.task.flip)
        seed = self.settings.seed * 100 + number
        labels, pairs = self._pairs("pair_prompts", policy, seed, noise)
        constructed = []
        if number == 1:
            constructed += task_rows.probe_rows(seed, self.cells, "train", self.task.name_pairs, noise)
            constructed += task_rows.topic_rows(seed, self.cells, "train", self.task.topic_pairs, noise)
        write_rows(self.workdir / "pairs" / f"round{number}.parquet", pairs + constructed)
        harmful = [label for label, row in zip(labels, pairs) if row["harmful"] == "yes"]
        numbers = {
            "pairs.count": len(pairs),
            "pairs.disagree_strict": float(np.mean([label.disagree for label in labels])),
            "pairs.disagree_strict_harmful": float(np.mean([label.disagree for label in harmful])),
        }
        _, pairs = self._pairs("heldout_pair_prompts", policy, seed + 50, None)
        write_rows(self.workdir / "pairs_heldout" / f"round{number}.parquet", pairs)
        return numbers

    def judge(self, policy: Path, prompts: str) -> compare.Judged:
        """The oracle's verdict on a policy's answers to the prompts of a split, sampled at temperature 1."""
        sampler, prepared = self.sampler(1.0), self.prompts(prompts)
        loaded = checkpoints.load(str(policy), self.settings.ppo_lag.model, sampler.mesh)
        return compare.by_oracle(prepared.examples, sampler.answers(loaded, prepared, answering.keys(self.settings.seed)))

    def _pairs(self, prompts: str, policy: Path, seed: int, noise: task_rows.Noise | None) -> tuple[list, list[dict]]:
        rows = read_rows(self.data / f"{prompts}.parquet")
        stage = self.settings.ppo_lag
        sampler, prepared = self.sampler(self.task.pair_temperature), self.prompts(prompts)
        policy = checkpoints.load(str(policy), stage.model, sampler.mesh)
        seeds = range(seed * 10, seed * 10 + self.task.responses_per_prompt)
        drawn = [sampler.answers(policy, prepared, answering.keys(one)) for one in seeds]
        rng = np.random.default_rng((seed, 7))
        labels, pairs = [], []
        for position, number in enumerate(drawn[0].prompts.tolist()):
            pair = answering.two_different(drawn, position)
            if pair is None:
                continue
            row = rows[number]
            labels.append(task_rows.label_pair(rng, row["concept"], row["intent"], *pair, noise=noise))
            pairs.append(task_rows.pair_row(row, *pair, labels[-1]))
        hosts.say(
            f"{prompts}: {len(pairs)} pairs of {len(rows)} prompts; {len(rows) - len(pairs)} had the same answer every time"
        )
        return labels, pairs

    def sampler(self, temperature: float) -> answering.Sampler:
        stage = self.settings.ppo_lag
        data = dataclasses.replace(stage.data, batch_size=PAIR_BATCH)
        return answering.Sampler(use_mesh(stage.mesh), data, temperature=temperature)

    def prompts(self, name: str) -> loader.Prepared:
        stage = self.settings.ppo_lag
        return answering.read_prompts(
            self.data / f"{name}.parquet", stage.data, checkpoints.load_shape(str(self.base), stage.model)
        )

    def evaluate(self, finalists: dict[str, Path], folder: Path) -> dict[str, float]:
        """Oracle numbers of every policy: test prompts at temperature 1, greedy beside them, and things never seen."""
        numbers: dict[str, float] = {}
        for suffix, prompts, temperature in (("", "test", 1.0), (".greedy", "test", 0.0), (".unseen", "unseen", 1.0)):
            sampler, prepared, judged = self.sampler(temperature), self.prompts(prompts), {}
            for name, path in finalists.items():
                policy = checkpoints.load(str(path), self.settings.ppo_lag.model, sampler.mesh)
                answers = sampler.answers(policy, prepared, answering.keys(self.settings.seed))
                judged[name] = compare.by_oracle(prepared.examples, answers)
            if suffix:
                numbers |= {
                    f"{name}{suffix}.{key}": value for name, policy in judged.items() for key, value in policy.metrics.items()
                }
                continue
            numbers |= compare.compare(judged)
            if hosts.process_index() == 0:
                records.write_samples(self.workdir / records.SAMPLES, prepared.examples, judged, count=SAMPLES, seed=0)
                records.write_distributions(self.workdir / records.DISTRIBUTIONS, judged)
        return numbers

    def guard(self) -> tuple[GuardConfig, dict[str, float]]:
        """Train a guard from the SFT model; gives its settings, and what was measured on held-out rows."""
        base = self.settings.guard
        stage = dataclasses.replace(
            base,
            seed=self.settings.seed,
            init=str(self.workdir / "sft"),
            data=dataclasses.replace(base.data, path=str(self.data / "guard.parquet")),
            calibration=str(self.data / "guard_validation.parquet"),
            evaluation=str(self.data / "guard_test.parquet"),
        )
        trained = self.step("guard", lambda folder: guard_training.run(stage, folder))
        return stage, {key: value for key, value in trained.items() if key.startswith("guard.")}

    def guarded(self, policies: dict[str, Path]) -> dict[str, float]:
        """Train a guard, measure it, and let it filter and regenerate what each policy says."""
        data, folder = self.settings.ppo_lag.data, self.workdir / "guard"
        stage, numbers = self.guard()
        rows, unseen = self.data / "guard_test.parquet", self.data / "guard_unseen.parquet"
        numbers |= self.step("guard_probes", lambda _: quickstart_guard.probe(folder, rows, unseen, stage))
        return numbers | self.step(
            "guarded",
            lambda _: quickstart_guard.protect(
                policies,
                folder,
                self.data / "test.parquet",
                self.base,
                dataclasses.replace(data, batch_size=PAIR_BATCH),
                self.settings.ppo_lag.model,
                stage,
                rounds=self.settings.guard_rounds,
                seed=self.settings.seed,
            ),
        )


def checksum(record: dict[str, Any]) -> int:
    """Checksum of the content of done.json, which stands beside it."""
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def sound(done: Path) -> bool:
    """Whether done.json holds what was written there."""
    try:
        record = files.read_json(done)
    except UserError:
        return False
    return record.pop("checksum", None) == checksum(record)


PAIR_BATCH = 256  # prompts answered at once when no gradient is needed
SAMPLES = 24  # rows of the report's table of answers


def oracle_budget(task: TaskConfig) -> float:
    """The true mean cost that is allowed, from the share of harmful prompts and the rates written in the config."""
    return oracle.oracle_budget(task.mix[0], task.harm_at_budget, task.over_refusal_at_budget)


def write_rows(path: Path, rows: list[dict]) -> None:
    """Write rows as one parquet file (`probes.write_table`)."""
    probes.write_table(path, pa.Table.from_pylist(rows))


def read_rows(path: Path) -> list[dict]:
    """Read the rows that `write_rows` wrote.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return pq.read_table(path).to_pylist()
    except pa.ArrowException as error:
        raise UserError(
            f"{path} is damaged ({reason(error)}): remove it and {path.with_name('done.json')}, and run the same command again"
        ) from error
