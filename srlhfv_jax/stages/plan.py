"""What a run would need on a TPU slice that is not here: every jitted function compiled for it, from shapes alone.

    persistent state by tree   parameters, optimizer state, frozen trees: bytes on each device
    peak by function           arguments + outputs - donated + temporaries, as the compiler says, and what is resident besides

Nothing is loaded and nothing is run. The compiler is the real one: what it refuses would not run either.
"""

import dataclasses
import functools
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from srlhfv_jax.batches import Images, PairBatch, PromptBatch, SupervisedBatch
from srlhfv_jax.config import ModelConfig, PPOLagConfig, ScoresConfig, SFTConfig
from srlhfv_jax.errors import UserError
from srlhfv_jax.hf.load import Pretrained
from srlhfv_jax.hf.published import CONFIGS, published
from srlhfv_jax.losses import lagrangian
from srlhfv_jax.models import heads, lora, roles, vlm
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.parallel import hosts, rules
from srlhfv_jax.rollout.generate import Vocabulary
from srlhfv_jax.stages import scores, setup, sft, supervised
from srlhfv_jax.stages.ppo_lag import Iteration, Models
from srlhfv_jax.training import optimizer as optimizers, ppo, state as states

TILES = {
    "llava": 1,
    "llava_next": 5,
    "smolvlm": 17,
    "idefics3": 17,
    "gemma3": 1,
}  # of a picture: as many as the family cuts at most
NATIVE_PIXELS = 1_003_520  # of a picture where its size is free, unless data.max_pixels limits it: 1,280 features of Qwen2-VL


class Compiled(NamedTuple):
    """One function on one device."""

    name: str
    seconds: float  # of compiling
    peak: int  # bytes: arguments + outputs - aliased + temporaries
    arguments: int  # bytes
    temporaries: int
    beside: int  # bytes of the run's trees that are no arguments, and resident all the same
    fits: bool


def shape(named: str, model: ModelConfig) -> VLMConfig:
    """Of a published checkpoint, or of a folder."""
    if named in CONFIGS:
        config = published(named, remat=model.remat, scan_unroll=setup.unroll(model))
        return dataclasses.replace(config, dtype=model.dtype, attention=model.attention)
    return setup.load_shape(named, model).config


def ppo_lag(settings: PPOLagConfig, config: VLMConfig, mesh: Mesh, limit: int) -> tuple[dict[str, int], list[Compiled]]:
    """State by tree, and generate, score and update, compiled in that order: each takes what the one before gives."""
    hosts.check_batch(settings.data.batch_size // settings.ppo.minibatches, mesh, "a PPO minibatch of")
    models = _models(settings, config, mesh)
    vocabulary = Vocabulary(pad=0, eos=(2,), never=() if config.image_token is None else (config.image_token,))
    iteration = Iteration(settings, models, mesh, vocabulary)
    params = models.trained
    opt_state = {name: _optimizer_state(iteration.optimizers[name], tree, mesh) for name, tree in params.items()}
    state = {name: _bytes(tree) for name, tree in (params | models.frozen).items()}
    state |= {f"{name}.optimizer": _bytes(tree) for name, tree in opt_state.items()}
    everything = sum(state.values())
    prompts = _prompts(config, settings, mesh)
    key, images = _replicated(jax.eval_shape(lambda: jax.random.key(0)), mesh), prompts.images
    controller = _replicated(jax.eval_shape(lambda: lagrangian.init(settings.constraint)), mesh)
    compiled = []

    def compile_one(name: str, function: Callable, resident: Mapping[str, Any], *arguments: Any) -> Any:
        found, outputs = _compile(name, function, everything - _bytes(resident), limit, *arguments)
        compiled.append(found)
        return outputs

    policy = models.backbone(params["policy"])
    base = {} if models.base is None else {"base": models.base}
    rollout = compile_one("generate", iteration.generate, {"policy": params["policy"]} | base, policy, prompts, key)
    trees = iteration.scorers(params)
    experience, controller, metrics = compile_one("score", iteration.score, trees, trees, rollout, images, controller)
    ptx = _answers(config, settings, mesh) if settings.ptx.coef > 0 else None
    arguments = (params, opt_state, experience, images, metrics["lambda"], key, ptx, models.base)
    compile_one("update", iteration.update, {"params": params, "opt_state": opt_state} | base, *arguments)
    return state, compiled


def supervised_step(
    settings: SFTConfig | ScoresConfig, config: VLMConfig, mesh: Mesh, limit: int
) -> tuple[dict[str, int], list[Compiled]]:
    """The same of a supervised stage: its one function."""
    hosts.check_batch(settings.data.batch_size, mesh, "a batch of")
    tree, base = {"backbone": _backbone(config, settings.model.param_dtype, mesh)}, None
    if settings.lora.rank:
        base = _backbone(config, config.dtype, mesh)
        tree = {"adapter": _adapter(settings.lora, base, mesh)}
    if isinstance(settings, ScoresConfig):
        shapes = jax.eval_shape(lambda: heads.init(config, settings.heads, jax.random.key(0)))
        tree |= {"heads": _placed(shapes, mesh)}
        loss, batch = functools.partial(scores.loss, config, settings), _pairs(config, settings, mesh)
    else:
        loss, batch = functools.partial(sft.loss, config), _answers(config, settings, mesh)
    optimizer = optimizers.make(settings.optimizer, tree, settings.steps)
    opt_state = _optimizer_state(optimizer, tree, mesh)
    state = {"trained": _bytes(tree), "optimizer": _bytes(opt_state)} | ({} if base is None else {"base": _bytes(base)})
    whole = states.TrainState(tree, opt_state, _replicated(jax.ShapeDtypeStruct((), jnp.int32), mesh), ())
    update = supervised.make_update(loss, optimizer, optimizers.trainable(settings.optimizer, tree), settings.microbatches)
    found, _ = _compile("update", update, 0, limit, whole, base, batch)
    return state, [found]


def result(state: Mapping[str, int], compiled: list[Compiled], limit: int) -> dict[str, Any]:
    """The flat numbers of result.json; GB are 10^9 bytes."""
    free = min(1 - (one.peak + one.beside) / limit for one in compiled)
    return {
        "fits": all(one.fits for one in compiled),
        "hbm_free_fraction": free,
        "hbm_limit_gb": limit / 1e9,
        **{f"state_gb.{name}": size / 1e9 for name, size in state.items()},
        **{f"peak_hbm_gb.{one.name}": (one.peak + one.beside) / 1e9 for one in compiled},
        **{f"compile_s.{one.name}": one.seconds for one in compiled},
    }


def table(numbers: Mapping[str, Any], compiled: list[Compiled]) -> Iterator[str]:
    """The same for people."""
    limit = numbers["hbm_limit_gb"]
    yield "state on each device"
    for name, value in numbers.items():
        if name.startswith("state_gb."):
            yield f"  {name.removeprefix('state_gb.'):<22}{value:>8.2f} GB"
    yield f"peak on each device, of {limit:.2f} GB"
    for one in compiled:
        used = (one.peak + one.beside) / 1e9
        parts = (
            f"arguments {one.arguments / 1e9:.2f}, temporaries {one.temporaries / 1e9:.2f}, other trees {one.beside / 1e9:.2f}"
        )
        verdict = "" if one.fits else f"   DOES NOT FIT: {used - limit:.2f} GB too many"
        yield f"  {one.name:<22}{used:>8.2f} GB   ({parts}; compiled in {one.seconds:.0f} s){verdict}"
    yield f"fits: {'yes' if numbers['fits'] else 'no'}, {max(numbers['hbm_free_fraction'], 0):.0%} of the memory free"


# What the compiler says of a program that does not fit: of all it needs, or of temporaries, which come on top of arguments.
ALL = re.compile(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm")
TEMPORARIES = re.compile(r"required for HLO temporaries \(([\d.]+)([KMGT])\) exceeds")


def _compile(name: str, function: Callable, beside: int, limit: int, *arguments: Any) -> tuple[Compiled, Any]:
    """Compile one function; gives what it would return, with the shardings that the compiler chose."""
    began = time.monotonic()
    lowered = function.lower(*arguments)
    outputs = lowered.out_info
    try:
        done = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        found = TEMPORARIES.search(str(error)) or ALL.search(str(error))
        if found is None:
            raise UserError(f"the TPU compiler refuses {name}: {str(error).strip().splitlines()[0]}") from error
        said, size = int(float(found[1]) * 1024 ** ("KMGT".index(found[2]) + 1)), sum(map(_bytes, arguments))
        peak = said + size if found.re is TEMPORARIES else said
        spread = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_rows(x, arguments)), outputs)
        return Compiled(name, time.monotonic() - began, peak, size, peak - size, beside, False), spread
    memory = done.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    outputs = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), outputs, done.output_shardings
    )
    found = Compiled(
        name,
        time.monotonic() - began,
        peak,
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        beside,
        peak + beside <= limit,
    )
    return found, outputs


def _rows(leaf: Any, arguments: Any) -> NamedSharding:
    """Where a function that does not fit left its outputs unplaced: rows over the mesh."""
    mesh = next(x.sharding.mesh for x in jax.tree.leaves(arguments))
    return hosts.row_sharding(mesh) if leaf.ndim else NamedSharding(mesh, PartitionSpec())


def _models(settings: PPOLagConfig, config: VLMConfig, mesh: Mesh) -> Models:
    """Every tree of the run as shapes in their shards; towers are taken to be equal, as they are when all stages froze theirs."""
    places = roles.assign(settings.sharing)
    full = _backbone(config, settings.model.param_dtype, mesh)
    frozen_backbone = _cast(full, config.dtype)
    trees: dict[str, dict] = {}
    for name in dict.fromkeys(place.tree for place in places.values()):
        if settings.sharing == "adapters":
            tree = {"adapter": _adapter(settings.lora, full, mesh)}
        else:
            tree = {"backbone": full if name in ppo.trained_trees(places) else frozen_backbone}
        own = tuple(place.head for place in places.values() if place.tree == name and place.head is not None)
        if own:
            shapes = jax.eval_shape(lambda own=own: heads.init(config, own, jax.random.key(0)))
            tree["heads"] = _placed(shapes, mesh)
        trees[name] = tree
    trained = {name: trees.pop(name) for name in ppo.trained_trees(places)}
    frozen = trees | ({roles.BASE: {"backbone": frozen_backbone}} if settings.sharing == "adapters" else {})
    return Models(Pretrained(config, {}, {}, None, None), places, trained, frozen, frozenset())


def _backbone(config: VLMConfig, dtype: str, mesh: Mesh) -> Any:
    return _cast(_placed(jax.eval_shape(lambda: vlm.init(config, jax.random.key(0))), mesh), dtype)


def _adapter(settings: Any, backbone: Any, mesh: Mesh) -> Any:
    if not settings.rank:
        settings = dataclasses.replace(settings, rank=16)  # of the adapters that the run would load
    return _placed(jax.eval_shape(lambda: lora.init(settings, backbone, jax.random.key(0))), mesh)


def _optimizer_state(optimizer: Any, tree: Any, mesh: Mesh) -> Any:
    return _placed(jax.eval_shape(optimizer.init, tree), mesh)


def _prompts(config: VLMConfig, settings: Any, mesh: Mesh) -> PromptBatch:
    """A batch as the loader would make it, every row with one picture."""
    B, P = settings.data.batch_size, settings.data.prompt_length
    axes = (3,) if config.text.rope.sections else ()
    row = hosts.row_sharding(mesh)

    def array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((B, *shape), dtype, sharding=row)

    images, vision = None, config.vision
    if vision is not None and vision.image_size:
        tiles = TILES[config.family]
        features = tiles * vision.features
        if features >= P:
            raise UserError(f"config.data.prompt_length {P} has no room for the {features} features of {tiles} tiles")
        order = array((features,), jnp.int32) if config.pinpoints else None
        images = Images(array((tiles * vision.tile_patches, vision.patch_values), jnp.float32), order, None, None)
    elif vision is not None:
        pixels = settings.data.max_pixels or NATIVE_PIXELS
        N = math.floor(pixels / (vision.patch * vision.merge) ** 2) * vision.merge**2
        if N // vision.merge**2 >= P:
            raise UserError(
                f"config.data.prompt_length {P} has no room for the {N // vision.merge**2} features of a picture of {pixels} pixels: "
                "set config.data.max_pixels"
            )
        images = Images(array((N, vision.patch_values), jnp.float32), None, array((N, 2), jnp.int32), array((N,), jnp.int32))
    return PromptBatch(array((P,), jnp.int32), array((P, *axes), jnp.int32), array((P,), bool), images, array((), jnp.int32))


def _answers(config: VLMConfig, settings: Any, mesh: Mesh) -> SupervisedBatch:
    prompts, R = _prompts(config, settings, mesh), settings.data.response_length

    def wider(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((x.shape[0], x.shape[1] + R, *x.shape[2:]), x.dtype, sharding=x.sharding)

    mask_BR = jax.ShapeDtypeStruct((settings.data.batch_size, R), bool, sharding=hosts.row_sharding(mesh))
    return SupervisedBatch(*map(wider, prompts[:3]), mask_BR, prompts.images)


def _pairs(config: VLMConfig, settings: Any, mesh: Mesh) -> PairBatch:
    """The answers twice, and their labels."""
    one, B = _answers(config, settings, mesh), settings.data.batch_size
    row = hosts.row_sharding(mesh)
    both = [jax.ShapeDtypeStruct((B, 2, *x.shape[1:]), x.dtype, sharding=row) for x in one[:4]]
    side_B, weight_B = (jax.ShapeDtypeStruct((B,), dtype, sharding=row) for dtype in (jnp.int32, jnp.float32))
    sign_BS = jax.ShapeDtypeStruct((B, 2), jnp.float32, sharding=row)
    return PairBatch(*both, one.images, side_B, weight_B, side_B, weight_B, sign_BS)


def _placed(shapes: Any, mesh: Mesh) -> Any:
    places = rules.shardings(shapes, mesh)
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places)


def _replicated(shapes: Any, mesh: Mesh) -> Any:
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), shapes)


def _cast(tree: Any, dtype: str) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype), sharding=x.sharding), tree)


def _bytes(tree: Any) -> int:
    """On each device."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
