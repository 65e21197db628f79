"""Memory and work of a run on a TPU slice that is not here: every jitted function compiled for it, from shapes alone.

    persistent state by tree   parameters, optimizer state, frozen trees: bytes on each device
    peak by function           arguments + outputs - donated + temporaries, as the compiler says, and what is resident besides
    work by function           operations, memory traffic and collectives of the compiled program, loops counted as often as they run

Nothing is loaded and nothing is run. The compiler is the real one: what it refuses would not run either. `shapes` makes the
arguments, `programs` compiles, `table` makes numbers and lines, `search` tries settings.
"""

import dataclasses

import jax
from jax.sharding import Mesh

from srlhfv_jax.config import ModelConfig, Trained
from srlhfv_jax.hf.published import CONFIGS, published
from srlhfv_jax.models import attention
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.parallel.mesh import check_tensor_axis
from srlhfv_jax.plan import shapes
from srlhfv_jax.plan.ppo_lag import PPO_LAG
from srlhfv_jax.plan.programs import Plan
from srlhfv_jax.plan.supervised import OBJECTIVES, SUPERVISED
from srlhfv_jax.runs import checkpoints

PROMPT_SUFFIX = 5  # tokens that open the assistant's turn, of which no tokenizer is asked here: as in LLaVA-1.5's, Qwen's and Gemma's templates
STAGES = dict.fromkeys(OBJECTIVES, SUPERVISED) | {"ppo_lag": PPO_LAG}


def shape(named: str, model: ModelConfig) -> VLMConfig:
    """Model shape of a published checkpoint (hub id) or of a local folder."""
    if named in CONFIGS:
        return checkpoints.computed_in(published(named, remat=model.remat, scan_unroll=checkpoints.unroll(model)), model)
    return checkpoints.load_shape(named, model).config


def of(settings: Trained, config: VLMConfig, mesh: Mesh, limit: int) -> Plan:
    """Plan a stage; `limit` is what a program may use on one device, in bytes. Sets the mesh that jitted functions see."""
    check_tensor_axis(config.text.heads, mesh)
    if settings.lora.activated:
        config = dataclasses.replace(config, activation=(0,) * PROMPT_SUFFIX)
    with jax.set_mesh(mesh):
        plan = STAGES[settings.stage].compile(settings, config, mesh, limit)
        if settings.log.guard:
            plan = with_watching_guard(plan, settings, mesh, limit)
        return plan._replace(kv_copies=attention.copies(config.text.heads, config.text.kv_heads))


def with_watching_guard(plan: Plan, settings: Trained, mesh: Mesh, limit: int) -> Plan:
    """The plan with the guard of `log.guard` on the devices all the while."""
    size = shapes.size(shapes.backbone(shape(settings.log.guard, settings.model), settings.model.dtype, mesh))
    compiled = [
        one._replace(beside=one.beside + size, fits=one.fits and one.peak + one.beside + size <= limit) for one in plan.compiled
    ]
    return plan._replace(state=plan.state | {"log.guard": size}, compiled=compiled)
