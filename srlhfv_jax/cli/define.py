"""Defining a command's own flags, one a line, and the settings that they make. Flags of several commands are defined here once."""

import dataclasses
from typing import NamedTuple, TypeVar

from absl import flags as absl_flags

Settings = TypeVar("Settings")

POLICY = "a workdir of a stage, an export, or a Hugging Face folder or id"
SEEDS = 2**31 - 1  # the largest seed, as in config.Seed


class Define(NamedTuple):
    """Defines flags in `values`: name, default, help."""

    values: absl_flags.FlagValues

    def text(self, name: str, default: str | None, about: str) -> None:
        absl_flags.DEFINE_string(name, default, about, flag_values=self.values)

    def texts(self, name: str, default: list[str], about: str) -> None:
        absl_flags.DEFINE_list(name, default, about, flag_values=self.values)

    def whole(self, name: str, default: int | None, about: str, least: int = 0, most: int | None = None) -> None:
        absl_flags.DEFINE_integer(name, default, about, least, most, flag_values=self.values)

    def real(self, name: str, default: float | None, about: str, least: float | None = None) -> None:
        absl_flags.DEFINE_float(name, default, about, least, flag_values=self.values)

    def switch(self, name: str, default: bool, about: str) -> None:
        absl_flags.DEFINE_bool(name, default, about, flag_values=self.values)

    def choice(self, name: str, default: str | None, allowed: list[str], about: str) -> None:
        absl_flags.DEFINE_enum(name, default, allowed, about, flag_values=self.values)


def define() -> Define:
    """Flags of a command that has none yet."""
    return Define(absl_flags.FlagValues())


def rows(command: Define) -> None:
    """Flags that say which rows are read and how, beside the path itself: those of `data.given.RowSettings`."""
    command.text("split", "", 'split of a TFDS data set, or a slice such as "[:500]"')
    command.text("image_dir", "", "where images named by relative paths lie; empty: beside the file")
    command.text("allow_dir", "", "a second folder that links of images may lead to; empty: none")
    command.whole("max_pixels", 0, "most pixels of a picture; 0: the checkpoint's own limit")

    command.text("revision", "", "of a data set of the hub: a branch, a tag or a commit; empty: its newest one")
    command.texts(
        "columns", [], "OURS=THEIRS,...: columns under other names, such as question=text; ignore=COLUMN leaves one out"
    )
    command.choice("label_means", "desirable", ["desirable", "unsafe", "safe"], "a `label` of an answer that is true")
    command.choice("chosen_means", "helpful", ["helpful", "safer", "both"], "a `chosen` answer beside a rejected one")
    command.switch("fetch", False, "download pictures behind http addresses, into the cache")
    system_prompt(command)


def system_prompt(command: Define) -> None:
    command.text("system_prompt", "", "system turn of conversations that have none of their own; empty: none")


def sampling(command: Define) -> None:
    """Flags that say how answers are drawn."""
    command.real("temperature", 1.0, "of the answers; 0 = greedy", 0.0)
    command.whole("response_length", 256, "longest answer in tokens (R)", 1)
    command.whole("seed", 0, "of the sampling", most=SEEDS)
    dtype(command)


def dtype(command: Define) -> None:
    command.choice("dtype", "float32", ["float32", "bfloat16"], "of weights and activations")


def settings(kind: type[Settings], values: absl_flags.FlagValues) -> Settings:
    """Settings of a command: each field from the flag of its name."""
    given = {field.name: values[field.name].value for field in dataclasses.fields(kind)}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})
