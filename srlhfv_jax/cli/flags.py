"""Settings of a command: --config and its overrides, read by ml_collections, beside the command's own switches.

Libraries answer a mistake with exceptions made for programmers; everything here answers with a UserError of one line.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from absl import flags
from ml_collections import ConfigDict, config_flags

from srlhfv_jax.cli import help, switches
from srlhfv_jax.cli.config_files import argument, load
from srlhfv_jax.config import constraints, unread
from srlhfv_jax.errors import UserError, reason
from srlhfv_jax.parsing import check_key, collected, flattened, parse

Settings = TypeVar("Settings")

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
    about = help.About(command, doc, kind, {"workdir": WORKDIR} | needed, example)
    config, changed = read_with_config(about, values, argv)
    switches.required(values, "workdir")
    settings = parse(kind, config)
    unread.check_changed(settings, changed)
    return settings, Path(values.workdir)


def read_with_config(
    about: help.About, values: flags.FlagValues, argv: list[str], configured_as: str = ""
) -> tuple[ConfigDict, list[str]]:
    """Parse `argv` into `values` (the command's own flags) and the config that --config and --config.x.y=v describe.

    Returns the config, and the keys "x.y" whose values are not those of the config file.

    Args:
        configured_as: the command whose config file is the default; "": this one.
    """
    name, rest = argument(configured_as or about.command, argv)
    config = load(name)
    section = next((word.partition("=")[2] for word in rest if word in ("--help", "-h") or word.startswith("--help=")), None)
    if section is not None and about.kind is not None:
        print(help.page(about, name, config, values, section))
        raise SystemExit(0)
    rest = constraints.collected(config, collected(config, rest))
    for word in rest:
        if word.lstrip("-").startswith(("config.", "noconfig.")):
            check_key(config, word.lstrip("-").partition("=")[0].partition(".")[2])
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=[about.command, *rest])
    except (TypeError, ValueError) as error:
        raise UserError(reason(error)) from error
    text = f"{about.text}\n\n--config={name}; every value in it can be set with --config.section.key=VALUE."
    switches.read(values, about.command, rest, text)
    before, after = flattened(load(name)), flattened(values.config)
    return values.config, [key for key in after if after[key] != before[key]]
