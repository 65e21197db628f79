"""From the ConfigDict of a config file to a frozen dataclass, with every key, type and range checked."""

import dataclasses
import re
import types
import typing
from typing import Any, TypeVar

from ml_collections import ConfigDict

from srlhfv_jax.errors import LONGEST_LINE, LONGEST_SHOWN, UserError, nearest, short, shown

Settings = TypeVar("Settings")

_COLUMN = re.compile(r"--?config\.(?P<key>[\w.]*\bcolumns)\.(?P<ours>\w+)=(?P<theirs>.*)", re.DOTALL)


def parse(kind: type[Settings], config: ConfigDict, path: str = "config") -> Settings:
    """Read `config` as the dataclass `kind`.

    Raises:
        UserError: an unknown, missing or wrongly typed key, or a value out of its range, with its full path.
    """
    types_of = typing.get_type_hints(kind, include_extras=True)
    hints = {field.name: types_of[field.name] for field in dataclasses.fields(kind)}
    for key in config.keys():
        if key not in hints:
            raise UserError(f"unknown config key {path}.{short(key)}; {nearest(key, hints) or 'no keys are known here'}")
    missing = [key for key in hints if key not in config]
    if missing:
        raise UserError(f"config key {path}.{missing[0]} is missing ({hints[missing[0]]}): add it to the config file")
    return kind(**{key: checked(hint, config[key], f"{path}.{key}") for key, hint in hints.items()})


def flattened(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Every value of a config by its dotted key."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flattened(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else {prefix + key: value}
    return found


def check_key(config: ConfigDict, dotted: str) -> None:
    """Raise UserError unless `dotted` names a value of `config`."""
    here, path = config, "config"
    for part in dotted.split("."):
        if not isinstance(here, ConfigDict):
            raise UserError(f"{path} is a single value ({here!r}), it has no key {shown(part)}")
        if part not in here:
            raise UserError(f"unknown config key {path}.{short(part)}; {key_hint(config, here, part)}")
        here, path = here[part], f"{path}.{part}"
    if isinstance(here, ConfigDict):
        raise UserError(f"{path} is a section: set its values one by one ({', '.join(sorted(here.keys()))})")


def collected(config: ConfigDict, words: list[str]) -> list[str]:
    """--config.data.columns.OURS=THEIRS, as often as there are columns -> one --config.data.columns with all of them as a tuple."""
    arguments: list[str] = []
    pairs: dict[str, list[str]] = {}  # key of the config -> "OURS=THEIRS"
    for word in words:
        match = _COLUMN.fullmatch(word)
        if match is None:
            arguments.append(word)
        else:
            pairs.setdefault(match["key"], []).append(f"{match['ours']}={match['theirs']}")
    for key, mapped in pairs.items():
        check_key(config, key)
        arguments.append(f"--config.{key}={tuple(mapped)!r}")
    return arguments


def key_hint(config: ConfigDict, section: ConfigDict, name: str) -> str:
    """The end of a message about a key that `section` does not have: where it stands in `config`, else the nearest one."""
    elsewhere = [f"config.{key}" for key in flattened(config) if key.endswith(f".{name}")]
    return f"did you mean {' or '.join(elsewhere)}?" if elsewhere else nearest(name, section.keys())


def checked(hint: Any, value: Any, path: str) -> Any:
    """A value that is of a type such as `Annotated[float, Range(0, 1)]`.

    Raises:
        UserError: it is not; `path` names it.
    """
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, ConfigDict):
            raise UserError(f"{path} must be a section of settings, got {shown(value)}")
        return parse(hint, value, path)
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        hint, *checks = typing.get_args(hint)
        value = checked(hint, value, path)
        for problem in filter(None, (check.problem(value) for check in checks)):
            room = LONGEST_LINE - len(path) - len(problem) - 40  # of a list of allowed words the value is the part to cut
            raise UserError(f"{path} must be {problem}, got {shown(value, max(20, min(LONGEST_SHOWN, room)))}")
        return value
    if origin is tuple:
        element = typing.get_args(hint)[0]
        if not isinstance(value, (tuple, list)):
            raise UserError(f"{path} must be a tuple of {_name(element)}, got {shown(value)}")
        return tuple(checked(element, item, f"{path}[{i}]") for i, item in enumerate(value))
    if origin in (typing.Union, types.UnionType):
        raise TypeError(f"{path}: a setting has one type, {hint} has several")
    if hint is float and type(value) is int:
        value = _float(value, path)
    if type(value) is not hint:
        raise UserError(f"{path} must be {hint.__name__}, got {shown(value)} ({type(value).__name__})")
    return value


def _float(value: int, path: str) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise UserError(f"{path} must be float, got {shown(value)}") from error


def _name(hint: Any) -> str:
    return (typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint).__name__
