"""Words that a newcomer can read: docstrings open with a noun or a verb, values are called by nouns."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import srlhfv_jax

PACKAGE = Path(srlhfv_jax.__file__).parent
ROOT = PACKAGE.parent
OPENINGS = {"Of", "What", "Where", "How", "By", "Who", "Which", "When", "Why"}
BARE = {"found", "made", "asked", "said", "own", "kept", "wanted", "whole", "one"}  # say nothing of what a value is
LINES = 3  # that such a name may live: one look has all of it
SCOPES = (
    ast.Module,
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.Lambda,
    ast.ListComp,
    ast.SetComp,
    ast.DictComp,
    ast.GeneratorExp,
)
NAMED = sorted(PACKAGE.rglob("*.py"))
NAMED += sorted((ROOT / "benchmarks").glob("*.py")) + sorted((ROOT / "configs").glob("*.py"))
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_docstrings_open_with_a_noun_or_a_verb(file):
    for node in ast.walk(ast.parse(file.read_text())):
        text = ast.get_docstring(node) if isinstance(node, DOCUMENTED) else None
        if text:
            assert text.split()[0].rstrip(",:") not in OPENINGS, f"line {getattr(node, 'lineno', 1)}: {text.splitlines()[0]}"


def names(node: ast.AST, scope: ast.AST) -> Iterator[tuple[ast.AST, str, int, bool]]:
    """(scope, name, line, whether it is bound there) of every name and argument below a node."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Name):
            yield scope, child.id, child.lineno, isinstance(child.ctx, ast.Store)
        elif isinstance(child, ast.arg):
            yield scope, child.arg, child.lineno, True
        yield from names(child, child if isinstance(child, SCOPES) else scope)


def long_lived(tree: ast.Module) -> list[str]:
    """Bare words that are bound in a scope and live there for more than LINES."""
    lives: dict[tuple[ast.AST, str], list[int]] = {}
    bound = set()
    for scope, name, line, binds in names(tree, tree):
        if name in BARE:
            lives.setdefault((scope, name), []).append(line)
            bound |= {(scope, name)} if binds else set()
    return [f"line {min(lines)}: {key[1]}" for key, lines in lives.items() if key in bound and max(lines) - min(lines) > LINES]


def test_a_bare_word_is_seen_where_it_lives_long():
    source = "def f(xs):\n    found = []\n{}    return found\n"
    assert long_lived(ast.parse(source.format("    xs.sort()\n" * 3))) == ["line 2: found"]
    assert long_lived(ast.parse(source.format("    xs.sort()\n" * 2))) == []
    assert long_lived(ast.parse("def f(one):\n" + "    g()\n" * 3 + "    return [one for one in g()]\n")) == []
    assert long_lived(ast.parse("def f(one):\n" + "    g()\n" * 3 + "    return one\n")) == ["line 1: one"]


@pytest.mark.parametrize("file", NAMED, ids=lambda file: str(file.relative_to(ROOT)))
def test_values_that_live_longer_than_a_look_are_called_by_nouns(file):
    assert long_lived(ast.parse(file.read_text())) == []
