"""Supervised stages for `srlhfv plan`: their one function compiled from its `Objective`, and the arithmetic of its trees."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from srlhfv_jax.config import PreferenceConfig, ScoresConfig, Supervised
from srlhfv_jax.guard.stage import GUARD
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.parallel import hosts
from srlhfv_jax.parallel.mesh import make_mesh
from srlhfv_jax.plan import programs, shapes
from srlhfv_jax.plan.programs import Plan
from srlhfv_jax.plan.stage import PlannedStage
from srlhfv_jax.preference.stage import PREFERENCE
from srlhfv_jax.runs import checkpoints
from srlhfv_jax.supervised import train as supervised
from srlhfv_jax.supervised.stages import STAGES
from srlhfv_jax.training import optimizer as optimizers, state as states, units

OBJECTIVES = {stage.settings.stage: stage.objective for stage in (*STAGES, PREFERENCE, GUARD)}


def compile_step(settings: Supervised, config: VLMConfig, mesh: Mesh, limit: int) -> Plan:
    """State by tree, and the one function of a supervised stage."""
    checkpoints.check_lora(settings.lora)
    hosts.check_batch(settings.data.batch_size, mesh, "a batch of")
    tree, base = {"backbone": shapes.backbone(config, settings.model.param_dtype, mesh)}, None
    if settings.lora.rank:
        base = shapes.base(config, settings.lora, mesh)
        tree = {"adapter": shapes.adapter(settings.lora, base, mesh)}
    objective = OBJECTIVES[settings.stage]()(config, settings)
    tree |= {name: shapes.placed(heads, mesh) for name, heads in objective.heads.items()}
    parts = [
        shapes.batch(kind, config, dataclasses.replace(settings, data=data), mesh, categories=objective.categories)
        for kind, data in objective.rows
    ]
    batch = parts[0] if len(parts) == 1 else tuple(parts)
    optimizer = optimizers.make(settings.optimizer, tree, settings.steps)
    opt_state = shapes.optimizer_state(optimizer, tree, mesh)
    state = {"trained": shapes.size(tree), "optimizer": shapes.size(opt_state)}
    state |= {} if base is None else {"base": shapes.size(base)}
    start = states.TrainState(tree, opt_state, shapes.replicated(jax.ShapeDtypeStruct((), np.int32), mesh), ())
    trainable, places = optimizers.trainable(settings.optimizer, tree), states.places(tree, optimizer, mesh)
    still = units.still(settings.optimizer, tree)
    first_pass = objective.first_pass
    update = supervised.make_update(
        objective.loss, optimizer, trainable, settings.microbatches, places, still=still, first_pass=first_pass
    )
    program, _ = programs.compile_function("update", update, 0, limit, 1, start, base, batch)
    return Plan(state, [program])


def state_bytes(settings: Supervised, config: VLMConfig, devices: Sequence[jax.Device]) -> tuple[int, int]:
    """Trees and optimizer states on one device, of the backbone alone, twice: there is no rollout during which some rest. Exact."""
    mesh = make_mesh(settings.mesh, devices)
    trees = trained = {"backbone": {"backbone": shapes.backbone(config, settings.model.param_dtype, mesh)}}
    if settings.lora.rank:
        base = shapes.base(config, settings.lora, mesh)
        trained = {"adapter": {"adapter": shapes.adapter(settings.lora, base, mesh)}}
        trees = trained | {"base": {"backbone": base}}
    rates = dataclasses.replace(settings.optimizer, head_learning_rate=0.0, part_rates=())  # heads are left out
    (tree,) = trained.values()
    everything = shapes.size(trees) + shapes.size(shapes.optimizer_state(optimizers.make(rates, tree, 1), tree, mesh))
    return everything, everything


SUPERVISED = PlannedStage(
    compile=compile_step,
    state_bytes=state_bytes,
    passes=lambda settings: (1, 0),
    sequences=lambda settings: 2 if isinstance(settings, ScoresConfig | PreferenceConfig) else 1,  # a pair is two
    adapters=lambda settings: settings.lora.rank > 0,
)
