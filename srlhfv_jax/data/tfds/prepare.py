"""`srlhfv data prepare`: a TFDS folder (ArrayRecord, read row by row) of downloaded files, or of the embedded task."""

import difflib
from functools import partial
from pathlib import Path

from srlhfv_jax.config import choose
from srlhfv_jax.data import layouts, rows, sources
from srlhfv_jax.data.tfds import look_before_you_answer as task, records
from srlhfv_jax.data.tfds.beavertails import Beavertails
from srlhfv_jax.data.tfds.beavertails_v import BeavertailsV
from srlhfv_jax.data.tfds.beavertails_v_qa import BeavertailsVQa
from srlhfv_jax.data.tfds.pku_saferlhf import PkuSaferlhf
from srlhfv_jax.errors import UserError
from srlhfv_jax.files import read_json

BUILDERS = {
    "beavertails_v": BeavertailsV,
    "beavertails_v_qa": BeavertailsVQa,
    "pku_saferlhf": PkuSaferlhf,
    "beavertails": Beavertails,
}
TASK = "look_before_you_answer"
TASK_CONFIGS = ("naming", "sft", "prompts", "pairs")


def prepare(name: str, source: str, target: Path, *, seed: int, count: int, overwrite: bool) -> Path:
    """Write a data set below `target`; returns its folder, to be used as `data.path`.

    Args:
        name: one of BUILDERS, TASK/CONFIG, or "": the layout of the source.
        source: downloaded files, or their folder; not read for the embedded task.
        seed, count: of the embedded task, and its training rows.

    Raises:
        UserError: an unknown name, no source, or one with nothing to prepare.
    """
    dataset, _, config = name.partition("/")
    if dataset == TASK:
        return _task(config, target, seed=seed, count=count, overwrite=overwrite)
    return _files(name, source, target, overwrite=overwrite)


def written_rows(folder: Path) -> dict[str, int]:
    """The numbers of rows that were written for each split, and dropped for each reason."""
    info = read_json(folder / "dataset_info.json")
    drops = read_json(folder / "drops.json")
    splits = {f"split.{split['name']}": sum(int(count) for count in split["shardLengths"]) for split in info["splits"]}
    return splits | {f"drops.{reason}": count for reason, count in drops.items()}


def _task(config: str, target: Path, *, seed: int, count: int, overwrite: bool) -> Path:
    choose(config, f"--name={TASK}/...", *TASK_CONFIGS)
    try:
        splits = task.standard(config, seed=seed, count=count)
    except ModuleNotFoundError as error:
        raise UserError(f"{TASK} needs {error.name}, which is not installed: pip install 'srlhfv-jax[quickstart]'") from error
    return task.write(target, config, splits, overwrite=overwrite)


def _files(name: str, source: str, target: Path, *, overwrite: bool) -> Path:
    if not source or not Path(source).exists():
        raise UserError(f"--source={source} does not exist: give the files of the data set, downloaded before")
    first = next(iter(records.local_splits(Path(source)).values()))[0]
    columns = sources.open_rows(str(first), "", "").columns
    layout = name or layouts.detect(columns).name
    if not name and layout not in BUILDERS:
        raise UserError(f"{first} has the layout {layout}, which stages read as it is: there is nothing to prepare")
    if layout not in BUILDERS:
        (nearest,) = difflib.get_close_matches(layout, (*BUILDERS, TASK), n=1, cutoff=0.0)
        raise UserError(f"there is no data set {layout!r}; did you mean {nearest!r}?")
    builder = BUILDERS[layout]
    left_out = [column for column in columns if column not in builder.COLUMNS]
    if left_out:
        print(f"columns that are not written: {rows.listed(left_out)}")
    return records.build(partial(builder, source=Path(source)), target, overwrite=overwrite)
