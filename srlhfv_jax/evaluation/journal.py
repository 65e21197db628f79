"""A file of JSON lines that grows while work is done: written whole and flushed as they come, so that a kill loses none."""

import io
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srlhfv_jax.files import json_lines
from srlhfv_jax.parallel import hosts

ADVICE = "correct the line or delete it"  # where a line is no JSON


class Journal:
    """Rows in a file, read once and appended to. Shared by threads; of several processes of a run all read it, the first writes."""

    def __init__(self, path: Path):
        """Raises UserError where a whole line is no JSON object; a last line torn by a kill is cut off."""
        self.path = path
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_bytes() if path.exists() else b""
        complete = text[: text.rfind(b"\n") + 1]
        first = hosts.process_index() == 0
        if complete != text and first:
            with path.open("r+b") as file:
                file.truncate(len(complete))
        self.rows = [row for _, row in json_lines(io.BytesIO(complete), path, advice=ADVICE)]  # those of earlier runs
        self._file = (path if first else Path(os.devnull)).open("a", encoding="utf-8")

    def append(self, row: Mapping[str, Any]) -> None:
        line = json.dumps(row, ensure_ascii=False) + "\n"
        if not _is_unicode(line):  # half of a surrogate pair, which JSON can spell and UTF-8 cannot
            line = json.dumps(row) + "\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()

    def close(self) -> None:
        self._file.close()


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
