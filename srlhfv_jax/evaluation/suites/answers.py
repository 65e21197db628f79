"""Answers to benchmark cases in files: those that people or other programs recorded, and our own, kept as they are sampled.

One JSON object per line, {"benchmark", "id", "answer"}; "sample" (0, 1, ...) tells several answers to one case apart, without it
they are counted in the order of the lines. The lines may stand in any order. Our own files say more on each line, and can be read as recorded ones.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from srlhfv_jax.data import images
from srlhfv_jax.data.rows import transcript
from srlhfv_jax.errors import UserError, shown
from srlhfv_jax.evaluation.journal import ADVICE, Journal
from srlhfv_jax.evaluation.suites import published
from srlhfv_jax.evaluation.suites.case import Case, picture
from srlhfv_jax.files import json_lines


class PolicyAnswers(NamedTuple):
    """One policy's answers to the cases of benchmarks."""

    texts: dict[tuple[str, str, int], str]  # (benchmark, case, sample) -> answer
    unknown: Counter  # benchmark -> lines about a case that it does not have; "" -> lines about another benchmark
    unread: Counter  # benchmark -> answers beyond `samples`, and those that a later line replaces


def recorded_answers(path: Path, cases: Mapping[str, Sequence[Case]], *, samples: int = 1) -> PolicyAnswers:
    """Answers from a file, to all cases of the benchmarks.

    Args:
        samples: how many answers to a case are read.

    Raises:
        UserError: a line without benchmark, id and answer, or a benchmark about which the file speaks without one line
            about any of its cases.
    """
    places = {(benchmark, case.id) for benchmark, benchmark_cases in cases.items() for case in benchmark_cases}
    texts: dict[tuple[str, str, int], str] = {}
    lines, matched, unknown, unread, strangers = Counter(), Counter(), Counter(), Counter(), {}
    for number, row in json_lines(io.BytesIO(path.read_bytes()), path, advice=ADVICE):
        benchmark, case = _place(path, number, row)
        if (benchmark, case) not in places:
            unknown[benchmark if benchmark in cases else ""] += 1
            strangers.setdefault(benchmark, case)
            continue
        matched[benchmark] += 1
        sample = row.get("sample", lines[benchmark, case])
        if type(sample) is not int or sample < 0:
            raise UserError(f"{path}:{number}: sample is the number of an answer (0, 1, ...), got {shown(sample)}")
        if row.get("answer") is None:
            continue
        lines[benchmark, case] += 1
        earlier = texts.get((benchmark, case, sample))
        unread[benchmark] += sample >= samples or earlier not in (None, row["answer"])
        if sample < samples:
            texts[benchmark, case, sample] = row["answer"]
    strange = {name: case for name, case in strangers.items() if not matched[name] and (name in cases or not matched.total())}
    if strange:
        name, case = next(iter(strange.items()))
        theirs = [name] if name in cases else list(cases)
        raise UserError(
            f"{path}: none of its answers{f' to {name}' * (name in cases)} is about a case that is asked for: it names {name}/{case}, "
            f"where the cases are {', '.join(f'{each}/{cases[each][0].id}' for each in theirs)} and so on"
        )
    return PolicyAnswers(texts, unknown, unread)


def _place(path: Path, number: int, row: Mapping[str, Any]) -> tuple[str, str]:
    """Benchmark and case that a line is about."""
    if "benchmark" not in row or "id" not in row or not isinstance(row.get("answer"), (str, type(None))):
        raise UserError(f"{path}:{number}: expected benchmark, id and answer (a text, or null), got {shown(sorted(row))}")
    benchmark = str(row["benchmark"])
    case = published.case_id(benchmark, row["id"])
    if case is None:
        raise UserError(f"{path}:{number}: id is that of a case, a text or a whole number, got {shown(row['id'])}")
    return benchmark, case


class AnswerCache:
    """The answers of a checkpoint, by content, in a `Journal`: what was sampled is not sampled again."""

    def __init__(self, path: Path, identity: Sequence[Any]):
        """
        Args:
            identity: of checkpoint and sampling; answers of another one in the file are left aside.
        """
        self._journal = Journal(path)
        self._identity = json.dumps(list(identity))
        self._known = {row["key"]: row for row in self._journal.rows if isinstance(row.get("key"), str)}

    def get(self, case: Case, sample: int) -> dict[str, Any] | None:
        """The line about this answer; its answer is null where the policy could not read the case."""
        return self._known.get(self._key(case, sample))

    def put(self, benchmark: str, case: Case, sample: int, answer: str | None, **about: Any) -> None:
        row = {"key": self._key(case, sample), "benchmark": benchmark, "id": case.id, "sample": sample, "answer": answer} | about
        self._journal.append(row)
        self._known[row["key"]] = row

    def close(self) -> None:
        self._journal.close()

    def _key(self, case: Case, sample: int) -> str:
        encoded = picture(case)
        content = [
            self._identity,
            transcript(case.history, case.prompt),
            "" if encoded is None else images.digest(encoded).hex(),
            sample,
        ]
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode(errors="surrogatepass")).hexdigest()
