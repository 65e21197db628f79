"""What the builders share: column kinds -> TFDS features, local files -> splits, rows -> records.

Only rows that `data/rows.py` can read and whose picture decodes are written; the others are counted under their reason. Pictures
are written as the bytes they came in.
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

import numpy as np
import tensorflow_datasets as tfds

from srlhfv_jax.data import images, rows
from srlhfv_jax.data.drops import Drop, Unusable
from srlhfv_jax.data.sources import open_rows
from srlhfv_jax.errors import UserError

# A column is "text", "integer", "flag" (true or false), "image", or a tuple of names: a table of flags.
Columns = Mapping[str, str | tuple[str, ...]]
Record = dict[str, Any]


def features(columns: Columns) -> tfds.features.FeaturesDict:
    """TFDS features of the columns."""
    return tfds.features.FeaturesDict({name: _feature(kind) for name, kind in columns.items()})


def _feature(kind: str | tuple[str, ...]) -> Any:
    if isinstance(kind, tuple):
        return {name: np.bool_ for name in kind}
    match kind:
        case "text":
            return tfds.features.Text()
        case "integer":
            return np.int64
        case "flag":
            return np.bool_
        case "image":
            return tfds.features.Image()
    raise ValueError(f"unknown kind of column {kind!r}")


def local_splits(folder: Path) -> dict[str, list[Path]]:
    """Split name -> files of a downloaded data set: train-00000-of-00002.parquet and train.jsonl belong to "train"."""
    folder = Path(folder)
    if folder.is_file():
        return {"train": [folder]}
    splits: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix in (".parquet", ".jsonl") and file.is_file():
            splits.setdefault(file.stem.split("-")[0], []).append(file)
    if not splits:
        raise UserError(f"{folder} has no .parquet or .jsonl files: download the data set there first")
    return splits


def from_files(files: Iterable[Path], layout: str, columns: Columns, drops: Counter) -> Iterator[tuple[int, Record]]:
    """Records of the usable rows; one file in memory at a time. `drops` counts the others."""
    key = 0
    for file in files:
        source = open_rows(str(file), "", "")
        found = rows.detect(source.columns)
        if found != layout:
            raise UserError(f"{file} has the layout {found}, this builder writes {layout}: choose --name={found}")
        read_image = partial(images.cell_bytes, folder=source.image_dir)
        for number in range(len(source.items)):
            record = usable(layout, source.items[number], columns, read_image)
            if isinstance(record, Drop):
                drops[record.reason] += 1
            else:
                yield key, record
                key += 1


def usable(layout: str, row: Mapping[str, Any], columns: Columns, read_image: rows.ReadImage) -> Record | Drop:
    """The record of one raw row, or why it is not written."""
    example = rows.read(layout, row, read_image)
    if isinstance(example, Drop):
        return example
    try:
        for image in example.images:
            images.decode(image)
        return {name: _value(name, kind, row.get(name), example) for name, kind in columns.items()}
    except Unusable as unusable:
        return Drop(unusable.reason, unusable.detail)


def _value(name: str, kind: str | tuple[str, ...], value: Any, example: rows.Example) -> Any:
    if kind == "image":
        if not example.images:
            raise Unusable("missing_image", "the image cell is empty")
        return io.BytesIO(example.images[0])
    if kind == "text":
        return "" if value is None else str(value)
    if isinstance(kind, tuple):
        return {flag: bool((value or {}).get(flag, False)) for flag in kind}
    if value is None:
        raise Unusable("missing_label", f"{name} is empty")
    return bool(value) if kind == "flag" else int(value)


def build(make: Callable[..., tfds.core.GeneratorBasedBuilder], target: Path, *, overwrite: bool) -> Path:
    """Run a builder and return the folder it wrote below `target`, drops beside the records: complete or not there at all.

    Args:
        make: the builder; called with `data_dir`.
        overwrite: replace an earlier data set of the same name.
    """
    target = Path(target)
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
