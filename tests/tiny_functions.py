"""A random Llama, prompts with a column of their own, and functions beside them, as a library for tests."""

import json
from pathlib import Path

import tiny_hf

ROWS = [{"prompt": f"w{7 + row} w{9 + row}", "level": f"l{row % 3}"} for row in range(6)]


def save(folder: Path, functions: str, rows: list[dict]) -> Path:
    """Write llama/, prompts.jsonl and own.py."""
    tiny_hf.save(folder / "llama", tiny_hf.llama_config())
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "own.py").write_text(functions)
    return folder


def data(folder: Path) -> dict:
    """Settings that read these prompts."""
    return {"data.path": str(folder / "prompts.jsonl"), "data.split": "", "data.response_length": 5, "data.batch_size": 4}
