"""From the ConfigDict of a config file to a frozen dataclass, with every key and type checked."""

import dataclasses
import difflib
import types
import typing
from typing import Any, TypeVar

from ml_collections import ConfigDict

from srlhfv_jax.errors import UserError

Settings = TypeVar("Settings")


def parse(kind: type[Settings], config: ConfigDict, path: str = "config") -> Settings:
    """Read `config` as the dataclass `kind`.

    Raises:
        UserError: an unknown, missing or wrongly typed key, with its full path.
    """
    hints = typing.get_type_hints(kind)
    for key in config.keys():
        if key not in hints:
            raise UserError(f"unknown config key {path}.{key}; {_nearest(key, hints)}")
    missing = [key for key in hints if key not in config]
    if missing:
        raise UserError(f"config key {path}.{missing[0]} is missing ({hints[missing[0]]}): add it to the config file")
    return kind(**{key: _value(hint, config[key], f"{path}.{key}") for key, hint in hints.items()})


def _nearest(key: str, known: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.0)
    return f"did you mean {close[0]!r}?" if close else "no keys are known here"


def _value(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, ConfigDict):
            raise UserError(f"{path} must be a section of settings, got {value!r}")
        return parse(hint, value, path)
    origin = typing.get_origin(hint)
    if origin is tuple:
        element = typing.get_args(hint)[0]
        if not isinstance(value, (tuple, list)):
            raise UserError(f"{path} must be a tuple of {element.__name__}, got {value!r}")
        return tuple(_value(element, item, f"{path}[{i}]") for i, item in enumerate(value))
    if origin in (typing.Union, types.UnionType):
        raise TypeError(f"{path}: a setting has one type, {hint} has several")
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise UserError(f"{path} must be {hint.__name__}, got {value!r} ({type(value).__name__})")
    return value
