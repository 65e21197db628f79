"""Settings as lines of text, by section, for --help: each with its value and the comment beside its field."""

import dataclasses
import textwrap
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from srlhfv_jax.config import TRAINED
from srlhfv_jax.config.comments import comments
from srlhfv_jax.config.ranges import OneOf

WIDTH, COLUMN = 120, 46  # characters of a line, and those before a comment
TOP = "top"  # the section of settings that are in none


class Section(NamedTuple):
    """Settings of one dataclass."""

    path: str
    about: str
    lines: list[str]


def show(section: Section) -> str:
    """A section as lines: its name, then its settings."""
    return "\n".join([textwrap.fill(f"{section.path}: {section.about}", WIDTH), *section.lines])


def sections(kind: type, config: ConfigDict, path: str = "") -> Iterator[Section]:
    """The settings of `kind` with the values of `config`: those of its own, then each section below it."""
    meanings, types = comments(kind), typing.get_type_hints(kind, include_extras=True)
    names = [field.name for field in dataclasses.fields(kind)]
    plain = [name for name in names if not dataclasses.is_dataclass(types[name])]
    about = " ".join((kind.__doc__ or "").strip().split("\n\n")[0].split())
    lines = [line(f"  --config.{path}{name}={_value(config[name])}", _comment(meanings[name], types[name])) for name in plain]
    if lines:
        yield Section(path.rstrip(".") or TOP, about, lines)
    for name in names:
        below = types[name]
        if path == "" and below in TRAINED and kind not in TRAINED:  # a stage of a pipeline has a help of its own
            yield Section(
                name, f"all settings of srlhfv {below.stage}, as --config.{name}.KEY; see srlhfv {below.stage} --help", []
            )
        elif dataclasses.is_dataclass(below):
            yield from sections(below, config[name], f"{path}{name}.")


def line(left: str, comment: str) -> str:
    """One setting: what is written on the left, its meaning in a column of its own."""
    rows = textwrap.wrap(comment, WIDTH - COLUMN) or [""]
    first = [f"{left:<{COLUMN - 1}} {rows[0]}".rstrip()] if len(left) < COLUMN else [left, f"{'':<{COLUMN}}{rows[0]}".rstrip()]
    return "\n".join([*first, *(f"{'':<{COLUMN}}{row}" for row in rows[1:])])


def _comment(text: str, hint: Any) -> str:
    """A comment, with the words that the type allows."""
    for hint in (hint, *typing.get_args(hint)[:1]):
        for check in typing.get_args(hint)[1:] if typing.get_origin(hint) is typing.Annotated else ():
            if isinstance(check, OneOf):
                return f"{check.problem('')}: {text}"
    return text


def _value(value: Any) -> str:
    return "" if value == "" else f'"{value}"' if isinstance(value, tuple) else str(value)
