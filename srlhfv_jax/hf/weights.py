"""Tensors of a checkpoint folder: which safetensors file holds which tensor, its shape and dtype, and any slice of it.

Files are opened once and read by slice, so a process reads no more than the shards it needs. Pickles (`pytorch_model.bin`) are
refused: unpickling runs code.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from srlhfv_jax.errors import UserError, reason, shown
from srlhfv_jax.files import read_json, take

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"  # as PEFT calls it
FLOATS = ("F64", "F32", "F16", "BF16")  # dtypes of weights; others are those of quantised ones
HEADS_FILE = "score_heads.safetensors"  # beside the backbone: one vector per head
HEADS_META = "score_heads.json"
GUARD_FILE = "guard_heads.safetensors"  # the guard's, with their biases
GUARD_META = "guard.json"
CALIBRATION = "calibration.json"  # of srlhfv calibrate: of these heads and no others
CERTIFICATE = "certificate.json"  # of srlhfv certify: of these weights and no others
HEADS_LOADER = "score_heads.py"  # reads both with torch
REVISION = "revision.safetensors"  # one vector a layer, added to activations (hf/revision.py)
REVISION_META = "revision.json"
REVISION_LOADER = "revision.py"  # reads both with torch
BESIDE = (HEADS_FILE, GUARD_FILE, REVISION)  # files of tensors beside the weights


class Tensor(NamedTuple):
    """A handle on one stored tensor."""

    shape: tuple[int, ...]
    dtype: str  # as safetensors names it: "F32", "BF16", ...
    slices: object  # indexing it with slices reads that part


def open_tensors(folder: Path) -> dict[str, Tensor]:
    """Name in the file -> tensor, for every safetensors file of a checkpoint.

    Of several copies side by side that is read which `transformers` reads: model.safetensors, then the shards of the index.

    Raises:
        UserError: no weights, only pickles, a shard that is missing or truncated, an index that does not match its shards.
    """
    index = folder / INDEX
    if (folder / SINGLE).is_file() or not index.is_file():
        return open_file(_single_file(folder))
    expected = _weight_map(index)
    tensors: dict[str, Tensor] = {}
    here = {path.name for path in folder.iterdir()}
    for shard in sorted(set(expected.values())):
        # By its name: in the cache of the hub every file is a link to another folder.
        if shard not in here:
            raise UserError(
                f"{index} names the shard {shown(shard)}, which is not in {folder}: copy the missing file or download it again"
            )
        tensors |= open_file(folder / shard)
    lost = sorted(set(expected) - set(tensors))
    if lost:
        raise UserError(
            f"{index} promises {len(lost)} tensors that no shard holds, first {lost[0]}: the checkpoint is incomplete"
        )
    return tensors


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder has a checkpoint's config and weights, not an adapter alone."""
    return (folder / "config.json").is_file() and any((folder / name).is_file() for name in (SINGLE, INDEX))


def files(folder: Path) -> list[str]:
    """Names of the safetensors files that hold a checkpoint's weights and heads, whether they are there yet or not."""
    index = folder / INDEX
    return [SINGLE, *(sorted(set(_weight_map(index).values())) if index.is_file() else ()), ADAPTER, *BESIDE]


def _weight_map(index: Path) -> dict[str, str]:
    return take(read_json(index), "weight_map", dict[str, str], str(index))


def _single_file(folder: Path) -> Path:
    path = folder / SINGLE
    if path.is_file():
        return path
    pickles = sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth"), *folder.glob("*.ckpt")])
    if pickles:
        raise UserError(
            f"{folder} holds only pickled weights ({pickles[0].name}), which run code when read and are refused: "
            "save the checkpoint as safetensors (transformers: model.save_pretrained) and try again"
        )
    raise UserError(f"expected model.safetensors or model.safetensors.index.json in {folder}, found neither")


def open_file(path: Path) -> dict[str, Tensor]:
    """As `open_tensors`, for one file."""
    try:
        file = safe_open(str(path), framework="np")
        slices = {name: file.get_slice(name) for name in file.keys()}
    except (SafetensorError, OSError, UnicodeError) as error:
        raise UserError(f"{path} is truncated or not a safetensors file ({reason(error)}): copy or download it again") from None
    return {name: Tensor(tuple(part.get_shape()), part.get_dtype(), part) for name, part in slices.items()}


def read(tensor: Tensor, index: tuple[slice, ...]) -> np.ndarray:
    """Part of a tensor, in the stored dtype."""
    return tensor.slices[index] if index else tensor.slices[:]


def numbers(path: Path, name: str, tensor: Tensor) -> np.ndarray:
    """A whole small tensor, in float32.

    Raises:
        UserError: it holds something else than finite floating-point numbers.
    """
    if tensor.dtype not in FLOATS:
        raise UserError(f"{path}: {name} is of {tensor.dtype}, expected one of {', '.join(FLOATS)}")
    values = read(tensor, ()).astype(np.float32)
    if not np.isfinite(values).all():
        raise UserError(f"{path}: {name} holds NaN or infinite numbers: it was saved from a run that had diverged")
    return values
