"""Shared steps of the builders: columns -> TFDS features, local files -> splits, rows -> records.

Only rows that `data/layouts/` can read and whose picture decodes are written; the others are counted under their reason. Pictures
are written as the bytes they came in, all else as the text that the file has, labels too: they are read once, by `data/labels.py`,
so that a row means the same before and after.
"""

import contextlib
import io
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from srlhfv_jax.data import images, labels, layouts, rows
from srlhfv_jax.data.drops import Drop, Unusable
from srlhfv_jax.data.sources import open_rows
from srlhfv_jax.data.tables import kind_of, stem
from srlhfv_jax.errors import UserError, reason

Record = dict[str, Any]


def features(columns: Iterable[str]) -> tfds.features.FeaturesDict:
    """TFDS features of the columns: a picture in `image`, text in the others."""
    return tfds.features.FeaturesDict(
        {name: tfds.features.Image() if name == "image" else tfds.features.Text() for name in columns}
    )


def local_splits(folder: Path) -> dict[str, list[Path]]:
    """Split name -> files of a downloaded data set: train-00000-of-00002.parquet and train.jsonl belong to "train"."""
    folder = Path(folder)
    if folder.is_file():
        return {"train": [folder]}
    splits: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("*")):
        if kind_of(file) in (".parquet", ".jsonl") and file.is_file():
            splits.setdefault(stem(file).split("-")[0], []).append(file)
    if not splits:
        raise UserError(f"{folder} has no .parquet or .jsonl files: download the data set there first")
    return splits


def from_files(files: Iterable[Path], layout: str, columns: tuple[str, ...], drops: Counter) -> Iterator[tuple[int, Record]]:
    """Records of the usable rows; one file in memory at a time. `drops` counts the others."""
    key = 0
    for file in files:
        source = open_rows(str(file), "", "")
        found = layouts.detect(source.columns).name
        if found != layout:
            raise UserError(f"{file} has the layout {found}, this builder writes {layout}: choose --name={found}")
        read_image = partial(images.cell_bytes, where=source.images)
        for number in range(len(source.items)):
            record = usable(layout, source.items[number], columns, read_image)
            if isinstance(record, Drop):
                drops[record.reason] += 1
            else:
                yield key, record
                key += 1


def usable(layout: str, row: Mapping[str, Any], columns: tuple[str, ...], read_image: rows.ReadImage) -> Record | Drop:
    """The record of one raw row, or why it is not written."""
    example = layouts.read(layouts.named(layout), row, layouts.Reading(read_image))
    if isinstance(example, Drop):
        return example
    try:
        for image in example.images:
            images.decode(image)
    except Unusable as unusable:
        return Drop(unusable.reason, unusable.detail)
    if len(example.images) > ("image" in columns):
        raise UserError(
            f"a row has {len(example.images)} pictures where a {layout} folder keeps {int('image' in columns)}: give its file to the "
            "stages as it is"
        )
    record = {name: _text(row.get(name)) for name in columns}
    return record | {"image": io.BytesIO(example.images[0])} if example.images else record


def _text(value: Any) -> str:
    """A cell as text that `data/layouts/` reads as it reads the cell itself."""
    if labels.absent(value):
        return ""
    if isinstance(value, Mapping):
        return "" if labels.true_names(value) is None else json.dumps(value)
    return rows.writable(str(value)) if isinstance(value, (str, int, float, bool)) else ""


def build(make: Callable[..., tfds.core.GeneratorBasedBuilder], target: Path, *, overwrite: bool) -> Path:
    """Run a builder and return the folder it wrote below `target`, drops beside the records: complete or not there at all.

    Args:
        make: the builder; called with `data_dir`.
        overwrite: replace an earlier data set of the same name.
    """
    target = Path(target)
    try:
        return _build(make, target, overwrite)
    except OSError as error:
        raise UserError(f"{target} cannot be written ({reason(error)}): give another --target, or make room") from error


def _build(make: Callable[..., tfds.core.GeneratorBasedBuilder], target: Path, overwrite: bool) -> Path:
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".writing-") as written:
        builder = make(data_dir=written)
        new = Path(builder.data_dir)
        folder = target / new.relative_to(written)
        if folder.exists() and not overwrite:
            raise UserError(f"{folder} exists already: remove it, or give --overwrite")
        _run(builder)
        (new / "drops.json").write_text(json.dumps(dict(builder.drops.most_common()), indent=2) + "\n")
        if folder.exists():
            shutil.rmtree(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        new.rename(folder)
    return folder


def _run(builder: tfds.core.GeneratorBasedBuilder) -> None:
    tfds.disable_progress_bar()  # its bars and messages do not know where they are written to
    settings = tfds.download.DownloadConfig(try_download_gcs=False)
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_config=settings, file_format="array_record")
