"""Rows that a command is given by flags (`cli.define.rows`): evaluate, generate, data inspect."""

from dataclasses import dataclass

from srlhfv_jax.config import DataConfig
from srlhfv_jax.data import loader


@dataclass(frozen=True, kw_only=True)
class RowSettings:
    """Settings that say which rows are read and how; those of `DataConfig` with the same names. Defaults are those of the flags."""

    split: str = ""
    image_dir: str = ""
    allow_dir: str = ""
    max_pixels: int = 0
    system_prompt: str = ""
    revision: str = ""
    columns: tuple[str, ...] = ()
    label_means: str = "desirable"
    chosen_means: str = "helpful"
    fetch: bool = False


def single_pass(
    path: str, how: RowSettings, *, prompt_length: int, response_length: int, batch_size: int = 1, workers: int = 1
) -> DataConfig:
    """Settings of the rows at `path`, which are read once and in order."""
    return loader.single_pass(
        path,
        split=how.split,
        image_dir=how.image_dir,
        allow_dir=how.allow_dir,
        max_pixels=how.max_pixels,
        system_prompt=how.system_prompt,
        revision=how.revision,
        columns=how.columns,
        label_means=how.label_means,
        chosen_means=how.chosen_means,
        fetch=how.fetch,
        prompt_length=prompt_length,
        response_length=response_length,
        batch_size=batch_size,
        workers=workers,
    )
