"""Tensors of a checkpoint folder: which safetensors file holds which tensor, its shape and dtype, and any slice of it.

Files are opened once and read by slice, so a process reads no more than the shards it needs. Pickles (`pytorch_model.bin`) are
refused: unpickling runs code.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from srlhfv_jax.errors import UserError

INDEX = "model.safetensors.index.json"
HEADS_FILE = "score_heads.safetensors"  # beside the backbone: one vector per head
HEADS_META = "score_heads.json"
GUARD_FILE = "guard_heads.safetensors"  # the guard's, with their biases
GUARD_META = "guard.json"
HEADS_LOADER = "score_heads.py"  # reads both with torch


class Tensor(NamedTuple):
    """A handle on one stored tensor."""

    shape: tuple[int, ...]
    dtype: str  # as safetensors names it: "F32", "BF16", ...
    slices: object  # indexing it with slices reads that part


def open_tensors(folder: Path) -> dict[str, Tensor]:
    """Name in the file -> tensor, for every safetensors file of a checkpoint.

    Raises:
        UserError: no weights, only pickles, a shard that is missing or truncated, an index that does not match its shards.
    """
    index = folder / INDEX
    if not index.is_file():
        return open_file(_single_file(folder))
    expected = json.loads(index.read_text())["weight_map"]
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(expected.values())):
        path = folder / shard
        # By its name: in the cache of the hub every file is a link to another folder.
        if Path(shard).name != shard or not path.is_file():
            raise UserError(
                f"{index} names the shard {shard}, which is not in {folder}: copy the missing file or download it again"
            )
        tensors |= open_file(path)
    lost = sorted(set(expected) - set(tensors))
    if lost:
        raise UserError(
            f"{index} promises {len(lost)} tensors that no shard holds, first {lost[0]}: the checkpoint is incomplete"
        )
    return tensors


def files(folder: Path) -> list[str]:
    """Names of the safetensors files that hold a checkpoint's weights and heads, whether they are there yet or not."""
    index = folder / INDEX
    shards = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    return [*shards, HEADS_FILE, GUARD_FILE]


def _single_file(folder: Path) -> Path:
    path = folder / "model.safetensors"
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
    except SafetensorError as error:
        raise UserError(f"{path} is truncated or not a safetensors file ({error}): copy or download it again") from None
    return {name: Tensor(tuple(part.get_shape()), part.get_dtype(), part) for name, part in slices.items()}


def read(tensor: Tensor, index: tuple[slice, ...]) -> np.ndarray:
    """Part of a tensor, in the stored dtype."""
    return tensor.slices[index] if index else tensor.slices[:]
