"""Functions by the terms of a reward and a cost, from files or from Python; before any weights are loaded."""

import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from srlhfv_jax.config import PPOLagConfig
from srlhfv_jax.config.terms import Term
from srlhfv_jax.errors import UserError, nearest, reason, shown
from srlhfv_jax.functions import answers, identity
from srlhfv_jax.parallel import hosts


class Function(NamedTuple):
    """One function of a reward or a cost."""

    score: str  # "reward", or the key of a constraint
    name: str
    weight: float
    call: Callable[[list], Any]  # samples -> a number for each
    identity: str | None  # by content; None: it cannot be told, and nothing is kept under it
    setting: str  # that names it, for messages

    @property
    def place(self) -> str:
        """The function in messages."""
        return f"{self.setting}: {self.name}"


Given = Mapping[str, Mapping[str, Callable]]  # score -> name -> a function of Python


def load(settings: PPOLagConfig, given: Given) -> list[Function]:
    """The functions that settings name.

    Args:
        given: those of Python, which settings name without a file.

    Raises:
        UserError: a file that is no Python, a name that is not in it, or what cannot be called with samples.
    """
    modules: dict[Path, ModuleType] = {}
    functions = []
    for score, terms in settings.terms.items():
        for term in terms:
            if not term.is_learned:
                setting = settings.setting_of(score)
                if term.file == answers.PLACE:
                    call, known = _built_in(term, setting)
                elif term.file:
                    call, known = _from_file(term, setting, modules)
                else:
                    call, known = _from_python(term, setting, given.get(score, {}))
                functions.append(Function(score, term.name, term.weight, call, known, setting))
                _check_call(functions[-1])
    return functions


def describe(settings: PPOLagConfig) -> str:
    """The sums in words: "reward = 0.5 length (rewards.py) + model; cost = model"."""

    def words(term: Term) -> str:
        weight = "" if term.weight == 1 else f"{term.weight:g} "
        return f"{weight}{term.name}{f' ({term.file})' if term.file else ''}"

    def rows(score: str) -> str:
        where = settings.costs[score].where if score != "reward" else None
        return f" where {where.column} is {where.value}" if where else ""

    sums = {score: f"{score} = {' + '.join(map(words, terms))}" for score, terms in settings.terms.items()}
    return "; ".join(f"{text}{rows(score)}" for score, text in sums.items())


def check_same(functions: list[Function]) -> None:
    """Raise UserError where processes of one run have different functions."""
    for function in functions:
        known = hosts.texts_from_each(function.identity or "")
        odd = next((process for process, one in enumerate(known) if one != known[0]), None)
        if odd is not None:
            raise UserError(
                f"{function.place} is another function on process {odd} than on process 0: give all processes the same file"
            )


def _built_in(term: Term, setting: str) -> tuple[Callable, str | None]:
    if term.name not in answers.FUNCTIONS:
        raise UserError(f"{setting} names {answers.PLACE}:{term.name}; {nearest(term.name, answers.FUNCTIONS)}")
    return answers.FUNCTIONS[term.name], identity.of_callable(answers.FUNCTIONS[term.name])


def _from_python(term: Term, setting: str, functions: Mapping[str, Callable]) -> tuple[Callable, str | None]:
    if term.name not in functions:
        raise UserError(
            f"{setting} names {term.name} without a file: expected FILE.py:NAME, 'answer:length', 'answer:declined', 'answer:format', or "
            "'model', the head of the learned scorer"
        )
    return functions[term.name], identity.of_callable(functions[term.name])


def _from_file(term: Term, setting: str, modules: dict[Path, ModuleType]) -> tuple[Callable, str]:
    path = Path(term.file)
    if not path.is_file():
        raise UserError(f"{setting}: there is no file {shown(term.file)}: expected FILE.py:NAME")
    place = path.resolve()
    if place not in modules:
        modules[place] = _module(place, f"{setting}: {term.file}")
    names = {name: value for name, value in vars(modules[place]).items() if callable(value) and not name.startswith("_")}
    if term.name not in vars(modules[place]):
        hint = nearest(term.name, names) or "there is no function in it"
        raise UserError(f"{setting}: {term.file} has no {term.name}; {hint}")
    return vars(modules[place])[term.name], identity.of_file(place, term.name)


def _module(path: Path, place: str) -> ModuleType:
    """The module of a file, which may import its neighbours."""
    module = ModuleType(f"srlhfv_function_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and pickles look there
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever the user's file does, sys.exit among it
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise UserError(f"{place} cannot be run as Python ({type(error).__name__}{line}: {reason(error)})") from error
    return module


def _check_call(function: Function) -> None:
    if not callable(function.call):
        raise UserError(f"{function.place} is {shown(function.call)}: expected a function f(samples) -> list of numbers")
    try:
        signature = inspect.signature(function.call)
    except (TypeError, ValueError):  # of some built-in functions there is none
        return
    try:
        signature.bind([])
    except TypeError as error:
        raise UserError(
            f"{function.place}{signature} cannot be called with one argument, a list of samples ({reason(error)})"
        ) from error
