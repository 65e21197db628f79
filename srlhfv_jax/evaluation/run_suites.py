"""`srlhfv benchmark`: policies on local copies of published safety benchmarks.

cases (suites) -> every policy's answers (suites/answering) -> opinions of them (suites/judging) -> numbers and a table (suites/numbers)
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from srlhfv_jax.config import EvaluateConfig, unread
from srlhfv_jax.data.rows import history_json
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation import scoring
from srlhfv_jax.evaluation.answering import named_paths
from srlhfv_jax.evaluation.journal import Journal
from srlhfv_jax.evaluation.judging.choose import reading_judge
from srlhfv_jax.evaluation.judging.endpoint import EndpointJudge
from srlhfv_jax.evaluation.suites import published, worth_of_rules
from srlhfv_jax.evaluation.suites.answering import all_recorded, check_policies, sampled_answers
from srlhfv_jax.evaluation.suites.answers import PolicyAnswers
from srlhfv_jax.evaluation.suites.case import Case, Read, sample
from srlhfv_jax.evaluation.suites.judging import Rows, compare_pairs, judge_answers
from srlhfv_jax.evaluation.suites.numbers import benchmark_numbers, benchmark_table, drop_numbers, is_unsafe
from srlhfv_jax.parallel import hosts

TABLE, JUDGED = "benchmarks.md", "judged.jsonl"
READ, READ_S = "the endpoint's last word", 30 * 86_400  # other processes wait for it, however long it takes


def check(settings: EvaluateConfig) -> None:
    """Check the settings before anything is loaded."""
    policies = named_paths(settings.policies)
    unread.check(settings)
    check_benchmarks(settings)
    if settings.samples < 1 or settings.data.response_length < 1:
        raise UserError("config.samples and config.data.response_length must be at least 1")
    for judge, value, name, needed in (
        ("models", settings.scorer, "scorer", "a checkpoint with the heads reward and cost"),
        ("recorded", settings.recorded, "recorded", "a .jsonl file of judgements"),
        ("endpoint", settings.endpoint.url, "endpoint.url", "the address of an OpenAI-compatible server"),
    ):
        if settings.judge == judge and not value:
            raise UserError(f"config.{name} is empty: give {needed} (--config.{name}=...)")
    if settings.pairwise and settings.judge == "rules":
        raise UserError("config.pairwise needs a judge that prefers one answer: set config.judge to models, recorded or endpoint")
    if settings.pairwise and len(policies) < 2:
        raise UserError(f"config.pairwise compares with the first policy: give two or more, got {', '.join(policies)}")


def check_benchmarks(settings: EvaluateConfig) -> None:
    """Raise UserError where the settings name no benchmark."""
    if not settings.benchmarks:
        raise UserError(f"config.benchmarks is empty: choose from {', '.join(published.READERS)}")


def run(settings: EvaluateConfig, workdir: Path) -> dict[str, float]:
    """Answer, judge and count: `POLICY.BENCHMARK.NUMBER`, `POLICY.vs_BASELINE.BENCHMARK.NUMBER`, drops and calls of the judge.

    Raises:
        UserError: a benchmark, a policy or a judge that is not there.
    """
    policies, reader = named_paths(settings.policies), reading_judge(settings, workdir)
    check_policies(policies)
    if settings.judge == "models":
        scoring.check_score_heads(settings.scorer, settings.model)
    benchmarks, cases = read_benchmarks(settings)
    files = all_recorded(policies, settings.samples, {name: read.cases for name, read in benchmarks.items()}, cases)
    answers = {
        name: files[name] if name in files else sampled_answers(name, path, settings, workdir, cases)
        for name, path in policies.items()
    }
    if settings.judge == "endpoint" and hosts.process_index() > 0:  # the first process asks for all
        hosts.barrier(READ, READ_S)
        return {}
    rows = judge_answers(settings, reader, cases, answers)
    result, text = _numbers(settings, benchmarks, cases, answers, rows)
    if settings.pairwise:
        result |= compare_pairs(settings, reader, rows)
    if isinstance(reader, EndpointJudge):
        result |= {f"judge.calls.{outcome}": float(count) for outcome, count in reader.client.calls.items()}
        result |= {f"judge.unjudged.{reason}": float(count) for reason, count in reader.unjudged.items()}
    if hosts.process_index() == 0:
        (workdir / TABLE).write_text(text, encoding="utf-8")
        _write_judged(workdir / JUDGED, rows)
        print(text, flush=True)
    if settings.judge == "endpoint":
        hosts.barrier(READ, READ_S)
    return result | {"seed": settings.seed}


def read_benchmarks(settings: EvaluateConfig) -> tuple[dict[str, Read], dict[str, tuple[Case, ...]]]:
    """The benchmarks as they lie in `config.root`, and the cases of each that are asked.

    Raises:
        UserError: a benchmark that is not there.
    """
    allowed = [Path(settings.data.allow_dir)] if settings.data.allow_dir else []
    benchmarks = {name: published.read(name, Path(settings.root), *allowed) for name in settings.benchmarks}
    cases = {name: sample(read.cases, settings.limit, settings.seed) for name, read in benchmarks.items()}
    for name, read in benchmarks.items():
        drops = ", ".join(f"{reason} {count}" for reason, count in read.drops.most_common()) or "none dropped"
        print(f"{name}: {len(cases[name])} of {len(read.cases)} cases; {drops}", flush=True)
    return benchmarks, cases


def _numbers(
    settings: EvaluateConfig,
    benchmarks: Mapping[str, Read],
    cases: Mapping[str, Sequence[Case]],
    answers: Mapping[str, PolicyAnswers],
    rows: Rows,
) -> tuple[dict[str, float], str]:
    """The flat numbers of all policies on all benchmarks, and a table of them with what its judge is worth."""
    result, tables = {}, {}
    for name, read in benchmarks.items():
        result |= {f"{name}.{key}": value for key, value in drop_numbers(read.drops).items()}
    for policy, by_benchmark in rows.items():
        tables[policy] = {}
        for name, answered in by_benchmark.items():
            metrics = benchmark_numbers(name, answered, seed=settings.seed)
            metrics["unanswered"] = float(len(cases[name]) * settings.samples - len(answered))
            metrics["unknown"] = float(answers[policy].unknown[name])
            metrics["unread"] = float(answers[policy].unread[name])
            tables[policy][name] = metrics
            result |= {f"{policy}.{name}.{key}": value for key, value in metrics.items()}
        result[f"{policy}.answers_unknown"] = float(answers[policy].unknown.total())
    beneath = [f"\n{note}\n" for note in worth_of_rules.notes(settings.judge, cases)]
    return result, "".join([benchmark_table(tables), *beneath])


def _write_judged(path: Path, rows: Rows) -> None:
    """Every answer with its case and the opinion of it, for people and other judges."""
    path.unlink(missing_ok=True)
    journal = Journal(path)
    for policy, benchmarks in rows.items():
        for name, answered in benchmarks.items():
            for row in answered:
                case = row.case
                line = {"policy": policy, "benchmark": name, "id": case.id, "category": case.category, "subset": case.subset}
                line |= {"expect": case.expect, "gold": case.gold} | history_json(case.history)
                line |= {"prompt": case.prompt, "answer": row.answer}
                line |= {"unsafe": is_unsafe(name, case, row.answer, row.opinion)}
                line |= {"opinion": row.opinion and row.opinion._asdict(), "reasoning": row.reasoning}
                journal.append(line)
    journal.close()
