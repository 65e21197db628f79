"""Checkpoints that a run starts from: opened and checked before any weights, loaded into their shards, with what is trained of them."""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from srlhfv_jax.config import LoraConfig, ModelConfig, OptimizerConfig, Supervised, choose, unread
from srlhfv_jax.data import chat, templates, tokens
from srlhfv_jax.errors import UserError
from srlhfv_jax.hf import fingerprint, peft, revision, weights
from srlhfv_jax.hf.load import (
    Pretrained,
    backbone_name,
    check_tensors,
    checkpoint_folder,
    load_config_and_processor,
    load_pretrained,
)
from srlhfv_jax.models import kernels, lora, quantize, vlm
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.parallel import rules
from srlhfv_jax.parallel.mesh import check_tensor_axis
from srlhfv_jax.rollout.generate import Vocabulary
from srlhfv_jax.training import units

UNROLLED = 1 << 30  # more layers than any stack has


def check_checkpoint(path: str, name: str, *heads: str) -> None:
    """Open a checkpoint, without reading its weights.

    Raises:
        UserError: it is not there, not whole, or without these score heads.
    """
    folder = checkpoint_folder(path)
    weights.open_tensors(checkpoint_folder(backbone_name(path)))
    if peft.is_adapter(folder):
        weights.open_file(folder / peft.WEIGHTS)
    scored = folder / weights.HEADS_FILE
    written = sorted(weights.open_file(scored)) if scored.is_file() else []
    for head in heads:
        if head not in written:
            raise UserError(
                f"{name}={path} has no {head} head (it has {', '.join(written) or 'none'}): give the workdir of srlhfv scores"
            )


def refuse_revised(path: str, name: str) -> None:
    """Raise UserError where a checkpoint that a run starts from has a revision, which training would leave behind."""
    if path and revision.is_revised(checkpoint_folder(path)):
        raise UserError(
            f"{name}={path} has a revision, which is not trained and belongs to these weights alone: give the policy that it was fitted on, "
            "and revise what comes out"
        )


def check_policy(path: str, name: str) -> None:
    """Open a checkpoint that shall answer: also its tokenizer and processor, and whether it has the tensors of its model.

    Raises:
        UserError: as `check_checkpoint`, and anything else that is wrong with it but the numbers in its tensors.
    """
    check_checkpoint(path, name)
    config, _ = load_config_and_processor(path)
    check_tensors(config, checkpoint_folder(backbone_name(path)))


def load(
    path: str,
    model: ModelConfig,
    mesh: Mesh,
    *,
    random_key: jax.Array | None = None,
    keep_adapter: bool = False,
    int8: bool = False,
    activated: bool = False,
    chat_template: str = "",
) -> Pretrained:
    """A checkpoint in its shards. With `random_key`: only its shapes and processor, the weights drawn anew in place.

    With `keep_adapter` an adapter stays apart, and the backbone, which nobody trains then, is in the dtype of activations, its
    decoder in eight bits with `int8`. A checkpoint that has no adapter is told how those over it will act: `activated` or not.
    `chat_template` as in DataConfig.

    Raises:
        UserError: as `load_pretrained`.
    """
    if random_key is None:
        loaded = load_pretrained(
            path,
            dtype=model.dtype if keep_adapter else model.param_dtype,
            mesh=mesh,
            remat=model.remat,
            scan_unroll=unroll(model),
            keep_adapter=keep_adapter,
        )
        templates.override(loaded.processor, chat_template)
        params = rules.place(quantize.int8(loaded.params, release=True), mesh) if int8 else loaded.params
        config = computed_in(loaded.config, model)
        if keep_adapter and loaded.adapter is None and activated:
            config = dataclasses.replace(config, activation=tokens.prompt_suffix(chat.codec(loaded.processor)))
        return loaded._replace(config=config, params=params)
    shape = load_shape(path, model, chat_template)
    check_tensor_axis(shape.config.text.heads, mesh)
    create = functools.partial(vlm.init, shape.config)
    places = rules.shardings(jax.eval_shape(create, random_key), mesh)
    return shape._replace(params=jax.jit(create, out_shardings=places)(random_key))


def load_init(settings: Supervised, mesh: Mesh, random_key: jax.Array | None = None) -> Pretrained:
    """Load the checkpoint that a supervised stage starts from (see `load`)."""
    lora = settings.lora
    unread.check(settings)
    check_lora(lora)
    check_units(settings.optimizer, settings.init)
    refuse_revised(settings.init, "config.init")
    return load(
        settings.init,
        settings.model,
        mesh,
        random_key=random_key,
        keep_adapter=lora.rank > 0,
        int8=lora.int8,
        activated=lora.activated,
        chat_template=settings.data.chat_template,
    )


def check_units(optimizer: OptimizerConfig, path: str) -> None:
    """Raise UserError for a file of units that is not of the checkpoint at `path`."""
    if optimizer.frozen_units or optimizer.only_units:
        units.check(optimizer, fingerprint.of(path))


def trained_part(settings: LoraConfig, model: Pretrained, mesh: Mesh, key: jax.Array) -> tuple[dict, dict | None]:
    """The trained part of a checkpoint and the frozen one under it: its backbone and nothing, or an adapter
    (its own, if it has one) and its backbone.

    Raises:
        UserError: as `fresh_adapter`, or a checkpoint with an adapter of another rank, scale or place, or one that acts elsewhere.
    """
    if settings.rank == 0:
        refuse_activated(model)
        return {"backbone": model.params}, None
    if model.adapter is None:
        return {"adapter": fresh_adapter(settings, model, mesh, key)}, model.params
    check_adapter(settings, model)
    if settings.activated != bool(model.config.activation):
        raise UserError(
            f"{model.path} has an adapter that acts {'from the end of the prompt on' if model.config.activation else 'everywhere'}: set "
            f"config.lora.activated={bool(model.config.activation)}"
        )
    return {"adapter": model.adapter}, model.params


def fresh_adapter(settings: LoraConfig, model: Pretrained, mesh: Mesh, key: jax.Array) -> dict:
    """An adapter that changes nothing yet, over a checkpoint's backbone.

    Raises:
        UserError: nothing to target, or targets that could not be exported.
    """
    fresh = lora.init(settings, model.params, key)
    if fresh.keys() != {"text"}:
        raise UserError(
            f"config.lora.targets {settings.targets} reach outside the decoder: an adapter of PEFT is over text/ alone"
        )
    return rules.place(fresh, mesh)


def load_shape(path: str, model: ModelConfig, chat_template: str = "") -> Pretrained:
    """Config and processor of a checkpoint, without its weights; `chat_template` as in DataConfig."""
    config, processor = load_config_and_processor(path, dtype=model.param_dtype, remat=model.remat, scan_unroll=unroll(model))
    return Pretrained(computed_in(config, model), {}, {}, templates.override(processor, chat_template), Path(path))


def unroll(model: ModelConfig) -> int:
    return model.scan_unroll or UNROLLED


def computed_in(config: VLMConfig, model: ModelConfig) -> VLMConfig:
    """The architecture of a checkpoint, run as the settings say."""
    choose(model.attention, "config.model.attention", *kernels.KERNELS)
    return dataclasses.replace(config, dtype=model.dtype, attention=model.attention, logp_chunk=model.logp_chunk)


def frozen_in(dtype: str, tree: dict) -> dict:
    """A tree whose backbone nobody trains, in the dtype of its activations: kernels are cast to it wherever they are used."""
    if "backbone" not in tree or jax.tree.leaves(tree["backbone"])[0].dtype == dtype:
        return tree
    return tree | {"backbone": jax.tree.map(lambda leaf: leaf.astype(dtype), tree["backbone"])}


def copy(tree: Any) -> Any:
    """A copy with buffers of its own: a donated tree must share none with a frozen one."""
    return jax.tree.map(jnp.copy, tree)


def vocabulary(model: Pretrained) -> Vocabulary:
    """Pad, end and never-sampled ids of a checkpoint: those of its `Codec`, and every row of its vocabulary without a token."""
    codec = chat.codec(model.processor)
    without = set(range(model.config.text.vocab)) - set(codec.tokenizer.get_vocab().values())
    never = {*codec.never_ids, *without, model.config.image_token} - {None, *codec.stop_ids}
    return Vocabulary(pad=codec.pad_id, eos=codec.stop_ids, never=tuple(sorted(never)))


def check_lora(lora: LoraConfig) -> None:
    """Raise UserError for what a supervised stage without adapters cannot do."""
    if lora.int8 and not lora.rank:
        raise UserError("config.lora.int8 is for a backbone that stands still: set config.lora.rank above 0 too")
    if lora.activated and not lora.rank:
        raise UserError("config.lora.activated says where adapters act, and there are none: set config.lora.rank above 0 too")


def check_adapter(settings: LoraConfig, model: Pretrained) -> None:
    """Raise UserError where a checkpoint's adapter has another rank, scale or place than settings say: it keeps its own."""
    found = dict(rules.leaves(model.adapter))
    rank = next(leaf.shape[1] for path, leaf in found.items() if path.endswith("lora_a"))
    if rank != settings.rank:
        raise UserError(
            f"{model.path} has an adapter of rank {rank}: set config.lora.rank={rank}, or merge it with srlhfv export"
        )
    scales = {float(scale) for path, leaf in found.items() if path.endswith("lora_scale") for scale in np.unique(leaf) if scale}
    alphas = sorted(scale * rank for scale in scales)  # several: an adapter from elsewhere, with patterns
    if not any(math.isclose(settings.alpha, alpha, rel_tol=1e-5) for alpha in alphas):
        named = " or ".join(f"{alpha:g}" for alpha in alphas[:5])
        raise UserError(f"{model.path} has an adapter of alpha {named}: set config.lora.alpha to it, got {settings.alpha:g}")
    places = {path.removesuffix("/lora_a") for path in found if path.endswith("lora_a")}
    targets = {path.removesuffix("/kernel") for path in lora.targeted(settings, model.params)}
    if places != targets:
        odd = ", ".join(f"{'not ' if path in targets else ''}over {path}" for path in sorted(places ^ targets)[:5])
        raise UserError(
            f"{model.path} has an adapter {odd}, and config.lora.targets say otherwise: name the same kernels, or merge it with "
            "srlhfv export"
        )


def refuse_activated(model: Pretrained) -> None:
    """Raise UserError for an activated adapter in a model that is trained as a whole."""
    if model.config.activation:
        raise UserError(
            f"{model.path} is an activated adapter, which no weights can be merged with: train it as an adapter "
            "(config.lora.rank, or config.sharing='adapters')"
        )
