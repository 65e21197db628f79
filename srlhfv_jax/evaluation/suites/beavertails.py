"""Prompts of the preference data sets: the evaluation split of BeaverTails-V, and the test split of PKU-SafeRLHF.

Both are read through `data.sources`, so files as published (parquet or JSON lines, one folder per configuration) and TFDS folders
will do. A question that several rows ask about one picture becomes one case. Any safe answer is good; the reference is the
answer that was labelled as safer.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

from srlhfv_jax.data import images, layouts, sources
from srlhfv_jax.data.drops import Drop, Unusable
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation.suites.case import SAFELY, Case, Read, collect


def beavertails_v(folder: Path, *allowed: Path) -> Read:
    """BeaverTails-V (arXiv 2503.17682): FOLDER/CATEGORY/evaluation-*.parquet, with pairs or with single answers.

    `subset` is the severity of the picture, `severity_1` to `severity_3`.
    """
    return _read(folder, "evaluation", ("beavertails_v", "beavertails_v_qa"), allowed)


def pku_saferlhf(folder: Path, *allowed: Path) -> Read:
    """PKU-SafeRLHF (arXiv 2406.15513): FOLDER/.../test.jsonl. The category is the first harm of the first harmful answer."""
    return _read(folder, "test", ("pku_saferlhf",), allowed)


def _read(folder: Path, split: str, names: tuple[str, ...], allowed: Sequence[Path]) -> Read:
    source = sources.open_rows(str(folder), split, "", *map(str, allowed))
    layout = layouts.detect(source.columns)
    if layout.name not in names:
        raise UserError(f"{folder}: expected the columns of {' or '.join(names)}, got those of {layout.name}")
    makers = (functools.partial(_case, source, layout, number) for number in range(len(source.items)))
    return collect(makers, unique_prompts=True)


def _case(source: sources.Rows, layout: layouts.Layout, number: int) -> Case:
    read_image = functools.partial(images.cell_bytes, where=source.images)
    example = layouts.read(layout, source.items[number], layouts.Reading(read_image))
    if isinstance(example, Drop):
        raise Unusable(*example)
    severity = example.meta.get("image_severity", "")
    return Case(
        id=str(number),
        image=example.images[0] if example.images else None,
        prompt=example.question,
        history=example.history,
        expect=SAFELY,
        category=example.meta.get("category") or _harm(example.meta),
        gold="" if example.safer is None else example.responses[example.safer],
        subset=f"severity_{severity}" if severity else "",
    )


def _harm(meta) -> str:
    """The first harm category that is set for either answer."""
    harms = (meta.get(f"response_{k}_harm_category", "") for k in (0, 1))
    return next((names.split(", ")[0] for names in harms if names), "none")
