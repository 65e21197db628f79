"""PPO-Lagrangian for `srlhfv plan`: every call of one iteration compiled, and the arithmetic of its rollout and its trees."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from srlhfv_jax.config import PPOLagConfig
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.models.trees import BASE
from srlhfv_jax.parallel.mesh import make_mesh
from srlhfv_jax.plan import programs, shapes
from srlhfv_jax.plan.programs import Plan
from srlhfv_jax.plan.stage import PlannedStage, item, powers
from srlhfv_jax.ppo_lag import check, load
from srlhfv_jax.ppo_lag.iteration import Call, Iteration, Keys, drive, initial_extra
from srlhfv_jax.rollout import layout
from srlhfv_jax.rollout.generate import Vocabulary
from srlhfv_jax.training import optimizer as optimizers, state as states


def compile_calls(settings: PPOLagConfig, config: VLMConfig, mesh: Mesh, limit: int) -> Plan:
    """State by tree, and reshard (if the rollout has a layout of its own), generate, score and update, compiled in that order:
    each takes what the one before gives. What rests on the host counts where it is an argument, and in `load`: every tree but the
    optimizers' is on the devices once, before it goes to rest."""
    check.check_lora(settings)
    check.check_groups(settings)
    check.check_parts(settings)
    check.check_rows(settings, mesh)
    models, rollout = shapes.models(settings, config, mesh), settings.rollout
    vocabulary = Vocabulary(pad=0, eos=(2,), never=() if config.image_token is None else (config.image_token,))
    on_devices = dataclasses.replace(settings, rollout=dataclasses.replace(rollout, offload="none"))  # shapes do not move
    iteration = Iteration(on_devices, models, mesh, vocabulary)
    trees = models.trained | models.frozen
    opt_state = {name: shapes.optimizer_state(iteration.optimizers[name], tree, mesh) for name, tree in models.trained.items()}
    state = {name: shapes.size(tree) for name, tree in trees.items()}
    state |= {f"{name}.optimizer": shapes.size(tree) for name, tree in opt_state.items()}
    if settings.moving_reference.moves:
        state["reference"] = state["policy"]
    idle = load.idle_trees(settings, models)
    compiled = [programs.load(shapes.size(trees), limit)] if idle else []
    idle |= {f"{name}.optimizer" for name in opt_state} if rollout.offload != "none" else set()
    staying = sum(size for name, size in state.items() if name not in idle)
    moving = {"reference"} if settings.moving_reference.moves else set()
    moves = layout.moves(models.backbone(models.trained["policy"]), iteration.rollout_layout)
    read = {
        "generate": set(),
        "score": models.frozen.keys() | iteration.scoring_trees(models.trained).keys() | moving,
        "update": models.trained.keys() | {f"{name}.optimizer" for name in opt_state} | {BASE},
    }

    def compile_call(call: Call) -> Any:
        """Compile a call and give the shapes that it would return. Trees of the run that it reads and that do not rest are no bytes beside it."""
        if call.name == "functions":  # on the host
            return dict.fromkeys(settings.by_functions, shapes.scores(settings, mesh)), {}
        if call.name == "resample":  # more of generate and score
            return call.arguments[4], {}
        if call.name == "reshard":
            compiled.extend([programs.reshard(moves, staying, limit)] if moves else [])
            return iteration.rollout_layout
        resident = sum(size for name, size in state.items() if name in read[call.name] - idle)
        if call.name == "generate":
            resident = shapes.size(models.backbone(models.trained["policy"])) - shapes.size([x for x, _ in moves])
        loop = settings.data.response_length if call.name == "generate" else 1
        program, outputs = programs.compile_function(call.name, call.function, staying - resident, limit, loop, *call.arguments)
        compiled.append(program)
        return outputs

    extra = shapes.replicated(jax.eval_shape(lambda: initial_extra(settings)), mesh)
    if settings.moving_reference.moves:
        extra = extra._replace(reference=models.trained["policy"])
    start = states.TrainState(models.trained, opt_state, 0, extra)
    ptx = shapes.answers(config, settings, mesh) if settings.ptx.coef > 0 else None
    key = shapes.replicated(jax.eval_shape(lambda: jax.random.key(0)), mesh)
    one_each = dataclasses.replace(settings, data=dataclasses.replace(settings.data, batch_size=settings.prompts))
    drive(iteration.calls(start, shapes.prompts(config, one_each, mesh), ptx, Keys(key, key)), compile_call)
    return Plan(state, compiled)


def state_bytes(settings: PPOLagConfig, config: VLMConfig, devices: Sequence[jax.Device]) -> tuple[int, int]:
    """Trees and optimizer states on one device while a rollout samples, and while the update runs. Exact."""
    mesh = make_mesh(settings.mesh, devices)
    models = shapes.models(settings, config, mesh)
    trees, idle = models.trained | models.frozen, load.idle_trees(settings, models)
    rates = {name: settings.critic_optimizer for name in models.trained} | {"policy": settings.policy_optimizer}
    moments = sum(
        shapes.size(shapes.optimizer_state(optimizers.make(rates[name], tree, 1), tree, mesh))
        for name, tree in models.trained.items()
    )
    staying = {name: tree for name, tree in trees.items() if name not in idle}
    if settings.moving_reference.moves:
        staying["reference"] = models.trained["policy"]
    sampling = shapes.size(staying) + (moments if settings.rollout.offload == "none" else 0)
    return sampling, shapes.size(staying | models.trained) + moments


def copied_bytes(settings: PPOLagConfig, config: VLMConfig, devices: Sequence[jax.Device]) -> int:
    """Bytes of a rollout's copies of weights (rollout/layout.py), on one device."""
    mesh = make_mesh(settings.mesh, devices)
    models = shapes.models(settings, config, mesh)
    policy = models.backbone(models.trained["policy"])
    targets = layout.target(policy, mesh, config.dtype, settings.rollout.layout)
    return shapes.size([target for _, target in layout.moves(policy, targets)])


def cache_bytes(settings: PPOLagConfig, config: VLMConfig) -> float:
    """Keys and values of one part of a rollout, on one device: of each prompt once, and of all answers to it; or of all slots."""
    text, mesh, data = config.text, settings.mesh, settings.data
    heads = math.lcm(text.kv_heads, mesh.tensor) / mesh.tensor
    prompts = settings.prompts / settings.rollout.microbatches / (mesh.data * mesh.fsdp)
    tokens = data.prompt_length + settings.ppo.group_size * data.response_length
    if settings.rollout.slots:
        prompts, tokens = settings.rollout.slots / (mesh.data * mesh.fsdp), data.prompt_length + data.response_length
    return 2 * text.layers * prompts * heads * tokens * text.head_dim * item(config)


def decoding(settings: PPOLagConfig, config: VLMConfig, split: float) -> tuple[float, int]:
    """Bytes that decoding reads, and how often it gathers the weights."""
    R, parts = settings.data.response_length, settings.rollout.microbatches
    return parts * R * (split + cache_bytes(settings, config)), parts * R if settings.rollout.layout == "training" else 1


def passes(settings: PPOLagConfig) -> tuple[int, float]:
    """Policy and critic, prefill and three of scoring; without critics one of each less, and a prompt is read once for its group."""
    return (2, 4) if settings.ppo.has_critics else (1, 2 + 1 / settings.ppo.group_size)


def variants(settings: PPOLagConfig, shards: int) -> Iterator[PPOLagConfig]:
    """The rollout in all numbers of parts."""
    for parts in powers(settings.prompts // shards):
        yield dataclasses.replace(settings, rollout=dataclasses.replace(settings.rollout, microbatches=parts))


PPO_LAG = PlannedStage(
    compile=compile_calls,
    state_bytes=state_bytes,
    passes=passes,
    sequences=lambda settings: 1,
    adapters=lambda settings: settings.lora.rank > 0 or settings.sharing == "adapters",
    minibatches=lambda settings: settings.ppo.minibatches,
    variants=variants,
    searched=lambda settings: {"rollout.microbatches": settings.rollout.microbatches},
    copied_bytes=copied_bytes,
    cache_bytes=cache_bytes,
    decoding=decoding,
)
