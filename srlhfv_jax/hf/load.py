"""Checkpoint folder -> parameters, straight into their shards, with the config, the score heads and the processor beside them.

A folder is a Hugging Face checkpoint (or the id of one on the hub), an export of ours, or the workdir of a stage (its `export/`
is read then). Everything that is wrong with the tensors (unmapped, missing, wrongly shaped) is reported in one error before a
weight is read.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding

from srlhfv_jax import files
from srlhfv_jax.config import choose
from srlhfv_jax.errors import UserError, shown
from srlhfv_jax.hf import classifier, hub, leaves, names, own_files, peft, revision, weights
from srlhfv_jax.hf.config import read_config
from srlhfv_jax.hf.heads import load_heads
from srlhfv_jax.hf.processor import load_processor
from srlhfv_jax.models import lora, vlm
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.parallel import hosts, rules
from srlhfv_jax.parallel.mesh import check_tensor_axis

ROWS_AT_ONCE = 1 << 13
LONGEST_REPORT = 400  # characters


class Pretrained(NamedTuple):
    """A checkpoint in memory."""

    config: VLMConfig
    params: dict[str, Any]  # float32 or bfloat16, see `models/vlm.py`
    heads: dict[str, dict[str, jax.Array]]  # score heads by name; {} if it has none
    processor: Any  # of transformers: text, and images if the model has eyes
    path: Path  # of config, tokenizer and processor
    base: str = ""  # the checkpoint of `params`, as an adapter names it: hub id or folder
    adapter: dict[str, Any] | None = None  # over `params` (models/lora.py); None: there is none, or they have it


def load_pretrained(
    path: str | Path,
    *,
    dtype: str = "float32",
    param_dtype: str | None = None,
    mesh: Mesh | None = None,
    remat: str = "none",
    scan_unroll: int = 1,
    keep_adapter: bool = False,
) -> Pretrained:
    """Read a checkpoint; of an adapter, the checkpoint that it lies over as well; with the revision that lies beside it.

    Args:
        dtype: of the activations.
        param_dtype: of the parameters in memory; None: as `dtype`. Trees that train want float32.
        mesh: where the parameters go, by the rules of `parallel/rules.py`; None: the default device.
        keep_adapter: give an adapter as it is instead of merging it into the parameters, or, where it is an activated one, of laying
            it over them.
    Raises:
        UserError: anything that is wrong with the folder, in one line.
    """
    how = dict(dtype=dtype, remat=remat, scan_unroll=scan_unroll)
    folder = checkpoint_folder(path)
    described = described_in(folder)
    config = read_config(described, **how)
    if mesh is not None:
        check_tensor_axis(config.text.heads, mesh)
    param_dtype = choose(param_dtype or dtype, "param_dtype", "float32", "bfloat16")
    base, adapter = backbone_name(path), None
    under = checkpoint_folder(base)
    if under != described and read_config(under, **how) != config:
        raise UserError(f"{folder} is an adapter over {base}, which has another architecture now: give it its own backbone")
    config = _as_stored(config, under)
    params = load_params(config, under, param_dtype, mesh)
    if peft.is_adapter(folder):
        adapter = peft.read(folder, config, mesh)
        config = dataclasses.replace(config, activation=peft.activation(folder))
        if not keep_adapter:
            places = jax.tree.map(lambda leaf: leaf.sharding, params)
            merged = jax.jit(lora.merged, donate_argnums=0, out_shardings=places)
            params, adapter = (lora.overlay if config.activation else merged)(params, adapter), None
    revised = revision.read(config, folder, under)
    if revised is not None and revised.strength:
        params = revision.lay_over(params, revised, mesh)
        config = dataclasses.replace(config, activation=revised.begins)
    heads = load_heads(config, folder, mesh)
    return Pretrained(config, params, heads, load_processor(config, described), folder, base, adapter)


def backbone_name(path: str | Path) -> str:
    """Name of the parameters of a checkpoint, as an adapter over them gives it: a hub id with its revision, or an absolute folder.

    A folder that has whole weights beside an adapter is itself what the adapter lies over, as in `transformers`.

    Raises:
        UserError: an adapter over an adapter, itself included.
    """
    folder = checkpoint_folder(path)
    if not _adapter_alone(folder):
        return hub.pinned(path) if hub.is_model_id(path) else str(folder.absolute())
    base = peft.base_of(folder)
    under = checkpoint_folder(base)
    if _adapter_alone(under):
        which = "itself" if under.resolve() == folder.resolve() else f"{shown(base)}, which is an adapter too"
        raise UserError(
            f"{folder} is an adapter over {which}: merge the first into its backbone (srlhfv export), or name the backbone"
        )
    return backbone_name(base)


def _adapter_alone(folder: Path) -> bool:
    return peft.is_adapter(folder) and not weights.is_checkpoint(folder)


def load_config_and_processor(
    path: str | Path, *, dtype: str = "float32", remat: str = "none", scan_unroll: int = 1
) -> tuple[VLMConfig, Any]:
    """Config and processor of a checkpoint: all that a start from random weights needs."""
    folder = described_in(checkpoint_folder(path))
    config = read_config(folder, dtype=dtype, remat=remat, scan_unroll=scan_unroll)
    return config, load_processor(config, folder)


def described_in(folder: Path) -> Path:
    """The folder with config, tokenizer and processor: for an adapter that others wrote, in the checkpoint that it lies over.

    A tokenizer or template of its own goes before that checkpoint's.
    """
    if not peft.is_adapter(folder) or (folder / "config.json").is_file():
        return folder
    return own_files.over(folder, checkpoint_folder(backbone_name(folder)))


def checkpoint_folder(path: str | Path) -> Path:
    """The folder itself, its export/ if it is a stage's workdir, or where the hub keeps a model with this id."""
    given, path = path, hub.fetch(str(path)) if hub.is_model_id(path) else Path(path)
    try:
        found = path.is_dir()
    except OSError:  # a name longer than any
        found = False
    if not found:
        raise UserError(
            f"expected a Hugging Face folder, a model id of its hub or the workdir of a stage, {shown(str(given))} is not a "
            f"folder{files.nearest(given)}"
        )
    exported = path / "export"
    if is_checkpoint(exported):
        return exported
    if (path / "checkpoints").is_dir():
        raise UserError(f"{path} is the workdir of a stage that has no export yet: let the stage finish first")
    return path


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a model: whole, or as an adapter."""
    return (folder / "config.json").is_file() or peft.is_adapter(folder)


def load_params(config: VLMConfig, folder: Path, dtype: str, mesh: Mesh | None) -> dict[str, Any]:
    """Every leaf of the model from the folder's safetensors, each device reading its own part."""
    table, shapes, tensors = _open(config, folder)
    if mesh is None:
        shardings = jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), shapes)
    else:
        shardings = rules.shardings(shapes, mesh)
    params: dict[str, Any] = {}
    for leaf in table:
        shape, sharding = leaves.leaf(shapes, leaf.path).shape, leaves.leaf(shardings, leaf.path)
        leaves.put(params, leaf.path, _fill(leaf, shape, tensors, jnp.dtype(dtype), sharding))
    return params


def check_tensors(config: VLMConfig, folder: Path) -> None:
    """Compare the names and shapes of the folder's tensors with the model, without reading them.

    Raises:
        UserError: they differ.
    """
    _open(_as_stored(config, folder), folder)


def _open(config: VLMConfig, folder: Path) -> tuple[list[leaves.Leaf], Any, dict[str, weights.Tensor]]:
    """The leaves of the model, their shapes, and the tensors that hold them."""
    tensors = {names.published(config, name): tensor for name, tensor in weights.open_tensors(folder).items()}
    embedding, head = names.embedding_and_head(config)
    if config.text.tied_head and embedding not in tensors and head in tensors:
        tensors[embedding] = tensors.pop(head)
    shapes = jax.eval_shape(lambda: vlm.init(config, jax.random.key(0)))
    table = names.table(config)
    _check(config, folder, table, shapes, tensors)
    return table, shapes, tensors


def _as_stored(config: VLMConfig, folder: Path) -> VLMConfig:
    """The model, with a head of its own where the files have one that differs from the embedding, though config.json ties them.

    So does `transformers`, which says "we will NOT tie them".
    """
    if not config.text.tied_head:
        return config
    tensors = {names.published(config, name): tensor for name, tensor in weights.open_tensors(folder).items()}
    embedding, head = (tensors.get(name) for name in names.embedding_and_head(config))
    if embedding is None or head is None or embedding.shape == head.shape and _equal(embedding, head):
        return config
    hosts.say(f"{folder}: config.json ties the head to the embedding, and the files hold another head: it is used")
    return dataclasses.replace(config, text=dataclasses.replace(config.text, tied_head=False))


def _equal(one: weights.Tensor, other: weights.Tensor) -> bool:
    rows = one.shape[0]
    parts = (slice(row, min(row + ROWS_AT_ONCE, rows)) for row in range(0, rows, ROWS_AT_ONCE))
    return all(np.array_equal(weights.read(one, (part,)), weights.read(other, (part,))) for part in parts)


def _fill(leaf: leaves.Leaf, shape: tuple[int, ...], tensors: dict[str, weights.Tensor], dtype, sharding) -> jax.Array:
    """One leaf on its devices; each device's slice is read, transposed and stacked by itself."""

    def read(name: str, index: tuple[slice, ...]) -> np.ndarray:
        return _finite(name, _part(tensors[name], leaf.stored, index)).astype(dtype)

    def part(index: tuple[slice, ...]) -> np.ndarray:
        if leaf.layers is None:
            return read(leaf.names[0], index)
        return np.stack([read(name, index[1:]) for name in leaf.names[index[0]]])

    return jax.make_array_from_callback(shape, sharding, part)


def _finite(name: str, values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise UserError(f"{name} holds NaN or infinite numbers: the checkpoint was saved from a run that had diverged")
    return values


def _part(tensor: weights.Tensor, stored: str, index: tuple[slice, ...]) -> np.ndarray:
    if stored == leaves.TRANSPOSED:
        return weights.read(tensor, index[::-1]).T
    if stored == leaves.FLATTENED:  # a few thousand numbers: read whole
        return weights.read(tensor, ()).reshape(tensor.shape[0], -1)[index]
    return weights.read(tensor, index)


def _check(config: VLMConfig, folder: Path, table: list[leaves.Leaf], shapes, tensors: dict[str, weights.Tensor]) -> None:
    """Compare the files with the model: every difference in one error."""
    expected = {}
    for leaf in table:
        shape = leaves.leaf(shapes, leaf.path).shape
        stored = leaves.stored_shape(config, leaf, shape)
        expected |= {name: stored for name in leaf.names}
    beside = {classifier.TENSOR} if (folder / weights.HEADS_FILE).is_file() else set()  # the head that is read from its own file
    unmapped = [name for name in tensors if name not in {*expected, *beside} and not names.ignored(config, name)]
    missing = [name for name in expected if name not in tensors]
    wrong = [
        f"{name} is {list(tensors[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    quantised = [name for name, tensor in tensors.items() if tensor.dtype not in weights.FLOATS and name in expected]
    if quantised:
        dtype = tensors[quantised[0]].dtype
        raise UserError(
            f"{folder}: {quantised[0]} is of {dtype}: quantised weights are not read, give the checkpoint before that"
        )
    report = [
        f"{len(names)} {what}: {', '.join(names)}"
        for what, names in (
            ("unmapped", leaves.compressed(unmapped)),
            ("missing", leaves.compressed(missing)),
            ("of wrong shape", leaves.compressed(wrong)),
        )
        if names
    ]
    if report:
        said = "; ".join(report)
        said = said if len(said) <= LONGEST_REPORT else f"{said[:LONGEST_REPORT]}... ({len(said)} characters)"
        raise UserError(f"{folder} does not hold the model its config.json describes: {said}")
