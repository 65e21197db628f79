"""The files of a folder that hold a split, and those that hold something else."""

from pathlib import Path

from srlhfv_jax.data.rows import listed
from srlhfv_jax.data.tables import kind_of, stem
from srlhfv_jax.errors import UserError, shown

DEFAULT_SPLIT = "train"  # of the config files: it also stands for the one set there is, where that has no name of a split
SPLITS = ("train", "test", "validation", "valid", "val", "dev", "evaluation", "eval")

# Files that tools write beside rows: about data sets, checkpoints and packages.
ABOUT = {
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "features.json",
    "drops.json",
    "metadata.json",
}
ABOUT |= {
    "config.json",
    "croissant.json",
    "package.json",
    "README.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "result.json",
}
_ADVICE = {
    ".gz": "unpack it: gunzip FILE.gz",
    ".zst": "unpack it: zstd -d FILE.zst",
    ".zip": "unpack it: unzip FILE.zip",
    ".tar": "unpack it: tar -xf FILE.tar",
    ".tsv": "write it as parquet: pandas.read_csv(FILE, sep='\\t').to_parquet('FILE.parquet')",
    ".xlsx": "write it as parquet: pandas.read_excel(FILE).to_parquet('FILE.parquet')",
    ".pkl": "write it as parquet, where it was written: a pickle may run anything",
}
KNOWN = ".jsonl, .json, .csv, .parquet or .arrow files (or packed: .gz, .xz, .bz2)"


def files_of(root: Path, name: str) -> list[Path]:
    """The file `root`, or the files of the split `name` in the folder `root`; all of one kind.

    Raises:
        UserError: there are none, or they are of several kinds.
    """
    if root.is_file():
        if kind_of(root) != ".json" and name not in ("", DEFAULT_SPLIT, set_name(root, root.parent)):
            raise UserError(
                f"{root} is one file: it takes a slice such as '[:1000]', not the split name {shown(name)}; a folder may hold several splits"
            )
        files = [root]
    else:
        every = [file for file in sorted(root.rglob("*")) if _may_be_rows(file) and not _hidden(file, root) and file.is_file()]
        rows = [file for file in every if kind_of(file)]
        sets = sorted({set_name(file, root) for file in rows})
        whole = not name or (name == DEFAULT_SPLIT and len(sets) == 1 and sets[0] not in SPLITS)
        files = [file for file in rows if whole or name == set_name(file, root) or stem(file).startswith(f"{name}-")]
        if rows and not files:
            raise UserError(f"{root} has no files of a split {shown(name)}; it has {listed(sets)}: set data.split")
        files = files if rows else every
    kinds = {kind_of(file): file for file in files}
    if len(kinds) > 1 and "" not in kinds:
        several = ", ".join(str(file.relative_to(root)) for file in kinds.values())
        raise UserError(f"{root} holds files of several kinds, such as {several}: give one file, or a folder of one kind")
    if not files or "" in kinds:
        seen = sorted({file.suffix or file.name for file in files})
        advice = next((f" ({_ADVICE[suffix]})" for suffix in seen if suffix in _ADVICE), "")
        raise UserError(
            f"{root}: expected {KNOWN} of one kind, or a TFDS folder (dataset_info.json and features.json); "
            f"found {', '.join(seen[:8]) or 'neither'}{advice}"
        )
    return files


def set_name(file: Path, root: Path) -> str:
    """The split a file belongs to: train-00000-of-00002.parquet, train/0000.parquet and train/data-00000-of-00001.arrow to "train"."""
    name = stem(file).split("-")[0]
    inner = name.isdigit() or kind_of(file) == ".arrow"
    return file.parent.name if inner and file.parent != root else name


def _may_be_rows(file: Path) -> bool:
    """Whether its name says so: beside rows may lie a million pictures."""
    if file.name in ABOUT or (file.suffix == ".arrow" and file.name.startswith(("cache-", "indices-", "tmp"))):
        return False
    return bool(kind_of(file)) or file.suffix in _ADVICE


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)
