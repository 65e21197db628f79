"""Size and checksum of every file of a finished checkpoint, so that a damaged one is noticed before it is used."""

import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CHUNK = 1 << 22


def write(folder: Path, manifest: Path) -> None:
    """Record the files under `folder`, atomically."""
    beside = manifest.with_suffix(".tmp")
    beside.parent.mkdir(parents=True, exist_ok=True)
    beside.write_text(json.dumps(_files(folder), indent=1))
    beside.replace(manifest)


def damage(folder: Path, manifest: Path) -> str | None:
    """What is wrong with `folder` compared with its manifest, in words; None if nothing is, or if it has no manifest.

    A run killed between finishing a checkpoint and writing its manifest leaves a whole checkpoint without one.
    """
    if not manifest.exists():
        return None
    expected, found = json.loads(manifest.read_text()), _files(folder)
    for name, (size, checksum) in sorted(expected.items()):
        if name not in found:
            return f"{name} is missing"
        if found[name][0] != size:
            return f"{name} has {found[name][0]} bytes instead of {size}"
        if found[name][1] != checksum:
            return f"{name} has changed (checksum)"
    return None


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
