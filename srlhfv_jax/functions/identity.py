"""A function's identity by content: its scores are kept under it, and all processes of a run must have the same."""

import functools
import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

ADDRESS = " at 0x"  # in the repr of what says nothing of itself


def of_file(path: Path, name: str) -> str:
    """Identity of a function of a file: the file as it is. What the file imports is no part of it."""
    return _digest(path.read_bytes(), name.encode())


def of_callable(function: Callable) -> str | None:
    """Identity of a function of Python: its source, and what it holds; None where one of them cannot be told.

    Variables of its module are no part of it.
    """
    parts: list[Any] = []
    while isinstance(function, functools.partial):
        parts += [function.args, sorted(function.keywords.items())]
        function = function.func
    if inspect.ismethod(function):
        parts.append(function.__self__)
        function = function.__func__
    elif not inspect.isfunction(function):
        parts.append(function)
        function = type(function)
    if inspect.isfunction(function):
        parts += [function.__defaults__, sorted((function.__kwdefaults__ or {}).items())]
        parts += [cell.cell_contents for cell in function.__closure__ or ()]
    try:
        source = inspect.getsource(function)
        told = repr(parts)
    except Exception:  # no source; a __repr__ that fails
        return None
    return None if ADDRESS in told else _digest(source.encode(), told.encode(errors="backslashreplace"))


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
