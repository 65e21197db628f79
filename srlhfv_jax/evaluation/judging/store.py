"""Verdicts by content in a `Journal`, so that a resumed run asks for none of them again."""

from pathlib import Path
from typing import Any

from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation.journal import ADVICE, Journal
from srlhfv_jax.evaluation.judging.verdict import JudgeRequest, JudgeVerdict, from_json, to_json
from srlhfv_jax.files import json_lines


class Store:
    """A file of verdicts. Shared by threads; one process writes a file at a time."""

    def __init__(self, path: Path):
        """Raises UserError where a line is no verdict."""
        self._journal = Journal(path)
        self._found = {
            row["key"]: _verdict(path, number, row)
            for number, row in enumerate(self._journal.rows, 1)
            if isinstance(row.get("key"), str)
        }

    def get(self, key: str) -> JudgeVerdict | None:
        return self._found.get(key)

    def put(self, key: str, request: JudgeRequest, verdict: JudgeVerdict, reply: str) -> None:
        """Keep a verdict, with what was judged and the reply it was read from, for people to check."""
        row = {"key": key, "name": request.name, "question": request.question, "answers": list(request.answers)}
        self._journal.append(row | to_json(verdict) | {"reply": reply})
        self._found[key] = verdict

    def close(self) -> None:
        self._journal.close()


def read_verdicts(path: Path) -> list[tuple[dict[str, Any], JudgeVerdict]]:
    """Every line of a file of verdicts, with its verdict.

    Raises:
        UserError: a line is none; names it.
    """
    with path.open("rb") as lines:
        return [(row, _verdict(path, number, row)) for number, row in json_lines(lines, path, advice=ADVICE)]


def _verdict(path: Path, number: int, row: dict[str, Any]) -> JudgeVerdict:
    try:
        return from_json(row)
    except ValueError as error:
        raise UserError(f"{path}:{number} is no verdict ({error}): {ADVICE}") from error
