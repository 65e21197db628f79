"""Numbers of answers by content, in a folder of files: what a model that does not change says of an answer is computed once.

FOLDER/FINGERPRINT/PART.npz    keys (hashes of prompt, pictures and answer) and float32 numbers, one of an answer or one of each of its
                               tokens; nothing that could be executed

The fingerprint is of all that the numbers depend on beside the answer: weights, adapter, architecture, number format. A part is
written whole or not at all, so several runs may share a folder, and one that was killed loses what it had not written.
"""

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from srlhfv_jax import files
from srlhfv_jax.data.tokens import Encoded
from srlhfv_jax.parallel import hosts

KEY = 32  # bytes
Value = float | Float[np.ndarray, "R"]  # of an answer, or of each of its tokens


def keys(row: Encoded) -> tuple[bytes, ...]:
    """The key of each of a row's answers. Tokens that do not count are part of it: where all count, it is that of the whole answer."""
    prompt = np.ascontiguousarray(row.prompt, np.int64).tobytes(), row.digests
    answers = [(np.ascontiguousarray(answer, np.int64).tobytes(),) for answer in row.responses]
    for side, kept in enumerate(row.kept or ()):
        answers[side] += () if kept.all() else (kept.tobytes(),)
    return tuple(hashlib.sha256(repr((prompt, *answer)).encode()).digest() for answer in answers)


def read(folder: Path, fingerprint: str) -> dict[bytes, Value]:
    """All numbers that are kept for a fingerprint. A file that is damaged, or not ours, is named and left unread: what it held is
    computed again."""
    known: dict[bytes, Value] = {}
    for path in sorted((folder / fingerprint).glob("*.npz")):
        try:
            known |= _part(path, fingerprint)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            hosts.say(f"{path} is no file of numbers by {fingerprint} ({error}): they are computed again; it may be deleted")
    return known


def write(folder: Path, fingerprint: str, numbers: Mapping[bytes, Value]) -> None:
    """Add a part: of numbers of answers, or of their tokens."""
    if not numbers or hosts.process_index() > 0:
        return
    names = np.frombuffer(b"".join(numbers), np.uint8).reshape(-1, KEY)
    values = np.concatenate([np.ravel(value) for value in numbers.values()]).astype(np.float32)
    lengths = [np.asarray([len(value) for value in numbers.values()])] if np.ndim(next(iter(numbers.values()))) else []
    digest = _digest(fingerprint, names, values, *lengths)
    path = folder / fingerprint / f"{digest[:24]}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    with beside.open("wb") as file:
        own = dict(zip(["lengths"], lengths))  # of numbers of tokens
        np.savez(file, keys=names, values=values, digest=np.frombuffer(digest.encode(), np.uint8), **own)
    files.put(beside, path)


def _part(path: Path, fingerprint: str) -> dict[bytes, Value]:
    with np.load(path, allow_pickle=False) as part:
        names, values, digest = part["keys"], part["values"], bytes(part["digest"]).decode("ascii", "replace")
        lengths = [part["lengths"]] if "lengths" in part else []
    count = len(lengths[0]) if lengths else len(values)
    if names.dtype != np.uint8 or names.shape != (count, KEY) or values.dtype != np.float32 or values.ndim != 1:
        raise ValueError("its arrays have other types or shapes")
    if digest != _digest(fingerprint, names, values, *lengths):
        raise ValueError("its checksum is another one")
    each = np.split(values, np.cumsum(lengths[0])[:-1]) if lengths else map(float, values)
    return {name.tobytes(): value for name, value in zip(names, each, strict=True)}


def _digest(fingerprint: str, *arrays: np.ndarray) -> str:
    return hashlib.sha256(fingerprint.encode() + b"".join(array.tobytes() for array in arrays)).hexdigest()


def missing(known: Mapping[str, Mapping[bytes, Value]], wanted: Sequence[Sequence[bytes]]) -> set[bytes]:
    """The keys of `wanted` of which some number is not known.

    Args:
        known: by the name of the number.
    """
    return {key for row in wanted for key in row if not all(key in of for of in known.values())}
