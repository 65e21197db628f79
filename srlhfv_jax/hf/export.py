"""Parameters -> a folder that `transformers` loads: sharded safetensors, index, and the config and processor files of the base.

The folder appears whole or not at all: it is written beside its place and renamed. In a run of several processes parameters that
are sharded over them are gathered leaf by leaf; the first process writes, the others keep nothing.
"""

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from srlhfv_jax import files
from srlhfv_jax.config import choose
from srlhfv_jax.data import chat, templates
from srlhfv_jax.errors import UserError
from srlhfv_jax.hf import classifier, leaves, names, peft, weights
from srlhfv_jax.hf.config import read_config
from srlhfv_jax.hf.heads import PLACE, SCORES
from srlhfv_jax.hf.load import backbone_name, checkpoint_folder, described_in
from srlhfv_jax.hf.processor import load_processor
from srlhfv_jax.models.config import VLMConfig, architecture
from srlhfv_jax.parallel import hosts

LEFT = re.compile(r"\.(?P<name>.+)\.(?P<kind>draft|previous)-([0-9]+-)?(?P<process>[1-9][0-9]*)")
DECODER_CLASSES = {  # model_type of a text_config -> its class; vLLM's llava.py asks `text_config.architectures` for it
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
METADATA = {"format": "pt"}  # what `transformers` demands of a safetensors file
Shard = list[tuple[leaves.Leaf, list[int]]]  # leaves with those of their layers that go into one file


def export_pretrained(
    path_out: str | Path,
    config: VLMConfig,
    params: dict[str, Any] | None,
    *,
    base: str | Path,
    adapter: dict[str, Any] | None = None,
    heads: dict[str, dict[str, Any]] | None = None,
    meta: dict[str, Any] | None = None,
    guard: dict[str, dict[str, Any]] | None = None,
    guard_meta: dict[str, Any] | None = None,
    card: str | None = None,
    chat_template: str | None = None,
    dtype: str | None = None,
    max_shard_bytes: float = 5e9,
) -> Path:
    """Write a checkpoint. In a run of several processes all of them call this, and the first one writes.

    Args:
        params: None: an adapter is written.
        base: the checkpoint folder (or workdir) whose tokenizer, processor and generation files go along.
        adapter: written as PEFT does, without a config.json: `peft` and `transformers` load it. What it lies over stays where it is
            and is named: the base, or what the base lies over.
        heads: score heads, written to score_heads.safetensors; one alone also as a classifier of `transformers` (hf/classifier.py).
        meta: more facts for score_heads.json.
        guard: the guard's heads (models/guard_heads.py), written to guard_heads.safetensors.
        guard_meta: what guard.json says of them: taxonomy, thresholds, ...
        card: the text of README.md; None: there is none.
        chat_template: takes the place of the base's; None: it stays.
        dtype: of the weights in the files, "float32" or "bfloat16"; None: as they are in memory.
    Raises:
        UserError: `base` describes another model than `config`.
    """
    path_out, base = Path(path_out), checkpoint_folder(base)
    # Each process has a draft of its own: on a shared disk their process ids may be equal. Only the first one's gets weights.
    draft = path_out.with_name(f".{path_out.name}.draft-{hosts.process_index()}-{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        described = described_in(base)
        _copy_base(draft, described, config)
        if chat_template is not None:
            _write_template(draft, chat_template)
        _write_stops(draft, described, config, chat_template)
        if params is None:
            (draft / "config.json").unlink()  # with one `transformers` looks for whole weights beside the adapter
            peft.write(draft, config, adapter, backbone_name(base))
        else:
            stored = jnp.dtype(choose(dtype or str(jax.tree.leaves(params)[0].dtype), "dtype", "float32", "bfloat16"))
            _write_stored(draft, stored, config)
            extra = _classifier(draft, config, heads or {})
            _write_weights(draft, config, params, stored, max_shard_bytes, extra)
        if heads:
            _write_heads(draft, heads, meta or {})
        if guard:
            _write_guard(draft, guard, guard_meta or {})
        if card is not None:
            (draft / "README.md").write_text(card)
        if hosts.process_index() == 0:
            _replace(path_out, draft)
        hosts.barrier(f"export to {path_out}")
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return path_out


def clear(folder: Path) -> None:
    """Remove what exports left in a folder when they were killed: drafts, and what stepped aside for them, each a whole model."""
    for path in sorted(folder.iterdir()) if folder.is_dir() and hosts.process_index() == 0 else ():
        left = LEFT.fullmatch(path.name)
        if left is None or _runs(int(left["process"])):
            continue
        if left["kind"] == "previous" and not path.with_name(left["name"]).exists():
            os.replace(path, path.with_name(left["name"]))  # it was killed between two renames
        else:
            shutil.rmtree(path, ignore_errors=True)


def _runs(process: int) -> bool:
    """Whether another process of this host has this id."""
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return process != os.getpid()


def _copy_base(draft: Path, base: Path, config: VLMConfig) -> None:
    """Everything of the base that is not weights."""
    if architecture(_tied_as(read_config(base), config)) != architecture(config):
        raise UserError(
            f"{base}/config.json describes another model than the parameters to export: give the checkpoint they started from"
        )
    for file in sorted(base.iterdir()):
        if file.is_file() and _goes_along(file.name):
            shutil.copyfile(file, draft / file.name)


def _write_template(draft: Path, template: str) -> None:
    """The one chat template of the folder: newer and older versions of `transformers` look for it in several places."""
    (draft / "chat_template.jinja").write_text(template)
    (draft / "chat_template.json").unlink(missing_ok=True)
    for path in (draft / "tokenizer_config.json", draft / "processor_config.json"):
        settings = files.read_json(path) if path.is_file() else {}
        if settings.pop("chat_template", None) is not None:
            _write_json(path, settings)


def _write_stops(draft: Path, base: Path, config: VLMConfig, chat_template: str | None) -> None:
    """All that ends an answer, into the generation settings: `transformers` stops where we do."""
    if not (base / "tokenizer_config.json").is_file():
        return
    processor, path = load_processor(config, base), draft / "generation_config.json"
    if chat_template is not None:
        templates.override(processor, str(draft / "chat_template.jinja"))
    codec = chat.codec(processor)
    fresh = {"bos_token_id": codec.tokenizer.bos_token_id, "pad_token_id": codec.pad_id}
    settings, stops = files.read_json(path) if path.is_file() else fresh, list(codec.stop_ids)
    said = settings.get("eos_token_id")
    if set(said if isinstance(said, list) else [said]) != set(stops):
        _write_json(path, settings | {"eos_token_id": stops if len(stops) > 1 else stops[0]})


def _tied_as(described: VLMConfig, config: VLMConfig) -> VLMConfig:
    """Whether the head is the embedding is decided by the weights (`load._as_stored`), not by the config.json they came with."""
    return dataclasses.replace(described, text=dataclasses.replace(described.text, tied_head=config.text.tied_head))


def _write_stored(draft: Path, dtype: np.dtype, config: VLMConfig) -> None:
    """Note in the config what the written weights are: their dtype, a head that is not the embedding though the base said so, and the
    class of the decoder, by which vLLM finds it."""
    described = files.read_json(draft / "config.json")
    decoder = described.get("text_config") or {}
    if decoder.get("model_type") in DECODER_CLASSES and not decoder.get("architectures"):
        described["text_config"] = decoder | {"architectures": [DECODER_CLASSES[decoder["model_type"]]]}
    described.pop("torch_dtype", None)  # the older spelling of the same key
    if read_config(draft).text.tied_head != config.text.tied_head:
        tied = {"tie_word_embeddings": config.text.tied_head}
        described |= tied | ({"text_config": described["text_config"] | tied} if described.get("text_config") else {})
    _write_json(draft / "config.json", {**described, "dtype": str(dtype)})


def _goes_along(name: str) -> bool:
    """Tokenizer, processor, chat template, generation settings; no weights, no score heads of the base."""
    return (
        Path(name).suffix in (".json", ".jinja", ".txt", ".model")
        and not name.endswith(".index.json")
        and name not in (weights.HEADS_META, weights.GUARD_META, weights.REVISION_META, weights.CERTIFICATE, weights.CALIBRATION)
        and name != peft.CONFIG
    )


def _classifier(draft: Path, config: VLMConfig, heads: dict[str, dict[str, Any]]) -> dict[str, np.ndarray]:
    """The tensor that makes an export with one head a classifier; {} where there is no class for it."""
    if classifier.possible(config, heads):
        ((name, head),) = heads.items()
        kernel = hosts.to_host(head["kernel"]).astype(np.float32)  # by all processes
        if classifier.describe(draft, config, name):
            return {classifier.TENSOR: kernel[None]}
    classifier.undo(draft, config)
    return {}


def _write_weights(
    draft: Path,
    config: VLMConfig,
    params: dict[str, Any],
    dtype: np.dtype,
    max_shard_bytes: float,
    extra: dict[str, np.ndarray],
) -> None:
    shards = _plan(config, params, dtype.itemsize, max_shard_bytes)
    files = ["model.safetensors"]
    if len(shards) > 1:
        files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    where, total = {}, 0
    for file, shard in zip(files, shards):
        tensors = {}
        for leaf, layers in shard:
            whole = hosts.to_host(leaves.leaf(params, leaf.path))  # by all processes
            if hosts.process_index() == 0:
                tensors |= _tensors(config, whole, dtype, leaf, layers)
        if tensors and shard is shards[-1]:
            tensors |= extra
        if tensors:
            save_file(tensors, draft / file, metadata=METADATA)
        total += sum(tensor.nbytes for tensor in tensors.values())
        where |= {name: file for name in tensors}
    if len(shards) > 1:
        _write_json(draft / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})


def _plan(config: VLMConfig, params: dict[str, Any], item_bytes: int, max_shard_bytes: float) -> list[Shard]:
    """Plan the files, each a list of leaves and layers: filled in order, a new file when the next tensor would not fit."""
    shards: list[Shard] = [[]]
    size = 0
    for leaf in names.table(config):
        tensor_bytes = leaves.leaf(params, leaf.path).size * item_bytes // len(leaf.names)
        for index in range(len(leaf.names)):
            if size and size + tensor_bytes > max_shard_bytes:
                shards.append([])
                size = 0
            size += tensor_bytes
            if shards[-1] and shards[-1][-1][0] == leaf:
                shards[-1][-1][1].append(index)
            else:
                shards[-1].append((leaf, [index]))
    return shards


def _tensors(
    config: VLMConfig, whole: np.ndarray, dtype: np.dtype, leaf: leaves.Leaf, indices: list[int]
) -> Iterator[tuple[str, np.ndarray]]:
    """The named tensors of some layers of one leaf, as stored."""
    host = whole.astype(dtype, copy=False)
    shape = leaves.stored_shape(config, leaf, host.shape)
    for index in indices:
        own = host if leaf.layers is None else host[index]
        yield leaf.names[index], np.ascontiguousarray(own.T if leaf.stored == leaves.TRANSPOSED else own.reshape(shape))


def _write_heads(draft: Path, heads: dict[str, dict[str, Any]], meta: dict[str, Any]) -> None:
    tensors = {name: hosts.to_host(head["kernel"]).astype(np.float32) for name, head in heads.items()}
    save_file(tensors, draft / weights.HEADS_FILE, metadata=METADATA)
    shutil.copyfile(Path(__file__).with_name("torch_scores.py"), draft / weights.HEADS_LOADER)
    _write_json(draft / weights.HEADS_META, meta | {"heads": sorted(heads)} | SCORES)


def _write_guard(draft: Path, heads: dict[str, dict[str, Any]], meta: dict[str, Any]) -> None:
    tensors = {
        f"{name}.{part}": hosts.to_host(leaf).astype(np.float32) for name, head in heads.items() for part, leaf in head.items()
    }
    save_file(tensors, draft / weights.GUARD_FILE, metadata=METADATA)
    write_guard_meta(draft, meta)


def write_guard_meta(folder: Path, meta: dict[str, Any]) -> None:
    """Write guard.json beside the guard's heads in `folder`."""
    _write_json(folder / weights.GUARD_META, meta | PLACE)


def _replace(path_out: Path, draft: Path) -> None:
    """Put the finished draft in place; an earlier export steps aside first."""
    previous = path_out.with_name(f".{path_out.name}.previous-{os.getpid()}")
    files.sync_tree(draft)
    if path_out.exists():
        os.replace(path_out, previous)
    files.put(draft, path_out)
    shutil.rmtree(previous, ignore_errors=True)


def _write_json(path: Path, data: dict[str, Any]) -> None:
    files.write_text(path, json.dumps(data, indent=2, sort_keys=True) + "\n")
