"""Scores by content, in WORKDIR/reward_cache.jsonl: no sample is scored twice, and a resumed run has the numbers of before.

All processes hold all of them; the first writes.
"""

import hashlib
import math
from pathlib import Path

from srlhfv_jax.errors import UserError, shown
from srlhfv_jax.evaluation.journal import Journal

FILE = "reward_cache.jsonl"


class Cache:
    """Scores of functions that have an identity, in memory and in a file."""

    def __init__(self, path: Path | None) -> None:
        """
        Args:
            path: of the file; None: nothing is kept, and nothing found.

        Raises:
            UserError: a line of the file is no score.
        """
        self._journal = None if path is None else Journal(path)
        self._scores: dict[str, float] = {}
        for number, row in enumerate(() if self._journal is None else self._journal.rows, start=1):
            key, score = row.get("key"), row.get("score")
            score = math.nan if score is None and "score" in row else score
            if not isinstance(key, str) or not isinstance(score, (int, float)) or math.isinf(score):
                raise UserError(f"{path}:{number} is no score ({shown(row)}): delete the line")
            self._scores[key] = float(score)

    def get(self, identity: str | None, content: bytes) -> float | None:
        """The score that a function gave to a sample (NaN: it said that there is none); None: nothing is kept."""
        return None if identity is None else self._scores.get(_key(identity, content))

    def put(self, identity: str | None, content: bytes, name: str, score: float) -> None:
        """Keep a score; its name is for people to read."""
        if self._journal is None or identity is None:
            return
        key = _key(identity, content)
        if key not in self._scores:
            self._scores[key] = score
            self._journal.append({"key": key, "name": name, "score": None if math.isnan(score) else score})


def _key(identity: str, content: bytes) -> str:
    return hashlib.sha256(identity.encode() + content).hexdigest()[:32]
