"""Rows that a run reads: prepared and checked before step 0, then shuffled batches of them, or all of them once."""

import dataclasses
import functools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from srlhfv_jax import files
from srlhfv_jax.config import DataConfig
from srlhfv_jax.data import answers, blind, chat, loader, pictures, sources, tokens
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.preferences import Choice
from srlhfv_jax.data.rows import Example
from srlhfv_jax.data.targets import Rule
from srlhfv_jax.errors import UserError
from srlhfv_jax.hf.load import Pretrained
from srlhfv_jax.parallel import hosts


def prepare(
    kind: str,
    data: DataConfig,
    model: Pretrained,
    *,
    sign: str = "label",
    choice: Choice = loader.HELPFUL,
    targets: Rule | None = None,
    recorded: str = "",
) -> loader.Prepared:
    """Read and check every row before step 0; says what was dropped and why.

    Args:
        sign, choice, targets: as in `loader.fit`.
        recorded: of kind "preference": file of answers without the picture, which lose too; "": none.

    Raises:
        UserError: no row is left, or the processor makes another number of placeholders than the model has features.
    """
    examples = sources.load_examples(data)
    rows: Sequence[Example] = examples
    if kind == "supervised" and data.train_on == "all":
        rows = answers.AnsweredTurns(examples, model.config.vision is not None)
    if recorded:
        rows = blind.WithBlind(examples, blind.read(files.local(recorded, "config.blind")), choice)
        hosts.say(f"{recorded}: {len(rows) - len(examples)} of {len(examples)} pairs have an answer without the picture")
    prepared = loader.fit(kind, rows, model.processor, data, sign=sign, choice=choice, targets=targets)
    say_merged(prepared)
    if prepared.room is not None:
        check_pictures(model, prepared.codec.reader)
    check_prompt_suffix(model, prepared)
    drops = examples.drops + prepared.drops
    of = (
        f"{len(rows)} {'pairs' if recorded else 'answers'} in {examples.source_rows}"
        if rows is not examples
        else f"{examples.source_rows}"
    )
    reasons = sources.describe_drops(drops) + sources.describe_sources(examples)
    hosts.say(f"{data.path}: {len({row.row for row in prepared.rows})} of {of} rows used as {kind}; {reasons}")
    return prepared


def elsewhere(data: DataConfig, path: str, split: str) -> DataConfig:
    """The settings of `data` for rows of another place, all of them as they are there."""
    return dataclasses.replace(data, path=path, split=split, mix="")


def fit_loosely(
    kind: str,
    examples: Sequence[Example],
    data: DataConfig,
    model: Pretrained,
    *,
    literal: bool = False,
    choice: Choice = loader.HELPFUL,
) -> loader.Prepared:
    """Rows that are at hand already, in a frame that is as long as the longest of them; lengths in `data` that are not 0 are limits.

    Args:
        literal, choice: as in `loader.fit`.

    Raises:
        UserError: as `prepare`.
    """
    lengths = dict(prompt_length=data.prompt_length or loader.UNLIMITED, response_length=data.response_length or loader.UNLIMITED)
    limits = lengths | {"batch_size": 1}  # these lengths are no batch's
    prepared = loader.fit(kind, examples, model.processor, dataclasses.replace(data, **limits), literal=literal, choice=choice)
    say_merged(prepared)
    if prepared.room is not None:
        check_pictures(model, prepared.codec.reader)
    check_prompt_suffix(model, prepared)
    prompt = max(len(row.prompt) for row in prepared.rows)
    response = max((len(ids) for row in prepared.rows for ids in row.responses), default=data.response_length)
    return prepared._replace(frame=prepared.frame._replace(prompt_length=prompt, response_length=response))


def batches(prepared: loader.Prepared, data: DataConfig, seed: int, mesh: Mesh) -> loader.Batches:
    """Endless shuffled batches: this process's rows of each."""
    own = hosts.own_rows(data.batch_size, mesh)
    return loader.batches(prepared, prepared.kind, None, data, seed=seed, rows_here=own)


def in_order(prepared: loader.Prepared, data: DataConfig, mesh: Mesh) -> Iterator[tuple[Any, np.ndarray]]:
    """Every row once, in order: (a batch on the devices of all processes, which of its rows are real)."""
    own = hosts.own_rows(data.batch_size, mesh)
    for batch, real_B in loader.all_batches(prepared, prepared.kind, None, data, batch_size=data.batch_size, rows_here=own):
        yield hosts.global_batch(batch, mesh), real_B


def sizes(
    examples: Sequence[Example],
    model: Pretrained,
    max_pixels: int,
    *,
    system_prompt: str = "",
    prompt_length: int = 0,
    response_length: int = 0,
) -> list[int | Unusable]:
    """For each example, whose pictures decode, the tokens of its prompt, or the reason why the model cannot read it.

    Args:
        system_prompt: as in DataConfig, like `max_pixels`.
        prompt_length, response_length: longest prompt and answer in tokens; 0: any.
    """
    codec, lengths = chat.codec(model.processor, max_pixels, system_prompt), []
    limits = dict(prompt_length=prompt_length or loader.UNLIMITED, response_length=response_length or loader.UNLIMITED)
    for row, example in enumerate(examples):
        try:
            lengths.append(len(tokens.encode(codec, example, row, literal=True, **limits).prompt))
        except Unusable as unusable:
            lengths.append(unusable)
    return lengths


def unreadable(sizes: Sequence[int | Unusable]) -> list[Unusable | None]:
    """The reasons among `sizes`; None of an example that the model can read."""
    return [size if isinstance(size, Unusable) else None for size in sizes]


def say_merged(prepared: loader.Prepared) -> None:
    """Say once, on stderr, that a template has no place for the system turns of these rows."""
    if loader.merges_system(prepared):
        _warn(chat.MERGED)


@functools.cache  # once
def _warn(line: str) -> None:
    if hosts.process_index() == 0:
        print(line, file=sys.stderr, flush=True)


def check_prompt_suffix(model: Pretrained, *prepared: loader.Prepared) -> None:
    """Prompts must end where activated adapters begin."""
    suffix = model.config.activation
    for row in (row for one in prepared for row in one.rows) if suffix else ():
        if tuple(row.prompt[-len(suffix) :]) != suffix or len(row.prompt) == len(suffix):
            raise UserError(
                f"row {row.row}: its prompt ends with the tokens {row.prompt[-len(suffix) :].tolist()}, and the adapters of {model.path} "
                f"are activated by {list(suffix)}: use the chat template that they were trained with"
            )


def check_pictures(model: Pretrained, reader: pictures.Reader) -> None:
    """The processor must cut pictures as the model was made to see them."""
    config, vision = model.config, model.config.vision
    for what, value, expected in (
        ("the family", reader.family, config.family),
        ("the patch size", reader.patch, vision.patch),
        ("the number of features (= placeholders) of a tile", reader.features, vision.features),
        ("the patches along a feature", reader.merge, vision.merge),
        ("the values of a patch", reader.values, vision.patch_values),
        ("the tile sizes", sorted(reader.pinpoints), sorted(set(reader.pinpoints) & set(config.pinpoints))),
    ):
        if value != expected:
            raise UserError(
                f"{model.path}: {what} is {value} in its processor files and {expected} in config.json: correct one of them"
            )


def check_held_out(name: str, held: loader.Prepared, trained: loader.Prepared) -> None:
    """Say how many of the rows that a setting names are trained on too: their numbers say nothing of new rows."""
    known = {loader.content(row) for row in trained.rows}
    shared = sum(loader.content(row) in known for row in held.rows)
    if shared:
        hosts.say(f"warning: {name}: {shared} of its {len(held.rows)} rows are trained on too")
