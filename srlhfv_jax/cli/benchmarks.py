"""`srlhfv evaluate --config=configs/evaluate.py:SUITE`: policies on local copies of published safety benchmarks.

    srlhfv evaluate --config=configs/evaluate.py:safety --workdir=E --config.root=BENCHMARKS --config.policies=base=PATH,ours=PATH

Reads the benchmarks, answers them with each policy (or takes recorded answers), judges, and writes result.json
(POLICY.BENCHMARK.NUMBER, POLICY.vs_BASELINE.BENCHMARK.NUMBER), benchmarks.md (a table), judged.jsonl (every answer with what was
said of it), answers/POLICY.jsonl and verdicts.jsonl. The last two are kept by content: the same command goes on where it was
stopped, and asks neither policy nor judge for anything twice.
"""

import functools
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags as absl_flags

from srlhfv_jax.cli import flags, stage
from srlhfv_jax.cli.evaluate import check_heads, named_paths
from srlhfv_jax.config import EvaluateConfig, unread
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation import rules
from srlhfv_jax.evaluation.journal import Journal
from srlhfv_jax.evaluation.judging import pairwise
from srlhfv_jax.evaluation.judging.client import Client
from srlhfv_jax.evaluation.judging.endpoint import EndpointJudge, api_key
from srlhfv_jax.evaluation.judging.recorded import recorded
from srlhfv_jax.evaluation.judging.store import Store
from srlhfv_jax.evaluation.judging.verdict import Asked, Judge, Opinion, judge_all
from srlhfv_jax.evaluation.suites import answers as benchmark_answers, numbers as benchmark_numbers, published as suites
from srlhfv_jax.evaluation.suites.case import Case, Read, picture, sample
from srlhfv_jax.evaluation.suites.numbers import Answered
from srlhfv_jax.parsing import parse

TABLE, JUDGED, VERDICTS, ANSWERS = "benchmarks.md", "judged.jsonl", "verdicts.jsonl", "answers"
READ, READ_S = "the endpoint's last word", 30 * 86_400  # other processes wait for it, however long it takes


class Wanted(NamedTuple):
    """One text that has to be judged."""

    benchmark: str
    case: Case
    text: str


def main(argv: list[str]) -> None:
    values = absl_flags.FlagValues()
    absl_flags.DEFINE_string("workdir", None, "folder to write to; an interrupted run goes on there", flag_values=values)
    found, changed = flags.read_with_config("evaluate", values, argv, __doc__)
    settings = parse(EvaluateConfig, found)
    unread.check_changed(settings, changed)
    flags.required(values, "workdir")
    stage.given(settings.policies, "config.policies", "name=path,name=path; a path is a checkpoint or a .jsonl file of answers")
    stage.given(settings.root, "config.root", "the folder that holds one folder for each benchmark")
    policies = named_paths(settings.policies)
    _check(settings, policies)
    from srlhfv_jax.runs import run

    run.command(functools.partial(run.record, functools.partial(_run, policies)), settings, Path(values.workdir))
    print(f"wrote {Path(values.workdir) / 'result.json'} and {TABLE}")


def _check(settings: EvaluateConfig, policies: dict[str, str]) -> None:
    """What can be wrong before anything is loaded."""
    unread.check(settings)
    if not settings.benchmarks:
        raise UserError(f"config.benchmarks is empty: choose from {', '.join(suites.READERS)}")
    if settings.samples < 1 or settings.data.response_length < 1:
        raise UserError("config.samples and config.data.response_length must be at least 1")
    if settings.judge == "models":
        stage.given(settings.scorer, "config.scorer", "a checkpoint with the heads reward and cost")
    if settings.judge == "recorded":
        stage.given(settings.recorded, "config.recorded", "a .jsonl file of judgements")
    if settings.judge == "endpoint":
        stage.given(settings.endpoint.url, "config.endpoint.url", "the address of an OpenAI-compatible server")
    if settings.pairwise and settings.judge == "rules":
        raise UserError("config.pairwise needs a judge that prefers one answer: set config.judge to models, recorded or endpoint")
    if settings.pairwise and len(policies) < 2:
        raise UserError(f"config.pairwise compares with the first policy: give two or more, got {', '.join(policies)}")


def _run(policies: dict[str, str], settings: EvaluateConfig, workdir: Path) -> dict[str, float]:
    from srlhfv_jax.parallel import hosts
    from srlhfv_jax.runs import checkpoints

    reader = _reader(settings, workdir)
    for path in policies.values():
        if not path.endswith(".jsonl"):
            checkpoints.check_checkpoint(path, "config.policies")
    if settings.judge == "models":
        check_heads(settings.scorer, settings.model)
    allowed = [Path(settings.data.allow_dir)] if settings.data.allow_dir else []
    read = {name: suites.read(name, Path(settings.root), *allowed) for name in settings.benchmarks}
    cases = {name: sample(found.cases, settings.limit, settings.seed) for name, found in read.items()}
    for name, found in read.items():
        print(f"{name}: {len(cases[name])} of {len(found.cases)} cases; {_describe(found)}", flush=True)
    said = {name: _answers(name, path, settings, workdir, cases) for name, path in policies.items()}
    if settings.judge == "endpoint" and hosts.process_index() > 0:  # the first process asks for all
        hosts.barrier(READ, READ_S)
        return {}
    rows = _judge(settings, reader, cases, said)
    result, tables = {}, {}
    for name, found in read.items():
        result |= {f"{name}.{key}": value for key, value in benchmark_numbers.dropped(found.drops).items()}
    for policy, benchmarks in rows.items():
        tables[policy] = {}
        for name, answered in benchmarks.items():
            numbers = benchmark_numbers.numbers(name, answered, seed=settings.seed)
            numbers["unanswered"] = float(len(cases[name]) * settings.samples - len(answered))
            tables[policy][name] = numbers
            result |= {f"{policy}.{name}.{key}": value for key, value in numbers.items()}
        result[f"{policy}.answers_unknown"] = float(said[policy].unknown)
    if settings.pairwise:
        result |= _pairwise(settings, reader, rows)
    if isinstance(reader, EndpointJudge):
        result |= {f"judge.calls.{outcome}": float(count) for outcome, count in reader.client.calls.items()}
        result |= {f"judge.unjudged.{reason}": float(count) for reason, count in reader.unjudged.items()}
    text = benchmark_numbers.table(tables)
    if hosts.process_index() == 0:
        (workdir / TABLE).write_text(text, encoding="utf-8")
        _write_judged(workdir / JUDGED, rows)
        print(text, flush=True)
    if settings.judge == "endpoint":
        hosts.barrier(READ, READ_S)
    return result | {"seed": settings.seed}


def _describe(read: Read) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in read.drops.most_common()) or "none dropped"


def _answers(
    name: str, path: str, settings: EvaluateConfig, workdir: Path, cases: dict[str, Sequence[Case]]
) -> benchmark_answers.Said:
    """Recorded answers, or those of a checkpoint, which is loaded only if some are missing."""
    if path.endswith(".jsonl"):
        said = benchmark_answers.recorded(Path(path), cases)
        answered = {(benchmark, case) for benchmark, case, _ in said.texts}
        silent = sum(map(len, cases.values())) - len(answered)
        if silent or said.unknown:
            print(
                f"warning: {name}: {silent} of {sum(map(len, cases.values()))} cases have no recorded answer, and {said.unknown} lines "
                f"of {path} are about no case that is asked for",
                file=sys.stderr,
                flush=True,
            )
        return said
    from srlhfv_jax.parallel import hosts

    kept = benchmark_answers.Kept(workdir / ANSWERS / f"{name}.jsonl", _identity(path, settings))
    hosts.barrier(f"{name}'s answers are read")  # by all processes, before the first one writes more of them
    wanted = {
        (benchmark, sample): [case for case in found if kept.get(case, sample) is None]
        for benchmark, found in cases.items()
        for sample in range(settings.samples)
    }
    if any(wanted.values()):
        _sample(name, path, settings, {place: found for place, found in wanted.items() if found}, kept)
    texts, missing = {}, Counter()
    for benchmark, found in cases.items():
        for case in found:
            for sample in range(settings.samples):
                line = kept.get(case, sample)
                if line["answer"] is None:
                    missing[benchmark] += 1
                else:
                    texts[benchmark, case.id, sample] = line["answer"]
    kept.close()
    return benchmark_answers.Said(texts, missing, 0)


def _identity(path: str, settings: EvaluateConfig) -> list[Any]:
    """What an answer depends on besides its case; a checkpoint that was written anew is another one."""
    from srlhfv_jax.hf.load import checkpoint_folder

    files = sorted(checkpoint_folder(path).glob("*.safetensors"))
    written = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    data = settings.data
    return [path, written, settings.seed, settings.temperature, settings.model.dtype, data.response_length, data.max_pixels]


def _sample(
    name: str,
    path: str,
    settings: EvaluateConfig,
    wanted: dict[tuple[str, int], list[Case]],
    kept: benchmark_answers.Kept,
) -> None:
    from srlhfv_jax.evaluation import run_suites as benchmarks
    from srlhfv_jax.runs import checkpoints

    mesh = _mesh(settings)
    loaded = checkpoints.load(path, settings.model, mesh)
    draw = benchmarks.sampler(loaded, settings, mesh)
    for (benchmark, sample), found in wanted.items():
        print(f"{name}: {benchmark}, answer {sample + 1} of {settings.samples}: {len(found)} cases", flush=True)
        benchmarks.answer(
            loaded,
            draw,
            settings,
            mesh,
            found,
            sample,
            keep=lambda case, text, ended, b=benchmark, s=sample: kept.put(b, case, s, text, ended=ended),
            drop=lambda case, reason, b=benchmark, s=sample: kept.put(b, case, s, None, reason=reason),
        )


def _mesh(settings: EvaluateConfig):
    import jax

    from srlhfv_jax.parallel import hosts
    from srlhfv_jax.parallel.mesh import make_mesh

    mesh = make_mesh(settings.mesh)
    jax.set_mesh(mesh)
    hosts.check_batch(settings.data.batch_size, mesh, "config.data.batch_size of")
    return mesh


def _judge(
    settings: EvaluateConfig, reader: Judge | None, cases: dict[str, Sequence[Case]], said: dict[str, benchmark_answers.Said]
) -> dict[str, dict[str, list[Answered]]]:
    """{policy: {benchmark: rows}} of every answer, each text judged by itself."""
    rows: dict[str, dict[str, list[Answered]]] = {policy: {name: [] for name in cases} for policy in said}
    wanted: list[Wanted] = []
    for policy, answers in said.items():
        for name, found in cases.items():
            for case in found:
                for sample in range(settings.samples):
                    text = answers.texts.get((name, case.id, sample))
                    if text is None:
                        continue
                    parts = rules.split_reasoning(text) if settings.reasoning else rules.Parts("", text.strip())
                    rows[policy][name].append(Answered(case, parts.answer, None, parts.reasoning))
                    if benchmark_numbers.needs_judge(case):
                        wanted += [Wanted(name, case, part) for part in parts if part]
    opinions = dict(zip(map(_place, wanted), _opinions(settings, reader, wanted), strict=True))
    return {
        policy: {
            name: [
                row._replace(
                    opinion=opinions.get((name, row.case.id, row.answer)),
                    reasoning_opinion=opinions.get((name, row.case.id, row.reasoning)),
                )
                for row in answered
            ]
            for name, answered in benchmarks.items()
        }
        for policy, benchmarks in rows.items()
    }


def _place(wanted: Wanted) -> tuple[str, str, str]:
    return wanted.benchmark, wanted.case.id, wanted.text


def _opinions(settings: EvaluateConfig, reader: Judge | None, wanted: list[Wanted]) -> list[Opinion | None]:
    """What the judge says of each text."""
    if settings.judge == "models" and wanted:
        from srlhfv_jax.evaluation import run_suites as benchmarks
        from srlhfv_jax.runs import checkpoints

        mesh = _mesh(settings)
        loaded = checkpoints.load(settings.scorer, settings.model, mesh)
        return benchmarks.score(loaded, settings.data, mesh, [one.case for one in wanted], [one.text for one in wanted])
    if settings.judge == "rules":
        return [Opinion(refusal=benchmark_numbers.refuses(one.benchmark, one.text)) for one in wanted]
    # The pictures of a benchmark may be more than memory holds: each is read when it is asked about.
    verdicts = judge_all(
        lambda one: reader(_asked(one.benchmark, one.case, one.text)),
        wanted,
        workers=settings.endpoint.workers,
        progress=_told("judged", len(wanted)),
    )
    return [None if verdict is None else verdict.opinions[0] for verdict in verdicts]


def _asked(benchmark: str, case: Case, *answers: str) -> Asked:
    return Asked(f"{benchmark}/{case.id}", picture(case), case.prompt, answers, case.criterion)


def _reader(settings: EvaluateConfig, workdir: Path) -> Judge | None:
    """The judge that reads: recorded judgements, or an endpoint; None for the others."""
    if settings.judge == "recorded":
        return recorded(Path(settings.recorded))
    if settings.judge == "endpoint":
        client = Client(settings.endpoint, api_key(settings.endpoint))
        return EndpointJudge(client, Store(workdir / VERDICTS), settings.endpoint.model)
    return None


def _told(what: str, total: int):
    def progress(done: int) -> None:
        if done % 100 == 0 or done == total:
            print(f"  {done} of {total} {what}", flush=True)

    return progress


def _pairwise(settings: EvaluateConfig, reader: Judge | None, rows: dict[str, dict[str, list[Answered]]]) -> dict[str, float]:
    """`POLICY.vs_BASELINE.BENCHMARK.*` on the first answers of both to each case that is judged."""
    baseline, *others = rows
    found = {}
    for policy in others:
        for name in settings.benchmarks:
            matched = _matched(rows[policy][name], rows[baseline][name])
            if not matched:
                continue
            if reader is None:
                both = [pairwise.from_opinions(a.opinion, b.opinion, identical=a.answer == b.answer) for a, b in matched]
            else:
                both = judge_all(
                    functools.partial(_both_orders, reader, name),
                    matched,
                    workers=settings.endpoint.workers,
                    progress=_told("pairs", len(matched)),
                )
            numbers = pairwise.pair_metrics(both, [len(a.answer) - len(b.answer) for a, b in matched])
            found |= {f"{policy}.vs_{baseline}.{name}.{key}": value for key, value in numbers.items()}
    return found


def _both_orders(reader: Judge, name: str, matched: tuple[Answered, Answered]) -> pairwise.BothOrders | None:
    a, b = matched
    asked = _asked(name, a.case, a.answer, b.answer)
    return pairwise.combine([reader(order) for order in pairwise.orders(asked)])


def _matched(rows: list[Answered], baseline: list[Answered]) -> list[tuple[Answered, Answered]]:
    first: dict[str, Answered] = {}
    for row in baseline:
        first.setdefault(row.case.id, row)
    mine: dict[str, Answered] = {}
    for row in rows:
        if benchmark_numbers.needs_judge(row.case):
            mine.setdefault(row.case.id, row)
    return [(row, first[name]) for name, row in mine.items() if name in first]


def _write_judged(path: Path, rows: dict[str, dict[str, list[Answered]]]) -> None:
    """Every answer with its case and what was said of it, for people and other judges."""
    path.unlink(missing_ok=True)
    journal = Journal(path)
    for policy, benchmarks in rows.items():
        for name, answered in benchmarks.items():
            for row in answered:
                case = row.case
                line = {"policy": policy, "benchmark": name, "id": case.id, "category": case.category, "subset": case.subset}
                line |= {"expect": case.expect, "gold": case.gold, "prompt": case.prompt, "answer": row.answer}
                line |= {"unsafe": benchmark_numbers.is_unsafe(name, case, row.answer, row.opinion)}
                line |= {"opinion": row.opinion and row.opinion._asdict(), "reasoning": row.reasoning}
                journal.append(line)
    journal.close()
