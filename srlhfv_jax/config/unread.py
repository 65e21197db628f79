"""Settings that a stage does not read in the mode that others choose: each stage's class says which, in its `unread`.

A setting that was given and would be ignored is a mistake that nobody would be told of. What the command line changed of its
config file is refused here where nothing reads it; a setting with an `off` value is refused with any other one, whoever set it.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from srlhfv_jax.config.base import LoraConfig, value_at
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
    for path, why, off in settings.unread():
        if off is not None and value_at(settings, path) != off:
            raise UserError(
                f"config.{path} is {shown(value_at(settings, path))} and would be ignored: {why}; leave it at {off!r}"
            )


def check_changed(settings: Any, changed: Iterable[str]) -> None:
    """Refuse settings (dotted paths) that a user changed and nothing reads.

    Raises:
        UserError: names the first, and why it is not read.
    """
    for path in changed:
        for name, why, off in settings.unread():
            if f"{path}.".startswith(f"{name}.") and (off is None or value_at(settings, path) != off):
                raise UserError(f"config.{path} would be ignored: {why}; leave it as the config file has it")


def of_samples() -> Iterator[Unread]:
    """Settings of answers in stages whose models give none."""
    yield Unread("log.samples_every", "answers to the same prompts are drawn by sft and ppo_lag alone", 0)
    yield Unread("log.samples", "answers to the same prompts are drawn by sft and ppo_lag alone")
    yield Unread("log.guard", "it judges answers to the same prompts, which are drawn by sft and ppo_lag alone", "")


def of_adapters(lora: LoraConfig) -> Iterator[Unread]:
    """Settings that a supervised stage does not read with adapters, or without them."""
    if lora.rank:
        yield Unread("model.param_dtype", "under adapters the backbone has config.model.dtype")
        yield from of_units("optimizer", "an adapter moves every unit of its kernel")
    else:
        for name in ("alpha", "targets"):
            yield Unread(f"lora.{name}", "there are no adapters while config.lora.rank is 0")


def of_units(optimizer: str, why: str) -> Iterator[Unread]:
    """Settings of units where none can stand still."""
    yield from (Unread(f"{optimizer}.{name}", why, "") for name in ("frozen_units", "only_units"))
