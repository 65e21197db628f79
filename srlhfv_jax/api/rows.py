"""Rows as they are given: a path, or dicts in memory."""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Rows = str | Path | Sequence[Mapping[str, Any]]  # a path as of config.data.path, or dicts in any layout of docs/data.md


def examples_of(rows: Rows, use: str) -> Sequence[Any]:
    """Rows as `data.rows.Example`s.

    Args:
        use: what is done with each, for messages: "answered".

    Raises:
        UserError: these are no rows, or one of them cannot be used.
    """
    from srlhfv_jax.data import sources
    from srlhfv_jax.data.loader import single_pass
    from srlhfv_jax.errors import UserError

    if isinstance(rows, (str, Path)):
        examples = sources.load_examples(single_pass(str(rows)))
    else:
        examples = sources.in_memory(rows, single_pass())
    if examples.dropped:
        drop = examples.dropped[0]
        raise UserError(f"row {drop.row} cannot be {use}: {drop.reason} ({drop.detail})")
    return examples


def path_of(rows: Rows, path: Path) -> str:
    """The path of rows; those in memory are written to `path` first, their pictures as base64."""
    if isinstance(rows, (str, Path)):
        return str(rows)
    from srlhfv_jax import files
    from srlhfv_jax.data.memory import Plain

    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, "".join(json.dumps(_textual(row)) + "\n" for row in Plain(rows, path.stem)))
    return str(path)


def _textual(value: Any) -> Any:
    if isinstance(value, bytes):
        return "data:;base64," + base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {name: _textual(item) for name, item in value.items()}
    return [_textual(item) for item in value] if isinstance(value, list) else value
