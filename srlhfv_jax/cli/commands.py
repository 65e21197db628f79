"""Every command: what `srlhfv --help` says of it, and the function that runs it, imported when it is called."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

Main = Callable[[list[str]], None]  # takes the arguments after the command's name


class Command(NamedTuple):
    """One word after `srlhfv`."""

    summary: str
    load: Callable[[], Main]


def _quickstart() -> Main:
    from srlhfv_jax.cli import quickstart

    return quickstart.main


def _data() -> Main:
    from srlhfv_jax.cli import data

    return data.main


def _supervised(name: str) -> Main:
    from srlhfv_jax.cli import stage
    from srlhfv_jax.supervised import stages

    return partial(stage.main, {"sft": stages.SFT, "scores": stages.SCORES, "reward": stages.REWARD, "cost": stages.COST}[name])


def _guard() -> Main:
    from srlhfv_jax.cli import stage
    from srlhfv_jax.guard.stage import GUARD

    return partial(stage.main, GUARD)


def _ppo_lag() -> Main:
    from srlhfv_jax.cli import stage
    from srlhfv_jax.ppo_lag.stage import PPO_LAG

    return partial(stage.main, PPO_LAG)


def _plan() -> Main:
    from srlhfv_jax.cli import plan

    return plan.main


def _generate() -> Main:
    from srlhfv_jax.cli import generate

    return generate.main


def _moderate() -> Main:
    from srlhfv_jax.cli import moderate

    return moderate.main


def _serve() -> Main:
    from srlhfv_jax.cli import serve

    return serve.main


def _evaluate() -> Main:
    from srlhfv_jax.cli import evaluate

    return evaluate.main


def _benchmark() -> Main:
    from srlhfv_jax.cli import benchmark

    return benchmark.main


def _report() -> Main:
    from srlhfv_jax.cli import report

    return report.main


def _export() -> Main:
    from srlhfv_jax.cli import export

    return export.main


def _env() -> Main:
    from srlhfv_jax.cli import env

    return env.main


COMMANDS = {
    "quickstart": Command("the whole pipeline on the embedded task, on a CPU, with a report at the end", _quickstart),
    "data": Command("prepare or inspect a data set: layout, rows, drops by reason, lengths", _data),
    "sft": Command("supervised fine-tuning", partial(_supervised, "sft")),
    "scores": Command("reward and cost heads on one backbone from dual preferences", partial(_supervised, "scores")),
    "reward": Command("a reward model of its own", partial(_supervised, "reward")),
    "cost": Command("a cost model of its own", partial(_supervised, "cost")),
    "guard": Command("a guard: severity and categories of harm, of questions and of answers", _guard),
    "ppo_lag": Command("PPO-Lagrangian: more helpful, with the cost under a budget", _ppo_lag),
    "plan": Command("memory of a run on a TPU slice, before it is paid for", _plan),
    "generate": Command(
        "a policy's answer to one prompt, or to every row of a data set; under a guard if one is given", _generate
    ),
    "moderate": Command("what a guard says of a question, or of an answer to it", _moderate),
    "serve": Command("a guard, and a policy under it, as an HTTP service", _serve),
    "evaluate": Command("compare policies by oracle or by reward and cost models", _evaluate),
    "benchmark": Command("policies on local copies of published safety benchmarks", _benchmark),
    "report": Command("one self-contained report.html of a workdir", _report),
    "export": Command("rewrite a checkpoint as a Hugging Face folder (dtype, shard size)", _export),
    "env": Command("versions, devices and git, for a bug report", _env),
}
