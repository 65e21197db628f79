"""Reading the command line: absl flags for a command's own switches, ml_collections for --config and its overrides.

Both libraries answer a mistake with exceptions made for programmers; everything here answers with a UserError of one line.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from absl import flags
from ml_collections import ConfigDict, config_flags

from srlhfv_jax import files
from srlhfv_jax.cli import help
from srlhfv_jax.cli.config_files import CONFIGS, check_key, load, presets
from srlhfv_jax.config import unread
from srlhfv_jax.errors import UserError, nearest, reason, short, shown
from srlhfv_jax.parsing import flattened, parse

Settings = TypeVar("Settings")

SEEDS = 2**31 - 1  # the largest seed, as in config.Seed
OUTPUTS = ("workdir", "out", "output", "target")  # flags that name where to write
LONGEST = 200  # characters of a flag's name
WORKDIR = "folder of the run: config.json, metrics.jsonl, checkpoints/, export/, result.json; an interrupted run goes on there"


def stage(
    command: str, kind: type[Settings], argv: list[str], doc: str, *, needed: Mapping[str, str] = {}, example: str = ""
) -> tuple[Settings, Path]:
    """Settings and workdir of a stage command: --config (default configs/<command>.py), its overrides, --workdir.

    Args:
        needed, example: for --help, as in `runs.stage.Stage`.
    """
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, WORKDIR, flag_values=values)
    found, changed = read_with_config(command, values, argv, doc, kind, needed={"workdir": WORKDIR} | needed, example=example)
    required(values, "workdir")
    settings = parse(kind, found)
    unread.check_changed(settings, changed)
    return settings, Path(values.workdir)


def read_with_config(
    command: str,
    values: flags.FlagValues,
    argv: list[str],
    doc: str,
    kind: type | None = None,
    *,
    needed: Mapping[str, str] = {},
    example: str = "",
    configured_as: str = "",
) -> tuple[ConfigDict, list[str]]:
    """Parse `argv` into `values` (the command's own flags) and the config that --config and --config.x.y=v describe.

    Returns the config, and the keys "x.y" whose values are not those of the config file.

    Args:
        kind: the settings that the config is parsed as, which --help describes.
        needed, example: for --help.
        configured_as: the command whose config file is the default; "": this one.
    """
    name, rest = _config_argument(configured_as or command, argv)
    config = load(name)
    section = next((one.partition("=")[2] for one in rest if one in ("--help", "-h") or one.startswith("--help=")), None)
    if section is not None and kind is not None:
        print(_help(command, name, kind, config, values, doc, needed, example, section))
        raise SystemExit(0)
    for argument in rest:
        if argument.lstrip("-").startswith(("config.", "noconfig.")):
            check_key(config, argument.lstrip("-").partition("=")[0].partition(".")[2])
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=[command, *rest])
    except (TypeError, ValueError) as error:
        raise UserError(reason(error)) from error
    read(values, command, rest, f"{doc}\n\n--config={name}; every value in it can be set with --config.section.key=VALUE.")
    before, after = flattened(load(name)), flattened(values.config)
    return values.config, [key for key in after if after[key] != before[key]]


def _help(
    command: str,
    name: str,
    kind: type,
    config: ConfigDict,
    values: flags.FlagValues,
    doc: str,
    needed: Mapping[str, str],
    example: str,
    section: str,
) -> str:
    sections = list(help.sections(kind, config))
    if section:
        return help.one(section, sections)
    file = Path(name.partition(":")[0]).name
    usage = f"usage: srlhfv {command} [--config={file}:PRESET] [--config.KEY=VALUE ...] [flags]"
    own = {f"--{flag}": f"{values[flag].help} ({values[flag].default!r})" for flag in _own(values) if values[flag].help}
    given = {f"--{'' if path in values else 'config.'}{path}": meaning for path, meaning in needed.items()}
    own = {flag: meaning for flag, meaning in own.items() if flag not in given}
    example = f"srlhfv {command} {example}" if example else ""
    return help.page(usage, doc, given, own, {f"{file}:{one}": first for one, first in presets(name).items()}, example, sections)


def read(values: flags.FlagValues, command: str, argv: list[str], doc: str) -> None:
    """Parse `argv` into `values`; --help prints the flags and ends the process.

    Raises:
        UserError: an unknown flag, a value of the wrong type, or a word that is no flag.
    """
    if {"--help", "-h"} & set(argv):
        print(f"usage: srlhfv {command} [flags]\n\n{doc.strip()}\n")
        for name in sorted(values):
            if "." not in name and name != "config" and values[name].help:
                print(f"  --{name}: {values[name].help} (default: {values[name].default!r})")
        raise SystemExit(0)
    for name in (argument.lstrip("-").partition("=")[0] for argument in argv if argument.startswith("-")):
        if len(name) > LONGEST:  # absl looks for similar names by recursion
            raise UserError(f"srlhfv {command} has no flag --{short(name)}")
    try:
        words = values([command, *argv])[1:]
    except flags.UnrecognizedFlagError as error:
        raise UserError(
            f"srlhfv {command} has no flag --{short(error.flagname)}; {nearest(error.flagname, _own(values))}"
        ) from error
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(_wrong_value(str(error), values)) from error
    for name in OUTPUTS:
        if name in values and values[name].value not in (None, values[name].default):
            values[name].value = str(files.local(values[name].value, f"--{name}"))
    for name in _own(values):
        if isinstance(values[name].value, float) and not math.isfinite(values[name].value):
            raise UserError(f"--{name} must be a finite number, got {values[name].value}")
    if words:
        raise UserError(f"srlhfv {command} takes flags only, got {shown(words[0])}: write --name=value")


def required(values: flags.FlagValues, *names: str) -> None:
    """Raise UserError for the first of these flags that was not given."""
    for name in names:
        if values[name].value is None:
            raise UserError(f"--{name} is needed: {values[name].help}")


def _wrong_value(message: str, values: flags.FlagValues) -> str:
    """absl says what Python's int() said; a setting's own type says more."""
    found = re.match(r"flag --(config\.[\w.]+)=(.*?): ", message, re.DOTALL)
    if found is None:
        return short(" ".join(message.split()), 300)
    name, value = found.groups()
    return f"{name} must be {values[name].flag_type().removeprefix('multi ')}, got {shown(value)}"


def _own(values: flags.FlagValues) -> list[str]:
    return [name for name in values if "." not in name]


def _config_argument(command: str, argv: list[str]) -> tuple[str, list[str]]:
    """The value of --config (the last one counts), and the other arguments."""
    name, rest, waiting = str(CONFIGS / f"{command}.py"), [], False
    for argument in argv:
        if waiting:
            name, waiting = argument, False
        elif argument in ("--config", "-config"):
            waiting = True
        elif argument.startswith(("--config=", "-config=")):
            name = argument.partition("=")[2]
        else:
            rest.append(argument)
    if waiting or not name:
        raise UserError("--config needs a value: FILE.py or FILE.py:ARG")
    return name, rest
