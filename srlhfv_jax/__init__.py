"""Safe RLHF-V in JAX: vision-language models that become more helpful while their harm stays under a budget.

Rooms from the ground up; a file imports from lower lines, from its own room, and on its own line from names further left:

    compilation_cache dims errors quiet signals    compiled programs, letters of dimensions, errors of users, noise, SIGTERM and Ctrl-C
    batches files config parsing           arrays that travel, files that are whole or not there, settings
    losses data                            mathematics; rows to batches
    parallel                               meshes, shardings, several hosts
    models hf                              backbones and heads; Hugging Face checkpoints in and out
    checkpoint rollout training weights    saves, sampling, the one loop, weights changed without training
    runs                                   start, rows, checkpoints, export and finish of a run
    evaluation functions                   answers of policies, judges, published test sets; rewards and costs of one's own
    supervised preference ppo_lag guard    the trained things
    report plan quickstart                 the page, the memory, the whole pipeline
    cli                                    commands
    api                                    from Python: sv.sft, sv.scores, sv.preference, sv.guard, sv.ppo_lag, sv.load, sv.config
"""

import importlib
import sys
from types import ModuleType

from srlhfv_jax.api import settings as _settings, stages as _stages
from srlhfv_jax.api.model import Model, Verdicts, load
from srlhfv_jax.api.stages import Result, scores, sft
from srlhfv_jax.errors import UserError

__all__ = ["Model", "Result", "UserError", "Verdicts", "load", "scores", "sft"]

__version__ = "0.1.0"


class _Config(ModuleType):
    """The package config/, which is called as well: `sv.config(...)`."""

    __call__ = staticmethod(_settings.config)


class _Guard(ModuleType):
    """The room guard/, which is called as its stage: `sv.guard(...)`."""

    __call__ = staticmethod(_stages.guard)


class _Preference(ModuleType):
    """The room preference/, which is called as its stage: `sv.preference(...)`."""

    __call__ = staticmethod(_stages.preference)


class _PPOLag(ModuleType):
    """The room ppo_lag/, which is called as its stage: `sv.ppo_lag(...)`."""

    __call__ = staticmethod(_stages.ppo_lag)


_ROOMS = {"config": _Config, "preference": _Preference, "guard": _Guard, "ppo_lag": _PPOLag}


class _Package(ModuleType):
    """This package. Three functions are called as a package in it is, and importing that would put it in the function's place: so
    these packages can be called themselves."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in _ROOMS and isinstance(value, ModuleType):
            value.__class__ = _ROOMS[name]
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> ModuleType:
        if name in _ROOMS:
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


sys.modules[__name__].__class__ = _Package
