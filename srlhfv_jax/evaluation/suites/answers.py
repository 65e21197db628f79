"""Answers to benchmark cases in files: those that people or other programs recorded, and our own, kept as they are sampled.

One JSON object per line, {"benchmark", "id", "answer"}; "sample" (0, 1, ...) tells several answers to one case apart, without it
they are counted in the order of the lines. Our own files say more on each line, and can be read as recorded ones.
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
from srlhfv_jax.evaluation.suites.case import Case, picture
from srlhfv_jax.files import json_lines


class PolicyAnswers(NamedTuple):
    """One policy's answers to the cases of benchmarks."""

    texts: dict[tuple[str, str, int], str]  # (benchmark, case, sample) -> answer
    missing: Counter  # benchmark -> cases that the policy cannot read
    unknown: int  # lines about no case that was asked for


def recorded_answers(path: Path, cases: Mapping[str, Sequence[Case]]) -> PolicyAnswers:
    """Answers from a file.

    Raises:
        UserError: no such file, a line without benchmark, id and answer, or no line about any of the cases.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file: a policy is a checkpoint, or a .jsonl file of recorded answers")
    places = {(benchmark, case.id) for benchmark, benchmark_cases in cases.items() for case in benchmark_cases}
    texts: dict[tuple[str, str, int], str] = {}
    lines, matched, unknown, stranger = Counter(), 0, 0, None
    for number, row in json_lines(io.BytesIO(path.read_bytes()), path, advice=ADVICE):
        place = (str(row.get("benchmark")), str(row.get("id")))
        sample = row.get("sample", lines[place])
        if "benchmark" not in row or "id" not in row or not isinstance(row.get("answer"), (str, type(None))):
            raise UserError(f"{path}:{number}: expected benchmark, id and answer (a text, or null), got {shown(sorted(row))}")
        if type(sample) is not int or sample < 0:
            raise UserError(f"{path}:{number}: sample is the number of an answer (0, 1, ...), got {shown(sample)}")
        if place not in places:
            unknown += 1
            stranger = stranger or place
            continue
        matched += 1
        if row.get("answer") is not None:
            texts[*place, sample] = row["answer"]
            lines[place] += 1
    if stranger and not matched:
        raise UserError(
            f"{path}: none of its answers is about a case that is asked for: it names {'/'.join(stranger)}, where the cases are "
            f"{', '.join(f'{name}/{benchmark_cases[0].id}' for name, benchmark_cases in cases.items())} and so on"
        )
    return PolicyAnswers(texts, Counter(), unknown)


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
