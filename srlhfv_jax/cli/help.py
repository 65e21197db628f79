"""Help of a command with a config: keys that must be given, presets, an example, every setting with its comment."""

import dataclasses
import textwrap
import typing
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from srlhfv_jax.config import TRAINED
from srlhfv_jax.config.comments import comments
from srlhfv_jax.config.ranges import OneOf
from srlhfv_jax.errors import UserError, nearest

WIDTH, COLUMN = 120, 46  # characters of a line, and those before a comment
TOP = "top"  # the section of settings that are in none


class Section(NamedTuple):
    """Settings of one dataclass."""

    path: str
    about: str
    lines: list[str]


def page(
    usage: str,
    text: str,
    needed: Mapping[str, str],
    flags: Mapping[str, str],
    presets: Mapping[str, str],
    example: str,
    sections: list[Section],
) -> str:
    """The whole help of a command."""
    parts = [usage, text.strip()]
    if needed:
        parts.append("needed:\n" + "\n".join(_line(f"  {name}", meaning) for name, meaning in needed.items()))
    if flags:
        parts.append("flags:\n" + "\n".join(_line(f"  {name}", meaning) for name, meaning in flags.items()))
    if presets:
        parts.append("presets:\n" + "\n".join(_line(f"  {name}", first) for name, first in presets.items()))
    if example:
        parts.append(f"example:\n  {example}")
    parts.append("settings, as they stand here (--help=SECTION shows one section):")
    return "\n\n".join([*parts, *map(show, sections)])


def one(section: str, sections: list[Section]) -> str:
    """The help of one section.

    Raises:
        UserError: there is none of this name.
    """
    for candidate in sections:
        if candidate.path == section:
            return show(candidate)
    names = [candidate.path for candidate in sections]
    raise UserError(f"--help={section}: there is no section of this name; {nearest(section, names)} ({', '.join(names)})")


def show(section: Section) -> str:
    """A section as lines: its name, then its settings."""
    return "\n".join([textwrap.fill(f"{section.path}: {section.about}", WIDTH), *section.lines])


def sections(kind: type, config: ConfigDict, path: str = "") -> Iterator[Section]:
    """The settings of `kind` with the values of `config`: those of its own, then each section below it."""
    said, types = comments(kind), typing.get_type_hints(kind, include_extras=True)
    names = [field.name for field in dataclasses.fields(kind)]
    plain = [name for name in names if not dataclasses.is_dataclass(types[name])]
    about = " ".join((kind.__doc__ or "").strip().split("\n\n")[0].split())
    lines = [_line(f"  --config.{path}{name}={_value(config[name])}", _comment(said[name], types[name])) for name in plain]
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


def _comment(text: str, hint: Any) -> str:
    """A comment, with the words that the type allows."""
    for hint in (hint, *typing.get_args(hint)[:1]):
        for check in typing.get_args(hint)[1:] if typing.get_origin(hint) is typing.Annotated else ():
            if isinstance(check, OneOf):
                return f"{check.problem('')}: {text}"
    return text


def _value(value: Any) -> str:
    return "" if value == "" else f'"{value}"' if isinstance(value, tuple) else str(value)


def _line(left: str, comment: str) -> str:
    """One setting: what is written on the left, its meaning in a column of its own."""
    rows = textwrap.wrap(comment, WIDTH - COLUMN) or [""]
    first = [f"{left:<{COLUMN - 1}} {rows[0]}".rstrip()] if len(left) < COLUMN else [left, f"{'':<{COLUMN}}{rows[0]}".rstrip()]
    return "\n".join([*first, *(f"{'':<{COLUMN}}{row}" for row in rows[1:])])
