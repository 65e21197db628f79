"""The map of the package holds: who may import whom, what stays out, and the letters of dimension suffixes."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import srlhfv_jax
from srlhfv_jax.dims import LETTERS

PACKAGE = Path(srlhfv_jax.__file__).parent
ROOT = PACKAGE.parent

# Low to high. A file imports from lower lines, from its own package, and on its own line only from names further left.
LINES = (
    ("compilation_cache", "dims", "errors", "quiet", "signals"),
    ("batches", "files", "parsing", "config", "configs"),
    ("losses", "data"),
    ("parallel",),
    ("models", "hf"),
    ("checkpoint", "rollout", "training", "weights"),
    ("runs",),
    ("evaluation", "functions"),
    ("supervised", "preference", "ppo_lag", "guard"),
    ("report", "plan", "quickstart"),
    ("cli",),
    ("api",),
    ("__main__",),
)
PLACE = {name: (height, column) for height, line in enumerate(LINES) for column, name in enumerate(line)}

FILES = sorted(PACKAGE.rglob("*.py")) + sorted((ROOT / "configs").glob("*.py"))
EXPORTED = tuple(PACKAGE / "hf" / f"torch_{name}.py" for name in ("scores", "revision"))  # copied into exports for users of torch
OUTSIDE = {"torch": (), "tensorflow": (), "flax": ("models",)}  # package -> parts of ours that may import it
NO_JAX = ("compilation_cache", "dims", "errors", "quiet", "signals", "files", "parsing", "config", "configs", "data")


def part_of(file: Path) -> str:
    """The name in LINES that a file belongs to."""
    if file.parent == ROOT / "configs":
        return "configs"
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(file: Path) -> Iterator[str]:
    """Full dotted names of everything a file imports, at any depth of the code."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def inner(name: str) -> str | None:
    """The part of our package that an imported name reaches, if any."""
    parts = name.split(".")
    return parts[1] if parts[0] == "srlhfv_jax" and len(parts) > 1 else None


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_downwards(file):
    here = part_of(file)
    if here == "__init__":
        return
    for name in imports(file):
        there = inner(name)
        if there is None or there == here:
            continue
        assert there in PLACE, f"{name} is not on the map"
        (height, column), (own_height, own_column) = PLACE[there], PLACE[here]
        assert height < own_height or (height == own_height and column < own_column), f"{here} may not import {name}"


def docstring(package: Path) -> str:
    return ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""


def test_imports_inside_ppo_lag_follow_the_order_of_its_docstring():
    """`a -> b, c -> d`: a file imports from groups to the right of its own; what the line leaves out imports nothing from the room."""
    room = PACKAGE / "ppo_lag"
    (line,) = (line for line in docstring(room).splitlines() if line.count("->") > 3)
    order = {name: place for place, group in enumerate(line.split("->")) for name in re.findall(r"\w+", group)}
    for file in sorted(room.glob("[a-z]*.py")):
        inside = (name.split(".") for name in imports(file) if name.startswith("srlhfv_jax.ppo_lag."))
        for there in {parts[2] for parts in inside}:
            assert file.stem in order, f"ppo_lag/__init__.py has {file.stem} nowhere in its line of imports"
            assert order[file.stem] < order[there], (
                f"ppo_lag/{file.name} may not import {there}: see the line in ppo_lag/__init__.py"
            )


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_outside_packages_stay_in_their_place(file):
    tops = {name.split(".")[0] for name in imports(file)}
    assert not any(one.stem in name for name in imports(file) for one in EXPORTED), f"{file} imports what is for exports only"
    if file in EXPORTED:
        return
    for package, allowed in OUTSIDE.items():
        assert package not in tops or part_of(file) in allowed, f"{file} imports {package}"
    if part_of(file) in NO_JAX:
        assert not tops & {"jax", "jaxlib", "optax", "chex"}, f"{file} is for NumPy and plain Python only"


def module_of(file: Path) -> str:
    """The dotted name that a file is imported by."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    parts = ("srlhfv_jax", *parts) if parts[0] == "configs" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_graph() -> dict[str, set[str]]:
    """module -> the modules of ours that it imports, at any depth of the code; a package is its __init__.py alone."""
    modules = {module_of(file): file for file in FILES}
    graph: dict[str, set[str]] = {}
    for module, file in modules.items():
        found = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    submodule = f"{node.module}.{alias.name}"
                    found.add(submodule if submodule in modules else node.module)
        graph[module] = found & modules.keys()
    return graph


def cycles(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """Groups of modules each of which imports, through others, all of its group."""

    def reached(start: str) -> set[str]:
        found, waiting = set(), [start]
        while waiting:
            new = graph[waiting.pop()] - found
            found |= new
            waiting += new
        return found

    reach = {module: reached(module) for module in graph}
    groups = [{other for other in reach[module] if module in reach[other]} for module in graph if module in reach[module]]
    return [group for number, group in enumerate(groups) if group not in groups[:number]]


def test_no_module_imports_itself_through_others():
    """Inside a package too, and by imports inside functions too."""
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [{"b", "c"}]
    assert cycles(import_graph()) == []


@pytest.mark.parametrize("file", sorted((PACKAGE / "cli").glob("*.py")), ids=lambda file: file.name)
def test_a_command_only_reads_its_flags(file):
    """Work is done in the rooms: a file of cli/ is short, and knows no arrays."""
    assert file.read_text().count("\n") < 80, f"{file} is long: move the work to the room that it belongs to"
    tops = {name.split(".")[0] for name in imports(file)}
    assert not tops & {"jax", "jaxlib", "numpy"}, f"{file} computes: move that to the room that it belongs to"


@pytest.mark.parametrize("package", sorted(PACKAGE.rglob("__init__.py")), ids=lambda file: str(file.parent.relative_to(ROOT)))
def test_the_docstring_of_a_package_names_each_of_its_modules(package):
    folder, words = package.parent, set(re.findall(r"\w+", ast.get_docstring(ast.parse(package.read_text())) or ""))
    inside = {file.stem for file in folder.glob("*.py")} | {file.parent.name for file in folder.glob("*/__init__.py")}
    assert sorted(name for name in inside if not name.startswith("_") and name not in words) == []


def test_no_file_is_named_after_nothing():
    for file in FILES:
        assert file.stem not in ("utils", "util", "common", "helpers", "misc"), f"{file}: name it by its subject"


def test_files_and_functions_are_short():
    for file in FILES:
        text = file.read_text()
        assert text.count("\n") <= 400, f"{file} has {text.count(chr(10))} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                size = node.end_lineno - node.lineno + 1
                assert size <= 80, f"{file}:{node.lineno} {node.name} has {size} lines"


def test_suffix_letters_are_dimensions():
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            name = node.id if isinstance(node, ast.Name) else node.arg if isinstance(node, ast.arg) else ""
            suffix = re.fullmatch(r"[a-z][a-z0-9_]*_([A-Z][A-Za-z0-9]*)", name)
            for letter in suffix[1] if suffix else "":
                assert letter in LETTERS or letter.isdigit(), f"{file}:{node.lineno}: {name}: {letter} is not in dims.LETTERS"


def walked(tree: ast.AST) -> Iterator[ast.expr]:
    """Everything that is walked in an order that matters: by loops, comprehensions that keep it, list, tuple and join."""
    any_order = [node.args[0] for node in ast.walk(tree) if is_call(node, "sorted", "set", "frozenset", "any", "all", "sum")]
    for node in ast.walk(tree):
        if isinstance(node, ast.For):
            yield node.iter
        elif isinstance(node, (ast.ListComp, ast.DictComp, ast.GeneratorExp)) and node not in any_order:
            yield from (generator.iter for generator in node.generators)
        elif is_call(node, "list", "tuple", "join"):
            yield node.args[0]


def is_call(node: ast.AST, *names: str) -> bool:
    called = node.func if isinstance(node, ast.Call) and node.args else None
    return getattr(called, "id", getattr(called, "attr", None)) in names


def is_keys(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "keys"


def is_set(node: ast.AST, known: set[str]) -> bool:
    """`known`: names that hold one. What is made of the keys of two dicts is one as well."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.BitOr, ast.BitAnd, ast.Sub, ast.BitXor)):
        return any(is_set(side, known) or is_keys(side) for side in (node.left, node.right))
    named = isinstance(node, ast.Name) and node.id in known
    return named or isinstance(node, (ast.Set, ast.SetComp)) or is_call(node, "set", "frozenset")


def test_nothing_is_done_in_the_order_of_a_set():
    """It differs between processes, which must all trace the same program."""
    for file in FILES:
        for function in ast.walk(ast.parse(file.read_text())):
            if isinstance(function, ast.FunctionDef):
                assigned = [node for node in ast.walk(function) if isinstance(node, ast.Assign)]
                known = {
                    name.id for node in assigned if is_set(node.value, set()) for name in node.targets if hasattr(name, "id")
                }
                for node in walked(function):
                    assert not is_set(node, known), f"{file}:{node.lineno}: sort it, or use dict.fromkeys"


def test_the_command_line_starts_without_jax():
    code = "import sys; from srlhfv_jax.cli.main import main; main(['--help']); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
