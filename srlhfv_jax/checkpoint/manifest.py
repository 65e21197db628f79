"""Size and checksum of every file of a finished checkpoint: with it a checkpoint is sealed, and a damaged one noticed before its use."""

import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from srlhfv_jax import files
from srlhfv_jax.errors import UserError

CHUNK = 1 << 22
UNSEALED = "the run ended before its files were recorded"


def write(folder: Path, manifest: Path) -> None:
    """Record the files under `folder`, which are on the disk then."""
    manifest.parent.mkdir(parents=True, exist_ok=True)
    files.sync_tree(folder)
    files.write_text(manifest, json.dumps(_files(folder), indent=1))


def damage(folder: Path, manifest: Path) -> str | None:
    """The damage of `folder` compared with its manifest, in words; None if there is none.

    UNSEALED: it has none, so nobody knows whether its files are whole.
    """
    if not manifest.exists():
        return UNSEALED
    try:
        expected = files.read_json(manifest, dict[str, list[int]])
    except UserError as error:
        return str(error)
    present = _files(folder)
    for name, sums in sorted(expected.items()):
        if name not in present:
            return f"{name} is missing"
        if present[name][:1] != sums[:1]:
            return f"{name} has {present[name][0]} bytes instead of {sums[:1]}"
        if present[name] != sums:
            return f"{name} has changed (checksum)"
    extra = [name for name in present if name not in expected and not Path(name).name.startswith(".")]
    return f"{extra[0]} is not in its manifest" if extra else None


def _files(folder: Path) -> dict[str, list[int]]:
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor(8) as pool:
        sums = pool.map(lambda name: _checksum(folder / name), names)
    return {name: [(folder / name).stat().st_size, checksum] for name, checksum in zip(names, sums)}


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum
