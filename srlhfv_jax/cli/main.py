"""`srlhfv <command> ...`: finds the command, turns mistakes of the user into one line and exit code 2.

Commands import what they need when they run, so that `srlhfv --help` is immediate.
"""

import os
import signal
import sys
from collections.abc import Sequence

from absl import logging

from srlhfv_jax.errors import UserError

COMMANDS = {
    "quickstart": "the whole pipeline on the embedded task, on a CPU, with a report at the end",
    "data": "prepare or inspect a data set: layout, rows, drops by reason, lengths",
    "sft": "supervised fine-tuning",
    "scores": "reward and cost heads on one backbone from dual preferences",
    "reward": "a reward model of its own",
    "cost": "a cost model of its own",
    "guard": "a guard: severity and categories of harm, of questions and of answers",
    "ppo_lag": "PPO-Lagrangian: more helpful, with the cost under a budget",
    "plan": "memory of a run on a TPU slice, before it is paid for",
    "generate": "a policy's answer to one prompt, or to every row of a data set; under a guard if one is given",
    "moderate": "what a guard says of a question, or of an answer to it",
    "serve": "a guard, and a policy under it, as an HTTP service",
    "evaluate": "compare policies by oracle or by reward and cost models",
    "report": "one self-contained report.html of a workdir",
    "export": "rewrite a checkpoint as a Hugging Face folder (dtype, shard size)",
}

HELP = f"""usage: srlhfv <command> [flags]        srlhfv <command> --help

{chr(10).join(f"  {name:<12}{text}" for name, text in COMMANDS.items())}

Stages take --config=FILE.py[:ARG] --workdir=FOLDER [--config.section.key=VALUE ...] and go on where WORKDIR has a checkpoint.
Stages, quickstart, plan and evaluate write WORKDIR/result.json.
Exit code: 0 success, 2 a mistake in what was given, 143 saved after SIGTERM."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0 if argv else 2
    logging.set_verbosity(logging.ERROR)  # Orbax and JAX warn about things their users cannot change
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        _run(argv[0], argv[1:])
    except UserError as error:
        print(f"srlhfv: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("srlhfv: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _run(name: str, argv: list[str]) -> None:
    match name:
        case "quickstart":
            from srlhfv_jax.cli import quickstart as command
        case "data":
            from srlhfv_jax.cli import data as command
        case "sft":
            from srlhfv_jax.cli import sft as command
        case "scores":
            from srlhfv_jax.cli import scores as command
        case "reward":
            from srlhfv_jax.cli import reward as command
        case "cost":
            from srlhfv_jax.cli import cost as command
        case "guard":
            from srlhfv_jax.cli import guard as command
        case "ppo_lag":
            from srlhfv_jax.cli import ppo_lag as command
        case "plan":
            from srlhfv_jax.cli import plan as command
        case "generate":
            from srlhfv_jax.cli import generate as command
        case "moderate":
            from srlhfv_jax.cli import moderate as command
        case "serve":
            from srlhfv_jax.cli import serve as command
        case "evaluate":
            from srlhfv_jax.cli import evaluate as command
        case "report":
            from srlhfv_jax.cli import report as command
        case "export":
            from srlhfv_jax.cli import export as command
        case _:
            from srlhfv_jax.cli.flags import nearest

            raise UserError(f"there is no command {name!r}; {nearest(name, COMMANDS)} `srlhfv --help` lists them")
    command.main(argv)


def _terminated(*_) -> None:
    """Outside the training loop there is nothing to save: the last checkpoint stands, finished work is skipped next time.

    Not an exception: one raised while a callback of XLA runs is printed and swallowed.
    """
    sys.stderr.flush()
    os._exit(128 + signal.SIGTERM)
