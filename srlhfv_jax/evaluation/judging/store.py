"""Verdicts by content in a file of JSON lines: written whole and flushed as they come, so that a kill loses none that came back."""

import json
import threading
from pathlib import Path
from typing import Any

from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation.judging.verdict import Asked, Verdict, from_json, to_json


class Store:
    """A file of verdicts, read once and appended to. Shared by threads; one process writes a file at a time."""

    def __init__(self, path: Path):
        """Raises UserError where a whole line is no verdict; a last line torn by a kill is cut off."""
        self.path = path
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_bytes() if path.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            with path.open("r+b") as file:
                file.truncate(len(whole))
        self._found = {row["key"]: verdict for row, verdict in read_verdicts(path, whole.decode("utf-8")) if "key" in row}
        self._file = path.open("a", encoding="utf-8")

    def get(self, key: str) -> Verdict | None:
        return self._found.get(key)

    def put(self, key: str, asked: Asked, verdict: Verdict, reply: str) -> None:
        """Keep a verdict, with what was judged and the reply it was read from, for people to check."""
        row = {"key": key, "name": asked.name, "question": asked.question, "answers": list(asked.answers)}
        line = json.dumps(row | to_json(verdict) | {"reply": reply}, ensure_ascii=False)
        with self._lock:
            self._file.write(line + "\n")
            self._file.flush()
            self._found[key] = verdict

    def close(self) -> None:
        self._file.close()


def read_verdicts(path: Path, text: str) -> list[tuple[dict[str, Any], Verdict]]:
    """Every line of a file of verdicts, with its verdict.

    Raises:
        UserError: a line is none; names it.
    """
    found = []
    # Not splitlines: a reply may hold other separators of lines, which JSON leaves as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"expected an object, got {type(row).__name__}")
            found.append((row, from_json(row)))
        except ValueError as error:
            raise UserError(f"{path}:{number} is no verdict ({error}): correct the line or delete it") from error
    return found
