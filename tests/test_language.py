"""Docstrings that a newcomer can read: they open with a noun or a verb."""

import ast
from pathlib import Path

import pytest

import srlhfv_jax

PACKAGE = Path(srlhfv_jax.__file__).parent
OPENINGS = {"Of", "What", "Where", "How", "By", "Who", "Which", "When", "Why"}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_docstrings_open_with_a_noun_or_a_verb(file):
    for node in ast.walk(ast.parse(file.read_text())):
        text = ast.get_docstring(node) if isinstance(node, DOCUMENTED) else None
        if text:
            assert text.split()[0].rstrip(",:") not in OPENINGS, f"line {getattr(node, 'lineno', 1)}: {text.splitlines()[0]}"
