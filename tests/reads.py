"""Which fields of which classes the package reads, told by the types that its code declares: `settings.ppo.gamma`, not any `.gamma`.

Names have the types of their annotations, of the calls that they are assigned from (by return annotations) and of the fields that they
are read from; a container has those of its elements. What only refuses does not read: conditions of a `raise` and what is raised, a
bare `choose(...)`, and functions that are named for refusing.
"""

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

REFUSALS = ("check", "refuse", "unread")  # first words of names
SAME = ("items", "values", "get", "pop", "copy", "_replace")  # methods that give what they are called on, or its elements
AROUND = ("parse", "zip", "enumerate", "sorted", "list", "tuple", "reversed", "replace", "iter", "next", "partial")

Types = frozenset[str]  # names of classes
NOTHING: Types = frozenset()


def named(node: ast.AST | None) -> Types:
    """Every name in an annotation, also in one that is a string."""
    names: set[str] = set()
    for part in ast.walk(node) if node is not None else ():
        if isinstance(part, ast.Constant) and isinstance(part.value, str) and part.value.replace("_", "a").isidentifier():
            names.add(part.value)
        names |= {part.id} if isinstance(part, ast.Name) else {part.attr} if isinstance(part, ast.Attribute) else set()
    return frozenset(names)


def methods(node: ast.ClassDef) -> Iterator[ast.FunctionDef]:
    return (part for part in node.body if isinstance(part, ast.FunctionDef))


class Reads:
    """`fields`: class -> field -> types; `found`: (class, field) of every read."""

    def __init__(self, files: Iterable[Path], uncounted: Path) -> None:
        """`uncounted`: a folder whose code counts in properties alone."""
        trees = {file: ast.parse(file.read_text()) for file in files}
        self.fields: dict[str, dict[str, Types]] = defaultdict(dict)
        self.returns: dict[str, Types] = defaultdict(frozenset)
        self.aliases: dict[str, Types] = {}
        self.found: set[tuple[str, str]] = set()
        self.heirs: dict[str, set[str]] = defaultdict(set)  # class -> those that are made of it
        for tree in trees.values():
            self.declare(tree)
        for base, heirs in self.heirs.items():
            for heir in heirs:
                self.fields[heir] = self.fields[base] | self.fields[heir]
        for again in range(3):  # attributes that are set in a constructor may be made of others
            for file, tree in trees.items():
                self.scope(tree.body, {}, counted=uncounted not in file.parents)

    def declare(self, tree: ast.Module) -> None:
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                own = self.fields[node.name]
                own |= {part.target.id: named(part.annotation) for part in node.body if isinstance(part, ast.AnnAssign)}
                own |= {method.name: named(method.returns) for method in methods(node)}
                for base in node.bases:
                    self.heirs[base.id if isinstance(base, ast.Name) else ""].add(node.name)
            elif isinstance(node, ast.FunctionDef):
                self.returns[node.name] |= named(node.returns)
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.aliases[node.targets[0].id] = named(node.value)

    def classes(self, names: Types, depth: int = 0) -> Types:
        """The classes among names, and those that aliases and type variables stand for."""
        deeper = (self.classes(self.aliases[name], depth + 1) for name in names - set(self.fields) if name in self.aliases)
        return frozenset(names & set(self.fields)).union(*deeper if depth < 3 else ())

    def scope(self, body: list[ast.stmt], known: dict[str, Types], *, counted: bool, owner: str = "") -> None:
        for node in body:
            self.statement(node, known, counted, owner)

    def statement(self, node: ast.stmt, known: dict[str, Types], counted: bool, owner: str) -> None:
        if isinstance(node, ast.ClassDef):
            self.scope(node.body, dict(known), counted=counted, owner=node.name)
        elif isinstance(node, ast.FunctionDef):
            self.function(node, known, counted, owner)
        elif isinstance(node, ast.Raise) or (is_call(node, "choose") and isinstance(node, ast.Expr)):
            return
        else:
            refuses = isinstance(node, ast.If) and not node.orelse and isinstance(node.body[-1], ast.Raise)
            for name, part in ast.iter_fields(node):
                parts = part if isinstance(part, list) else [part]
                for one in parts:
                    if isinstance(one, ast.stmt):
                        self.statement(one, known, counted, owner)
                    elif isinstance(one, (ast.ExceptHandler, ast.match_case)):
                        self.scope(one.body, known, counted=counted, owner=owner)
                    elif isinstance(one, ast.withitem):
                        types = self.types(one.context_expr, known, counted)
                        self.bind(one.optional_vars, one.context_expr, types, known, counted)
                    elif isinstance(one, ast.expr):
                        self.types(one, known, counted and not (refuses and name == "test"))
            self.assign(node, known, counted)

    def assign(self, node: ast.stmt, known: dict[str, Types], counted: bool) -> None:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                self.bind(target, node.value, self.types(node.value, known, counted), known, counted)
        elif isinstance(node, ast.AnnAssign):
            self.bind(node.target, None, self.classes(named(node.annotation)), known, counted)
        elif isinstance(node, ast.For):
            self.bind(node.target, None, self.types(node.iter, known, counted), known, counted)

    def bind(self, target, value, types: Types, known: dict[str, Types], counted: bool) -> None:
        if isinstance(target, ast.Name):
            known[target.id] = known.get(target.id, NOTHING) | types
        elif isinstance(target, ast.Attribute):
            for owner in self.types(target.value, known, False):
                own = self.fields[owner]
                own[target.attr] = own.get(target.attr, NOTHING) | types
        elif isinstance(target, (ast.Tuple, ast.List)):
            alike = isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == len(target.elts)
            for place, one in enumerate(target.elts):
                part = value.elts[place] if alike else None
                self.bind(one, part, self.types(part, known, counted) if alike else types, known, counted)

    def function(self, node: ast.FunctionDef, known: dict[str, Types], counted: bool, owner: str) -> None:
        if node.name.strip("_").split("_")[0] in REFUSALS or node.name == "__post_init__":
            counted = False
        elif any(isinstance(mark, ast.Name) and mark.id == "property" for mark in node.decorator_list):
            counted = True
        inner = dict(known)
        arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
        for argument in arguments:
            inner[argument.arg] = self.classes(named(argument.annotation))
        if owner and arguments and arguments[0].arg == "self":
            inner["self"] = frozenset({owner})
        self.scope(node.body, inner, counted=counted)

    def types(self, node: ast.expr | None, known: dict[str, Types], counted: bool) -> Types:
        """The classes of an expression; what is read in it is counted on the way."""
        if isinstance(node, ast.Name):
            return known.get(node.id, frozenset({node.id} & set(self.fields)))
        if isinstance(node, ast.Attribute):
            return self.attribute(node, known, counted)
        if isinstance(node, ast.Call):
            given = [self.types(one, known, counted) for one in (*node.args, *(keyword.value for keyword in node.keywords))]
            method = self.types(node.func, known, counted)
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            around = frozenset().union(*given) if name in AROUND else NOTHING
            constructed = {name} if name in self.fields else NOTHING
            return self.classes(method | self.returns.get(name, NOTHING) | constructed) | around
        if isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)):
            inner = dict(known)
            for generator in node.generators:
                self.bind(generator.target, None, self.types(generator.iter, inner, counted), inner, counted)
                for condition in generator.ifs:
                    self.types(condition, inner, counted)
            parts = (node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,)
            return frozenset().union(*(self.types(part, inner, counted) for part in parts))
        parts = [part for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr)] if node is not None else []
        types = [self.types(part, dict(known) if isinstance(node, ast.Lambda) else known, counted) for part in parts]
        return NOTHING if isinstance(node, ast.Compare) else frozenset().union(*types)

    def attribute(self, node: ast.Attribute, known: dict[str, Types], counted: bool) -> Types:
        types: set[str] = set()
        for owner in self.types(node.value, known, counted):
            if node.attr in self.fields[owner]:
                types |= self.classes(self.fields[owner][node.attr])
                if counted:
                    self.found |= {(kind, node.attr) for kind in (owner, *self.heirs[owner])}
            elif node.attr in SAME:
                types.add(owner)
        return frozenset(types)


def is_call(node: ast.AST, name: str) -> bool:
    """Whether a statement is nothing but a call of the function."""
    call = node.value if isinstance(node, ast.Expr) else None
    return isinstance(call, ast.Call) and getattr(call.func, "id", getattr(call.func, "attr", "")) == name
