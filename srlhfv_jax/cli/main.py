"""`srlhfv <command> ...`: finds the command, turns every mistake of the user into one line and exit code 2, any other error into one
with exit code 1. Commands import their rooms when they run, so that `srlhfv --help` is immediate.
"""

import importlib.metadata
import os
import signal
import sys
from collections.abc import Sequence

from absl import logging

from srlhfv_jax import compilation_cache, quiet, signals
from srlhfv_jax.cli.commands import COMMANDS
from srlhfv_jax.errors import UserError, disk, nearest, public, reason, saved_traceback

HELP = f"""usage: srlhfv <command> [flags]        srlhfv <command> --help        srlhfv --version

{chr(10).join(f"  {name:<12}{command.summary}" for name, command in COMMANDS.items())}

Stages take --config=FILE.py[:ARG] --workdir=FOLDER [--config.section.key=VALUE ...] and go on where WORKDIR has a checkpoint.
Stages, quickstart, plan, evaluate and benchmark write WORKDIR/result.json.
--verbose with any of them: every parameter of a model, and all that libraries say.
Exit code: 0 success, 2 a mistake in what was given, 1 a fault of srlhfv, 130 after Ctrl-C, 143 after SIGTERM (saved)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    argv = quiet.take_flag(list(sys.argv[1:] if argv is None else argv))
    quiet.silence()
    try:
        code = _exit_code(argv)
        sys.stdout.flush()  # here, where a reader that is gone is no error
    except BrokenPipeError:  # who read our output has seen enough, as `head` does; what else there is to say goes nowhere
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 128 + signal.SIGPIPE
    return code


def _exit_code(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"srlhfv {importlib.metadata.version('srlhfv-jax')}")
        return 0
    if not quiet.verbose():
        logging.set_verbosity(logging.FATAL)  # Orbax warns of what users cannot change, and logs the errors that it raises
    sys.unraisablehook = quiet.unraisable
    restore = signals.install()
    compilation_cache.prepare()
    try:
        _run(argv[0], argv[1:])
    except UserError as error:
        return _failed(f"error: {error}", 2)
    except KeyboardInterrupt:
        return _failed(f"interrupted; {signals.GO_ON}", 128 + signal.SIGINT)
    except BrokenPipeError:
        raise
    except Exception as error:
        if (problem := disk(error)) is not None:
            return _failed(f"error: {problem}; then {signals.GO_ON}", 2)
        return _failed(f"error: {type(error).__name__}: {reason(error)}{saved_traceback(error)}", 1)
    finally:
        restore()
    return 0


def _failed(text: str, code: int) -> int:
    print(f"srlhfv: {public(text)}", file=sys.stderr)
    return code


def _run(name: str, argv: list[str]) -> None:
    if name not in COMMANDS:
        raise UserError(f"there is no command {name!r}; {nearest(name, COMMANDS)} `srlhfv --help` lists them")
    COMMANDS[name].main(argv)
