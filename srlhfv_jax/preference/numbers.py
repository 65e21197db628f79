"""Numbers of answers by content, in a folder of files: what a model that does not change says of an answer is computed once.

FOLDER/FINGERPRINT/PART.npz    keys (hashes of prompt, pictures and answer) and float32 numbers; nothing that could be executed

The fingerprint is of all that the numbers depend on beside the answer: weights, adapter, architecture, number format. A part is
written whole or not at all, so several runs may share a folder, and one that was killed loses what it had not written.
"""

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from srlhfv_jax import files
from srlhfv_jax.data.tokens import Encoded
from srlhfv_jax.parallel import hosts

KEY = 32  # bytes


def keys(row: Encoded) -> tuple[bytes, ...]:
    """The key of each of a row's answers."""
    prompt = np.ascontiguousarray(row.prompt, np.int64).tobytes(), row.digests
    answers = [np.ascontiguousarray(answer, np.int64).tobytes() for answer in row.responses]
    return tuple(hashlib.sha256(repr((prompt, answer)).encode()).digest() for answer in answers)


def read(folder: Path, fingerprint: str) -> dict[bytes, float]:
    """All numbers that are kept for a fingerprint. A file that is damaged, or not ours, is named and left unread: what it held is
    computed again."""
    known: dict[bytes, float] = {}
    for path in sorted((folder / fingerprint).glob("*.npz")):
        try:
            known |= _part(path, fingerprint)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            hosts.say(f"{path} is no file of numbers by {fingerprint} ({error}): they are computed again; it may be deleted")
    return known


def write(folder: Path, fingerprint: str, numbers: Mapping[bytes, float]) -> None:
    """Add a part."""
    if not numbers or hosts.process_index() > 0:
        return
    names = np.frombuffer(b"".join(numbers), np.uint8).reshape(-1, KEY)
    values = np.fromiter(numbers.values(), np.float32, len(numbers))
    digest = _digest(fingerprint, names, values)
    path = folder / fingerprint / f"{digest[:24]}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    with beside.open("wb") as file:
        np.savez(file, keys=names, values=values, digest=np.frombuffer(digest.encode(), np.uint8))
    files.put(beside, path)


def _part(path: Path, fingerprint: str) -> dict[bytes, float]:
    with np.load(path, allow_pickle=False) as part:
        names, values, digest = part["keys"], part["values"], bytes(part["digest"]).decode("ascii", "replace")
    if names.dtype != np.uint8 or names.shape != (len(values), KEY) or values.dtype != np.float32 or values.ndim != 1:
        raise ValueError("its arrays have other types or shapes")
    if digest != _digest(fingerprint, names, values):
        raise ValueError("its checksum is another one")
    return {name.tobytes(): float(value) for name, value in zip(names, values, strict=True)}


def _digest(fingerprint: str, names: np.ndarray, values: np.ndarray) -> str:
    return hashlib.sha256(fingerprint.encode() + names.tobytes() + values.tobytes()).hexdigest()


def missing(known: Mapping[str, Mapping[bytes, float]], wanted: Sequence[Sequence[bytes]]) -> set[bytes]:
    """The keys of `wanted` of which some number is not known.

    Args:
        known: by the name of the number.
    """
    return {key for row in wanted for key in row if not all(key in of for of in known.values())}
