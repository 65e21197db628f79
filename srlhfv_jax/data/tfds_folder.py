"""Rows of a TFDS folder (ArrayRecord), read one by one from the disk.

Its files come from anywhere: `features.json` names classes, and TFDS imports whatever it names, so that names of others than its own
are refused first; and whatever TFDS says of a folder that is damaged becomes one line.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from srlhfv_jax.errors import UserError, reason, shown
from srlhfv_jax.files import read_json

INFO, FEATURES = "dataset_info.json", "features.json"
TRUSTED = "tensorflow_datasets.core.features."
AGAIN = "write the folder anew with srlhfv data prepare, or copy it again"


def tfds_folder(root: Path) -> Path | None:
    """The folder of a TFDS data set: `root`, or the one version (or configuration and version) below it.

    Other tools have a dataset_info.json as well; TFDS writes features.json beside it, and records.
    """
    folders = [info.parent for depth in ("", "*/", "*/*/", "*/*/*/") for info in sorted(root.glob(f"{depth}{INFO}"))]
    folders = [
        path for path in folders if not any(part.startswith(".") for part in path.relative_to(root).parts)
    ]  # being written
    folders = [path for path in folders if (path / FEATURES).exists() or any(path.glob("*record-*-of-*"))]
    if len(folders) > 1:
        raise UserError(
            f"{root} holds {len(folders)} TFDS data sets: give one of {', '.join(str(path.relative_to(root)) for path in folders)}"
        )
    return folders[0] if folders else None


def open_tfds(folder: Path, name: str) -> tuple[tuple[str, ...], Sequence[dict[str, Any]]]:
    """Columns and rows of a split; "" is the only one.

    Raises:
        UserError: there is no such split, or the folder is damaged.
    """
    _refuse_strangers(folder / FEATURES, read_json(folder / FEATURES, advice=AGAIN))
    read_json(folder / INFO, advice=AGAIN)
    import tensorflow_datasets as tfds  # slow to import, needed by this kind of source alone; does not import TensorFlow

    try:
        builder = tfds.builder_from_directory(folder)
        splits, features = builder.info.splits, builder.info.features
        name = name or (next(iter(splits)) if len(splits) == 1 else "")
        missing = [path for path in (splits[name].filepaths if name in splits else ()) if not Path(path).exists()]
    except Exception as error:  # of protobuf, JSON and TFDS, each with its own kinds
        raise UserError(f"{folder} cannot be read as a TFDS folder ({reason(error)}): {AGAIN}") from error
    if name not in splits:
        raise UserError(f"{folder} has no split {shown(name)}: choose data.split from {', '.join(sorted(splits))}")
    if missing:
        raise UserError(f"{folder} lacks {Path(missing[0]).name}, a part of its split {name}: {AGAIN}")
    if (written := builder.info.file_format.value) != "array_record":
        raise UserError(f"{folder} is written as {written}, which needs TensorFlow: write it with file_format='array_record'")
    for path, expected in zip(map(Path, splits[name].filepaths), splits[name].shard_lengths, strict=True):
        held = _records_in(path)
        if held != expected:
            raise UserError(f"{path} holds {held} records, and {INFO} says {expected}: {AGAIN}")
    pictures = tuple(key for key, feature in features.items() if isinstance(feature, tfds.features.Image))
    try:
        source = builder.as_data_source(name, decoders={key: tfds.decode.SkipDecoding() for key in pictures})
    except Exception as error:  # as above
        raise UserError(f"{folder} cannot be read as a TFDS folder ({reason(error)}): {AGAIN}") from error
    return tuple(features), _Records(source, pictures, folder)


def _records_in(path: Path) -> int:
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(str(path))
        count = reader.num_records()
        reader.close()
    except Exception as error:  # of C++
        raise UserError(f"{path} cannot be read ({reason(error)}): {AGAIN}") from error
    return count


class _Records(Sequence):
    """Rows of a TFDS data source, with NumPy values turned into plain ones and pictures left encoded."""

    def __init__(self, source: Sequence, images: tuple[str, ...], folder: Path):
        self._source, self._images, self._folder = source, images, folder

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        try:
            record = self._source[index]
            return {name: value if name in self._images else _plain(value) for name, value in record.items()}
        except Exception as error:  # of the records' own library, protobuf and the features
            raise UserError(f"{self._folder}: record {index} cannot be read ({reason(error)}): {AGAIN}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, np.ndarray) and value.ndim:
        return [_plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.item())
    return value


def _refuse_strangers(path: Path, features: Any) -> None:
    """TFDS imports the module of every class that features.json names."""
    for named in _classes(features):
        if not isinstance(named, str) or not named.startswith(TRUSTED):
            raise UserError(f"{path} names the class {shown(named)}: only those of {TRUSTED[:-1]} are used")


def _classes(value: Any) -> Iterator[Any]:
    """Every class that is named anywhere; older versions of TFDS wrote {"type": CLASS, "content": ...}."""
    if isinstance(value, dict):
        yield from (value[key] for key in ("pythonClassName", "python_class_name") if key in value)
        if {"type", "content"} <= value.keys():
            yield value["type"]
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _classes(item)
