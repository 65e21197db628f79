"""Settings that a stage does not read in the mode that others choose: one table for each stage, here.

A setting that was given and would be ignored is a mistake that nobody would be told of. What the command line changed of its
config file is refused here where nothing reads it; a setting with an `off` value is refused with any other one, whoever set it.
"""

import functools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from srlhfv_jax.config import (
    EvaluateConfig,
    GuardConfig,
    LoraConfig,
    PPOLagConfig,
    QuickstartConfig,
    ScoresConfig,
    SFTConfig,
)
from srlhfv_jax.errors import UserError, shown


class Unread(NamedTuple):
    """A setting, or a section of them, that nothing reads."""

    path: str
    why: str
    off: Any = None  # its value where it is not used; None: any may stand in a config file


def check(settings: Any) -> None:
    """Refuse settings that are on where nothing reads them.

    Raises:
        UserError: names the first, why it is not read, and what to do.
    """
    for path, why, off in unread(settings):
        if off is not None and _value(settings, path) != off:
            raise UserError(f"config.{path} is {shown(_value(settings, path))} and would be ignored: {why}; leave it at {off!r}")


def check_changed(settings: Any, changed: Iterable[str]) -> None:
    """Refuse settings (dotted paths) that a user changed and nothing reads.

    Raises:
        UserError: names the first, and why it is not read.
    """
    for path in changed:
        for name, why, off in unread(settings):
            if f"{path}.".startswith(f"{name}.") and (off is None or _value(settings, path) != off):
                raise UserError(f"config.{path} would be ignored: {why}; leave it as the config file has it")


def unread(settings: Any) -> Iterator[Unread]:
    """What the stage of these settings does not read."""
    match settings:
        case SFTConfig():
            yield from _lora(settings.lora)
        case ScoresConfig():
            yield from _lora(settings.lora)
            yield Unread("model.logp_chunk", "no logits are made for scores", 0)
            if not settings.evaluation:
                yield Unread("evaluation_split", "there is no config.evaluation")
            if "cost" not in settings.heads:
                yield from (Unread(name, "it is of the cost head, and config.heads has none") for name in ("sign", "sign_weight"))
        case GuardConfig():
            yield from _guard(settings)
        case PPOLagConfig():
            yield from _ppo_lag(settings)
        case EvaluateConfig():
            yield from _evaluate(settings)
        case QuickstartConfig():
            yield from _quickstart(settings)


def _value(settings: Any, path: str) -> Any:
    return functools.reduce(lambda section, name: vars(section)[name], path.split("."), settings)


PAIRS = ("split", "batch_size", "coef", "sign", "sign_weight", "score_l2", "evaluation_split")


def _lora(lora: LoraConfig) -> Iterator[Unread]:
    if lora.rank:
        yield Unread("model.param_dtype", "under adapters the backbone has config.model.dtype")
    else:
        for name in ("alpha", "targets"):
            yield Unread(f"lora.{name}", "there are no adapters while config.lora.rank is 0")


def _guard(settings: GuardConfig) -> Iterator[Unread]:
    yield from _lora(settings.lora)
    yield Unread("model.logp_chunk", "no logits are made for a guard", 0)
    if not settings.calibration:
        for name in ("false_positive_rate", "thresholds", "calibration_split"):
            yield Unread(name, "thresholds are set on the rows of config.calibration, and there are none")
    if not settings.evaluation:
        yield Unread("evaluation_split", "there is no config.evaluation")
    if not settings.pairs.path:
        why = "no score heads are trained while config.pairs.path is empty"
        yield Unread("pairs.evaluation", why, "")
        yield from (Unread(f"pairs.{name}", why) for name in PAIRS)


def _ppo_lag(settings: PPOLagConfig) -> Iterator[Unread]:
    constraint = settings.constraint
    if settings.sharing == "adapters":
        yield Unread("model.param_dtype", "under adapters the backbone has config.model.dtype")
    if settings.sharing != "adapters" or not settings.lora.rank:
        why = "an adapter is made with config.sharing='adapters' and config.lora.rank above 0 alone"
        yield from (Unread(f"lora.{name}", why) for name in ("alpha", "targets"))
    if settings.sharing != "separate":
        for name in ("reward", "cost"):
            yield Unread(name, f"config.scorer scores with config.sharing={settings.sharing!r}", "")
    elif settings.reward and settings.cost:
        yield Unread("scorer", "config.reward and config.cost score", "")
    if settings.critic_warmup == 0:
        yield Unread("critic_warmup_rate", "config.critic_warmup is 0")
    if settings.ptx.coef == 0:
        yield Unread("ptx.path", "config.ptx.coef is 0", "")
        yield Unread("ptx.split", "config.ptx.coef is 0")
    if not settings.validation.path:
        why = "there is no config.validation.path"
        yield from (Unread(f"validation.{name}", why) for name in ("split", "every_steps", "judge", "budget"))
    elif settings.validation.judge == "models":
        yield Unread("validation.budget", "config.constraint says what the models judge feasible")
    why = f"config.constraint.controller is {constraint.controller!r}"
    names = ("kp", "kd", "smoothing") if constraint.controller != "pid" else ()
    names += ("learning_rate", "delay") if constraint.controller in ("none", "fixed") else ()
    names += ("init", "max") if constraint.controller == "none" else ()
    yield from (Unread(f"constraint.{name}", why) for name in names)


def _evaluate(settings: EvaluateConfig) -> Iterator[Unread]:
    for name in ("path", "image_dir"):
        yield Unread(f"data.{name}", "cases are read from config.root", "")
    yield Unread("data.split", "cases are read from config.root")
    for name, judge in (("scorer", "models"), ("recorded", "recorded")):
        if settings.judge != judge:
            yield Unread(name, f"config.judge is {settings.judge!r}", "")
    if settings.judge != "endpoint":
        yield Unread("endpoint", f"config.judge is {settings.judge!r}")


def _quickstart(settings: QuickstartConfig) -> Iterator[Unread]:
    stages = {name: vars(settings)[name] for name in ("naming", "sft", "scores", "ppo", "ppo_lag", "guard")}
    filled = ("seed", "init", "init_random", "policy", "reference", "scorer", "data.path", "calibration", "evaluation")
    filled += ("validation.path", "validation.budget")
    for stage, own in stages.items():
        for name in filled:
            if name.split(".")[0] in vars(own) and (stage, name) != ("scores", "evaluation"):
                yield Unread(f"{stage}.{name}", "the pipeline sets it for each of its stages (the seed: --seed)")
        given = ("calibration", "evaluation", "validation", "reward", "cost")  # are there once the pipeline has set its paths
        yield from (
            one._replace(path=f"{stage}.{one.path}", off=None)
            for one in unread(own)
            if not one.path.startswith(given) and one.path not in ("false_positive_rate", "thresholds")
        )
    if settings.rounds == 1:
        yield Unread("refit_steps", "there is one round, config.rounds is 1")
