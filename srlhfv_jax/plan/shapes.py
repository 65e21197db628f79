"""Everything that the functions of a run take, as shapes in their shards: trees of the roles, optimizer states, batches.

For `plan/memory.py`, which compiles from them. Nothing is loaded; a batch has the largest pictures that its settings allow.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from srlhfv_jax.batches import GuardBatch, Images, PairBatch, PreferenceBatch, PromptBatch, SupervisedBatch, Unpaired
from srlhfv_jax.config import LoraConfig, PPOLagConfig, SFTConfig
from srlhfv_jax.data.families import FAMILIES
from srlhfv_jax.data.taxonomies import LEVELS
from srlhfv_jax.errors import UserError
from srlhfv_jax.hf.load import Pretrained
from srlhfv_jax.models import lora, quantize, score_heads, vlm
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.models.trees import BASE
from srlhfv_jax.parallel import hosts, rules
from srlhfv_jax.ppo_lag import roles
from srlhfv_jax.ppo_lag.load import Models
from srlhfv_jax.ppo_lag.roles import trained_trees

NATIVE_PIXELS = 1_003_520  # of a picture where its size is free, unless data.max_pixels limits it: 1,280 features of Qwen2-VL


def models(settings: PPOLagConfig, config: VLMConfig, mesh: Mesh) -> Models:
    """Every tree of the run as shapes in their shards; towers are taken to be equal, as they are when all stages froze theirs."""
    places = roles.of_settings(settings)
    full = backbone(config, settings.model.param_dtype, mesh)
    frozen_backbone = cast(full, config.dtype)
    trees: dict[str, dict] = {}
    for name in dict.fromkeys(place.tree for place in places.values()):
        if name == "reference" and settings.moving_reference.moves:
            continue  # in the state
        if settings.sharing == "adapters":
            tree = {"adapter": adapter(settings.lora, full, mesh)}
        else:
            tree = {"backbone": full if name in trained_trees(places) else frozen_backbone}
        own = tuple(dict.fromkeys(place.head for place in places.values() if place.tree == name and place.head is not None))
        if own:
            scorer = {"heads": jax.eval_shape(lambda own=own: score_heads.init(config, own, jax.random.key(0)))}
            scorer = jax.eval_shape(score_heads.critic, scorer) if name in trained_trees(places) else scorer
            tree["heads"] = placed(scorer["heads"], mesh)
        trees[name] = tree
    trained = {name: trees.pop(name) for name in trained_trees(places)}
    frozen = trees | ({BASE: {"backbone": base(config, settings.lora, mesh)}} if settings.sharing == "adapters" else {})
    return Models(Pretrained(config, {}, {}, None, None), places, trained, frozen, frozenset())


def backbone(config: VLMConfig, dtype: str, mesh: Mesh) -> Any:
    return cast(placed(jax.eval_shape(lambda: vlm.init(config, jax.random.key(0))), mesh), dtype)


def base(config: VLMConfig, settings: LoraConfig, mesh: Mesh) -> Any:
    """The frozen backbone under adapters."""
    whole = backbone(config, config.dtype, mesh)
    return placed(jax.eval_shape(quantize.int8, whole), mesh) if settings.int8 else whole


def adapter(settings: Any, backbone: Any, mesh: Mesh) -> Any:
    if not settings.rank:
        settings = dataclasses.replace(settings, rank=16)  # of the adapters that the run would load
    return placed(jax.eval_shape(lambda: lora.init(settings, backbone, jax.random.key(0))), mesh)


def optimizer_state(optimizer: Any, tree: Any, mesh: Mesh) -> Any:
    return placed(jax.eval_shape(optimizer.init, tree), mesh)


def prompts(config: VLMConfig, settings: Any, mesh: Mesh) -> PromptBatch:
    """A batch as the loader would make it, every row with one picture."""
    B, P = settings.data.batch_size, settings.data.prompt_length
    axes = (3,) if config.text.rope.sections else ()
    row = hosts.row_sharding(mesh)

    def array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((B, *shape), dtype, sharding=row)

    images, vision = None, config.vision
    if vision is not None and vision.image_size:
        tiles = FAMILIES[config.family].tiles
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


def scores(settings: PPOLagConfig, mesh: Mesh) -> jax.ShapeDtypeStruct:
    """A number for each row of a rollout."""
    return jax.ShapeDtypeStruct((settings.data.batch_size,), jnp.float32, sharding=hosts.row_sharding(mesh))


def answers(config: VLMConfig, settings: Any, mesh: Mesh) -> SupervisedBatch:
    questions, R = prompts(config, settings, mesh), settings.data.response_length

    def wider(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((x.shape[0], x.shape[1] + R, *x.shape[2:]), x.dtype, sharding=x.sharding)

    mask_BR = jax.ShapeDtypeStruct((settings.data.batch_size, R), bool, sharding=hosts.row_sharding(mesh))
    return SupervisedBatch(*map(wider, questions[:3]), mask_BR, questions.images)


def batch(
    kind: str, config: VLMConfig, settings: Any, mesh: Mesh, *, categories: int = 0
) -> SupervisedBatch | GuardBatch | PairBatch | PreferenceBatch:
    """A batch of a kind of rows (data/loader.py)."""
    match kind:
        case "supervised":
            rows = answers(config, settings, mesh)
            if isinstance(settings, SFTConfig) and settings.targets.relabels:
                label_BR = jax.ShapeDtypeStruct(rows.response_mask_BR.shape, jnp.int32, sharding=rows.response_mask_BR.sharding)
                return rows._replace(label_BR=label_BR, loss_mask_BR=rows.response_mask_BR)
            return rows
        case "pairs":
            return pairs(config, settings, mesh)
        case "preference":
            return preference(config, settings, mesh)
        case "guard":
            return judged(config, settings, categories, mesh)
        case _:
            raise ValueError(f"there are no shapes of rows of kind {kind!r}")


def judged(config: VLMConfig, settings: Any, categories: int, mesh: Mesh) -> GuardBatch:
    """Questions with answers, and what is known of their severity and categories."""
    B, row = settings.data.batch_size, hosts.row_sharding(mesh)
    labels = (jax.ShapeDtypeStruct((B, 2, size), bool, sharding=row) for size in (LEVELS,) * 2 + (categories,) * 2)
    return GuardBatch(*answers(config, settings, mesh)[:5], *labels)


def pairs(config: VLMConfig, settings: Any, mesh: Mesh) -> PairBatch:
    """The answers twice, and their labels."""
    side_B, weight_B, sign_BS = _labels(settings, mesh)
    return PairBatch(*_both_answers(config, settings, mesh), side_B, weight_B, side_B, weight_B, sign_BS)


def preference(config: VLMConfig, settings: Any, mesh: Mesh) -> PreferenceBatch:
    """The answers twice, and what a loss reads of them."""
    side_B, number_B, number_BS = _labels(settings, mesh)
    numbers = number_B, side_B, number_BS, number_BS, *[number_B] * 5
    rows = PreferenceBatch(*_both_answers(config, settings, mesh), *numbers)
    if settings.tokens.scorer:
        rows = rows._replace(keep_BSR=rows.response_mask_BSR)
    if settings.loss == "kto":
        other = answers(config, settings, mesh)._replace(images=None)
        rows = rows._replace(unpaired=Unpaired(other, number_B, number_B, number_B))
    return rows


def _both_answers(config: VLMConfig, settings: Any, mesh: Mesh) -> tuple[Any, ...]:
    """The first five fields of batches of pairs."""
    single, B = answers(config, settings, mesh), settings.data.batch_size
    row = hosts.row_sharding(mesh)
    both = [jax.ShapeDtypeStruct((B, 2, *x.shape[1:]), x.dtype, sharding=row) for x in single[:4]]
    return (*both, single.images)


def _labels(settings: Any, mesh: Mesh) -> tuple[jax.ShapeDtypeStruct, ...]:
    """A side, a number, and a number for each side, of every pair."""
    B, row = settings.data.batch_size, hosts.row_sharding(mesh)
    shapes = ((B,), jnp.int32), ((B,), jnp.float32), ((B, 2), jnp.float32)
    return tuple(jax.ShapeDtypeStruct(shape, dtype, sharding=row) for shape, dtype in shapes)


def placed(shapes: Any, mesh: Mesh) -> Any:
    places = rules.shardings(shapes, mesh)
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places)


def replicated(shapes: Any, mesh: Mesh) -> Any:
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), shapes)


def cast(tree: Any, dtype: str) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype), sharding=x.sharding), tree)


def size(tree: Any) -> int:
    """On each device."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
