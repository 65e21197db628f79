"""A command's own switches: absl flags read from the command line, where each mistake is a UserError of one line."""

import math
import re

from absl import flags

from srlhfv_jax import files
from srlhfv_jax.errors import UserError, nearest, short, shown

OUTPUTS = ("workdir", "out", "output", "target")  # flags that name where to write
LONGEST = 200  # characters of a flag's name


def names(values: flags.FlagValues) -> list[str]:
    """The command's own flags, without those of its config."""
    return [name for name in values if "." not in name]


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
            f"srlhfv {command} has no flag --{short(error.flagname)}; {nearest(error.flagname, names(values))}"
        ) from error
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(_wrong_value(str(error), values)) from error
    for name in OUTPUTS:
        if name in values and values[name].value not in (None, values[name].default):
            values[name].value = str(files.local(values[name].value, f"--{name}"))
    for name in names(values):
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
