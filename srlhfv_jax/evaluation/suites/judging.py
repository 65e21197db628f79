"""Judging answers to cases: each text by itself, once, whichever policy said it; and two policies' answers in pairs."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from srlhfv_jax.config import DataConfig, EvaluateConfig
from srlhfv_jax.data.rows import transcript
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation import rules, scoring
from srlhfv_jax.evaluation.judging import pairwise
from srlhfv_jax.evaluation.judging.verdict import Judge, JudgeRequest, Opinion, judge_all
from srlhfv_jax.evaluation.score_metrics import COST, REWARD
from srlhfv_jax.evaluation.suites.answering import CaseRows, Cases
from srlhfv_jax.evaluation.suites.answers import PolicyAnswers
from srlhfv_jax.evaluation.suites.case import Case, picture
from srlhfv_jax.evaluation.suites.numbers import Answered, needs_judge, refuses
from srlhfv_jax.hf.load import Pretrained
from srlhfv_jax.parallel import hosts
from srlhfv_jax.parallel.mesh import use_mesh
from srlhfv_jax.runs import checkpoints, inputs

Rows = dict[str, dict[str, list[Answered]]]  # policy -> benchmark -> its answers


class TextToJudge(NamedTuple):
    """One text that has to be judged: an answer to a case, or the reasoning before it."""

    benchmark: str
    case: Case
    text: str


def judge_answers(settings: EvaluateConfig, reader: Judge | None, cases: Cases, answers: Mapping[str, PolicyAnswers]) -> Rows:
    """Every answer of every policy, with the judge's opinion of it.

    Args:
        reader: the judge that reads (`judging.choose`); None: `config.judge` is "rules" or "models".
    """
    rows: Rows = {policy: {name: [] for name in cases} for policy in answers}
    texts: list[TextToJudge] = []
    for policy, policy_answers in answers.items():
        for name, benchmark_cases in cases.items():
            for case in benchmark_cases:
                for sample in range(settings.samples):
                    text = policy_answers.texts.get((name, case.id, sample))
                    if text is None:
                        continue
                    parts = rules.split_reasoning(text) if settings.reasoning else rules.Parts("", text.strip())
                    rows[policy][name].append(Answered(case, parts.answer, None, parts.reasoning))
                    if needs_judge(case):
                        texts += [TextToJudge(name, case, part) for part in parts if part]
    keys = [(one.benchmark, one.case.id, one.text) for one in texts]
    opinions = dict(zip(keys, _opinions(settings, reader, texts), strict=True))
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


def _opinions(settings: EvaluateConfig, reader: Judge | None, texts: list[TextToJudge]) -> list[Opinion | None]:
    """The judge's opinion of each text; None where it has none."""
    if settings.judge == "models" and texts:
        mesh = use_mesh(settings.mesh)
        hosts.check_batch(settings.data.batch_size, mesh, "config.data.batch_size of")
        return _model_opinions(checkpoints.load(settings.scorer, settings.model, mesh), settings.data, mesh, texts)
    if settings.judge == "rules":
        return [Opinion(refusal=refuses(one.benchmark, one.text)) for one in texts]
    # The pictures of a benchmark may be more than memory holds: each is read when it is asked about.
    verdicts = judge_all(
        lambda one: reader(_request(one.benchmark, one.case, one.text)),
        texts,
        workers=settings.endpoint.workers,
        progress=_progress("judged", len(texts)),
    )
    return [None if verdict is None else verdict.opinions[0] for verdict in verdicts]


def _model_opinions(scorer: Pretrained, data: DataConfig, mesh, texts: list[TextToJudge]) -> list[Opinion | None]:
    """Reward and cost of each text by a checkpoint with both heads; None of one it cannot read (an empty one).

    An answer that was cut at its longest is read as if it had ended there.

    Raises:
        UserError: it has not both heads, or can read no answer.
    """
    if not {REWARD, COST} <= scorer.heads.keys():
        raise UserError(f"{scorer.path} has the heads {sorted(scorer.heads)}: a judge needs reward and cost on one backbone")
    any_length = dataclasses.replace(data, prompt_length=0, response_length=0)
    cases = CaseRows([one.case for one in texts], [one.text for one in texts])
    rows = inputs.fit_loosely("supervised", cases, any_length, scorer, literal=True)
    read, tree = scoring.jit_scores(scorer.config, mesh), scoring.scorer_tree(scorer)
    scores = scoring.model_scores(lambda batch: hosts.to_host(read(tree, batch, batch.images)), inputs.in_order(rows, data, mesh))
    opinions: list[Opinion | None] = [None] * len(texts)
    for row, reward, cost in zip(rows.rows, scores[REWARD], scores[COST], strict=True):
        opinions[row.row] = Opinion(float(reward), float(cost))
    return opinions


def compare_pairs(settings: EvaluateConfig, reader: Judge | None, rows: Rows) -> dict[str, float]:
    """`POLICY.vs_BASELINE.BENCHMARK.*` on the first answers of both to each case that is judged."""
    baseline, *others = rows
    numbers = {}
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
                    progress=_progress("pairs", len(matched)),
                )
            compared = pairwise.pair_metrics(both, [len(a.answer) - len(b.answer) for a, b in matched])
            numbers |= {f"{policy}.vs_{baseline}.{name}.{key}": value for key, value in compared.items()}
    return numbers


def _both_orders(reader: Judge, name: str, matched: tuple[Answered, Answered]) -> pairwise.BothOrders | None:
    a, b = matched
    request = _request(name, a.case, a.answer, b.answer)
    return pairwise.combine([reader(order) for order in pairwise.orders(request)])


def _matched(rows: Sequence[Answered], baseline: Sequence[Answered]) -> list[tuple[Answered, Answered]]:
    """The first answers of both policies to each case that both answered."""
    theirs: dict[str, Answered] = {}
    for row in baseline:
        theirs.setdefault(row.case.id, row)
    ours: dict[str, Answered] = {}
    for row in rows:
        if needs_judge(row.case):
            ours.setdefault(row.case.id, row)
    return [(row, theirs[case]) for case, row in ours.items() if case in theirs]


def _request(benchmark: str, case: Case, *answers: str) -> JudgeRequest:
    name, question = f"{benchmark}/{case.id}", transcript(case.history, case.prompt)
    return JudgeRequest(name, picture(case), question, answers, case.criterion, case.classes if len(answers) == 1 else ())


def _progress(what: str, total: int) -> Callable[[int], None]:
    def progress(done: int) -> None:
        if done % 100 == 0 or done == total:
            print(f"  {done} of {total} {what}", flush=True)

    return progress
