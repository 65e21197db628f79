"""Checkpoint folder -> parameters, straight into their shards, with the config, the score heads and the processor beside them.

A folder is a Hugging Face checkpoint (or the id of one on the hub), an export of ours, or the workdir of a stage (its `export/`
is read then). Everything that is wrong with the tensors (unmapped, missing, wrongly shaped) is reported in one error before a
weight is read.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding

from srlhfv_jax.config import choose
from srlhfv_jax.data import pictures
from srlhfv_jax.errors import UserError
from srlhfv_jax.hf import hub, leaves, names, peft, weights
from srlhfv_jax.hf.config import read_config
from srlhfv_jax.models import guard, lora, vlm
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.parallel import rules
from srlhfv_jax.parallel.mesh import check_heads


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
    """Read a checkpoint; of an adapter, the checkpoint that it lies over as well.

    Args:
        dtype: of the activations.
        param_dtype: of the parameters in memory; None: as `dtype`. Trees that train want float32.
        mesh: where the parameters go, by the rules of `parallel/rules.py`; None: the default device.
        keep_adapter: give an adapter as it is instead of merging it into the parameters, or, where it is an activated one, of laying
            it over them.
    Raises:
        UserError: anything that is wrong with the folder, in one line.
    """
    folder = checkpoint_folder(path)
    described = _described(folder)
    config = read_config(described, dtype=dtype, remat=remat, scan_unroll=scan_unroll)
    if mesh is not None:
        check_heads(config.text.heads, mesh)
    param_dtype = choose(param_dtype or dtype, "param_dtype", "float32", "bfloat16")
    base, adapter = backbone_name(path), None
    under = checkpoint_folder(base)
    if under != described and read_config(under, dtype=dtype, remat=remat, scan_unroll=scan_unroll) != config:
        raise UserError(f"{folder} is an adapter over {base}, which has another architecture now: give it its own backbone")
    params = load_params(config, under, param_dtype, mesh)
    if peft.is_adapter(folder):
        adapter = peft.read(folder, config, mesh)
        config = dataclasses.replace(config, activation=peft.activation(folder))
        if not keep_adapter:
            places = jax.tree.map(lambda leaf: leaf.sharding, params)
            merged = jax.jit(lora.merged, donate_argnums=0, out_shardings=places)
            params, adapter = (lora.overlay if config.activation else merged)(params, adapter), None
    heads = load_heads(config, folder, mesh)
    return Pretrained(config, params, heads, load_processor(config, described), described, base, adapter)


def backbone_name(path: str | Path) -> str:
    """Where the parameters of a checkpoint are, as an adapter over them names it: a hub id, or an absolute folder."""
    if hub.is_model_id(path):
        return str(path)
    folder = checkpoint_folder(path)
    return backbone_name(peft.base_of(folder)) if peft.is_adapter(folder) else str(folder.absolute())


def load_config_and_processor(
    path: str | Path, *, dtype: str = "float32", remat: str = "none", scan_unroll: int = 1
) -> tuple[VLMConfig, Any]:
    """What a start from random weights keeps of a checkpoint: the shapes and the processor."""
    folder = _described(checkpoint_folder(path))
    config = read_config(folder, dtype=dtype, remat=remat, scan_unroll=scan_unroll)
    return config, load_processor(config, folder)


def _described(folder: Path) -> Path:
    """Where config, tokenizer and processor are: of an adapter that others wrote, in the checkpoint that it lies over."""
    alone = peft.is_adapter(folder) and not (folder / "config.json").is_file()
    return checkpoint_folder(backbone_name(folder)) if alone else folder


def checkpoint_folder(path: str | Path) -> Path:
    """The folder itself, its export/ if it is a stage's workdir, or where the hub keeps a model with this id."""
    path = hub.fetch(str(path)) if hub.is_model_id(path) else Path(path)
    if not path.is_dir():
        raise UserError(
            f"expected a Hugging Face folder, a model id of its hub or the workdir of a stage, {path} is not a folder"
        )
    exported = path / "export"
    if (exported / "config.json").is_file():
        return exported
    if (path / "checkpoints").is_dir():
        raise UserError(f"{path} is the workdir of a stage that has no export yet: let the stage finish first")
    return path


def load_params(config: VLMConfig, folder: Path, dtype: str, mesh: Mesh | None) -> dict[str, Any]:
    """Every leaf of the model from the folder's safetensors, each device reading its own part."""
    tensors = {names.published(config, name): tensor for name, tensor in weights.open_tensors(folder).items()}
    shapes = jax.eval_shape(lambda: vlm.init(config, jax.random.key(0)))
    table = names.table(config)
    _check(config, folder, table, shapes, tensors)
    if mesh is None:
        shardings = jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), shapes)
    else:
        shardings = rules.shardings(shapes, mesh)
    params: dict[str, Any] = {}
    for leaf in table:
        shape, sharding = leaves.leaf(shapes, leaf.path).shape, leaves.leaf(shardings, leaf.path)
        leaves.put(params, leaf.path, _fill(leaf, shape, tensors, jnp.dtype(dtype), sharding))
    return params


def load_heads(config: VLMConfig, folder: Path, mesh: Mesh | None) -> dict[str, dict[str, jax.Array]]:
    """The score heads beside the backbone, in float32; {} where there are none."""
    path = folder / weights.HEADS_FILE
    if not path.is_file():
        return {}
    heads = {}
    for name, tensor in weights.open_file(path).items():
        if tensor.shape != (config.text.width,):
            raise UserError(f"{path}: the head {name} has shape {tensor.shape}, the backbone needs ({config.text.width},)")
        heads[name] = {"kernel": jnp.asarray(_finite(f"{path}: {name}", weights.read(tensor, ())), jnp.float32)}
    return heads if mesh is None else rules.place(heads, mesh)


def load_guard(config: VLMConfig, folder: Path, mesh: Mesh | None) -> tuple[dict[str, dict[str, jax.Array]], dict[str, Any]]:
    """The guard's heads beside the backbone, in float32, and what guard.json says of them.

    Raises:
        UserError: there are none, or heads of another shape.
    """
    path, meta = folder / weights.GUARD_FILE, folder / weights.GUARD_META
    if not (path.is_file() and meta.is_file()):
        raise UserError(f"{folder} has no guard ({weights.GUARD_FILE}, {weights.GUARD_META}): give what srlhfv guard made")
    described = json.loads(meta.read_text())
    count = len(described["categories"])
    wanted = {"severity.kernel": (config.text.width,), "severity.bias": (guard.THRESHOLDS,)}
    wanted |= {"categories.kernel": (count, config.text.width), "categories.bias": (count,)}
    tensors = weights.open_file(path)
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != wanted:
        raise UserError(f"{path} holds {found}, the backbone and {weights.GUARD_META} need {wanted}")
    heads: dict[str, dict[str, jax.Array]] = {"severity": {}, "categories": {}}
    for name, tensor in tensors.items():
        head, part = name.split(".")
        heads[head][part] = jnp.asarray(_finite(f"{path}: {name}", weights.read(tensor, ())), jnp.float32)
    return (heads if mesh is None else rules.place(heads, mesh)), described


def load_processor(config: VLMConfig, folder: Path) -> Any:
    """The tokenizer, with the image processor (Pillow, no torch) if the model has eyes."""
    import transformers  # here: seconds of import that only reading a checkpoint should cost

    try:
        if config.vision is None:
            return transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        if config.family in ("llava", "llava_next"):
            return transformers.AutoProcessor.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False, backend="pil"
            )
        return _bundle(config, folder)
    except (OSError, ValueError, KeyError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise UserError(f"{folder} has no usable tokenizer or processor files: {first_line}") from None


def _bundle(config: VLMConfig, folder: Path) -> pictures.Bundle:
    """Tokenizer and image processor on their own; older checkpoints keep the chat template in a file beside them."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    images = transformers.AutoImageProcessor.from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=False, backend="pil"
    )
    template = folder / "chat_template.json"
    if not tokenizer.chat_template and template.is_file():
        tokenizer.chat_template = json.loads(template.read_text())["chat_template"]
    token, vision = tokenizer.convert_ids_to_tokens(config.image_token), config.vision
    return pictures.Bundle(tokenizer, images, token, config.family, vision.patch, vision.merge)


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
    unmapped = [name for name in tensors if name not in expected and not names.ignored(config, name)]
    missing = [name for name in expected if name not in tensors]
    wrong = [
        f"{name} is {list(tensors[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    report = [
        f"{len(found)} {what}: {', '.join(found)}"
        for what, found in (
            ("unmapped", leaves.compressed(unmapped)),
            ("missing", leaves.compressed(missing)),
            ("of wrong shape", leaves.compressed(wrong)),
        )
        if found
    ]
    if report:
        raise UserError(f"{folder} does not hold the model its config.json describes: {'; '.join(report)}")
