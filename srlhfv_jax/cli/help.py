"""Help of a command with a config: keys that must be given, presets, an example, every setting with its comment."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict

from srlhfv_jax.cli import switches
from srlhfv_jax.cli.config_files import presets
from srlhfv_jax.config.listing import Section, line, sections, show
from srlhfv_jax.errors import UserError, nearest


class About(NamedTuple):
    """A command with a config, as its help describes it."""

    command: str
    text: str
    kind: type | None = None  # the settings that the config is parsed as; None: help says nothing of them
    needed: Mapping[str, str] = {}  # flag or setting that must be given -> its meaning
    example: str = ""  # flags of a whole command


def page(about: About, name: str, config: ConfigDict, values: flags.FlagValues, section: str) -> str:
    """The whole help of a command whose config file is `name`, or that of one section.

    Raises:
        UserError: there is no section of this name.
    """
    settings = list(sections(about.kind, config))
    if section:
        return _one(section, settings)
    file = Path(name.partition(":")[0]).name
    needed = {f"--{'' if path in values else 'config.'}{path}": meaning for path, meaning in about.needed.items()}
    switch = {f"--{flag}": f"{values[flag].help} ({values[flag].default!r})" for flag in switches.names(values)}
    switch = {flag: meaning for flag, meaning in switch.items() if values[flag[2:]].help and flag not in needed}
    parts = [f"usage: srlhfv {about.command} [--config={file}:PRESET] [--config.KEY=VALUE ...] [flags]", about.text.strip()]
    parts += _table("needed", needed) + _table("flags", switch)
    parts += _table("presets", {f"{file}:{preset}": first for preset, first in presets(name).items()})
    if about.example:
        parts.append(f"example:\n  srlhfv {about.command} {about.example}")
    parts.append("settings, as they stand here (--help=SECTION shows one section):")
    return "\n\n".join([*parts, *map(show, settings)])


def _table(title: str, meanings: Mapping[str, str]) -> list[str]:
    """A part of the page, or none where there is nothing to list."""
    return [f"{title}:\n" + "\n".join(line(f"  {name}", meaning) for name, meaning in meanings.items())] if meanings else []


def _one(name: str, settings: list[Section]) -> str:
    for section in settings:
        if section.path == name:
            return show(section)
    names = [section.path for section in settings]
    raise UserError(f"--help={name}: there is no section of this name; {nearest(name, names)} ({', '.join(names)})")
