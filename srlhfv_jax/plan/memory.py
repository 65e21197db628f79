"""Memory and work of a run on a TPU slice that is not here: every jitted function compiled for it, from shapes alone.

    persistent state by tree   parameters, optimizer state, frozen trees: bytes on each device
    peak by function           arguments + outputs - donated + temporaries, as the compiler says, and what is resident besides
    work by function           operations, memory traffic and collectives of the compiled program, loops counted as often as they run

Nothing is loaded and nothing is run. The compiler is the real one: what it refuses would not run either. `plan_shapes` makes the
arguments, `plan_table` the numbers and lines, `plan_search` tries settings.
"""

import dataclasses
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from srlhfv_jax.config import GuardConfig, ModelConfig, PPOLagConfig, ScoresConfig, SFTConfig
from srlhfv_jax.errors import UserError
from srlhfv_jax.guard import train as guard
from srlhfv_jax.hf.published import CONFIGS, published
from srlhfv_jax.losses import lagrangian
from srlhfv_jax.models import attention
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.models.trees import BASE
from srlhfv_jax.parallel import hosts
from srlhfv_jax.parallel.mesh import check_tensor_axis
from srlhfv_jax.plan import count as work, shapes
from srlhfv_jax.ppo_lag import check as ppo_lag_check, critics, load
from srlhfv_jax.ppo_lag.iteration import Call, Extra, Iteration, Keys, drive
from srlhfv_jax.rollout import layout
from srlhfv_jax.rollout.generate import Vocabulary
from srlhfv_jax.runs import checkpoints
from srlhfv_jax.supervised import scores, sft, train as supervised
from srlhfv_jax.training import optimizer as optimizers, state as states

PROMPT_SUFFIX = 5  # tokens that open the assistant's turn, of which no tokenizer is asked here: as in LLaVA-1.5's, Qwen's and Gemma's templates
OBJECTIVES = {"sft": sft.objective, "scores": scores.objective, "guard": guard.objective}  # of stages but ppo_lag


class Compiled(NamedTuple):
    """One function on one device."""

    name: str
    seconds: float  # of compiling
    peak: int  # bytes: arguments + outputs - aliased + temporaries
    arguments: int  # bytes
    temporaries: int
    beside: int  # bytes of the run's trees that are no arguments, and resident all the same
    fits: bool
    work: work.Counted | None  # None: the compiler refused, and there is no program


class Plan(NamedTuple):
    """A run on one device: bytes of its trees, and its functions in the order in which they run."""

    state: dict[str, int]
    compiled: list[Compiled]
    kv_copies: int = 1  # devices that hold each key-value head in a rollout, because tensor does not divide them


def shape(named: str, model: ModelConfig) -> VLMConfig:
    """Model shape of a published checkpoint (hub id) or of a local folder."""
    if named in CONFIGS:
        return checkpoints.computed_in(published(named, remat=model.remat, scan_unroll=checkpoints.unroll(model)), model)
    return checkpoints.load_shape(named, model).config


def of(settings: PPOLagConfig | ScoresConfig | SFTConfig | GuardConfig, config: VLMConfig, mesh: Mesh, limit: int) -> Plan:
    """Plan a stage; `limit` is what a program may use on one device, in bytes. Sets the mesh that jitted functions see."""
    check_tensor_axis(config.text.heads, mesh)
    if isinstance(settings, PPOLagConfig):
        ppo_lag_check.check_lora(settings)
    else:
        checkpoints.check_lora(settings.lora)
    if settings.lora.activated:
        config = dataclasses.replace(config, activation=(0,) * PROMPT_SUFFIX)
    with jax.set_mesh(mesh):
        found = (ppo_lag if isinstance(settings, PPOLagConfig) else supervised_step)(settings, config, mesh, limit)
        return found._replace(kv_copies=attention.copies(config.text.heads, config.text.kv_heads))


def ppo_lag(settings: PPOLagConfig, config: VLMConfig, mesh: Mesh, limit: int) -> Plan:
    """State by tree, and reshard (if the rollout has a layout of its own), generate, score and update, compiled in that order:
    each takes what the one before gives. What rests on the host counts where it is an argument, and in `load`: every tree but the
    optimizers' is on the devices once, before it goes to rest."""
    ppo_lag_check.check_parts(settings)
    ppo_lag_check.check_rows(settings, mesh)
    models, rollout = shapes.models(settings, config, mesh), settings.rollout
    vocabulary = Vocabulary(pad=0, eos=(2,), never=() if config.image_token is None else (config.image_token,))
    on_devices = dataclasses.replace(settings, rollout=dataclasses.replace(rollout, offload="none"))  # shapes do not move
    iteration = Iteration(on_devices, models, mesh, vocabulary)
    trees = models.trained | models.frozen
    opt_state = {name: shapes.optimizer_state(iteration.optimizers[name], tree, mesh) for name, tree in models.trained.items()}
    state = {name: shapes.size(tree) for name, tree in trees.items()}
    state |= {f"{name}.optimizer": shapes.size(tree) for name, tree in opt_state.items()}
    idle = load.idle_trees(settings, models)
    compiled = [_load(shapes.size(trees), limit)] if idle else []
    idle |= {f"{name}.optimizer" for name in opt_state} if rollout.offload != "none" else set()
    staying = sum(size for name, size in state.items() if name not in idle)
    moves = layout.moves(models.backbone(models.trained["policy"]), iteration.rollout_layout)
    read = {
        "generate": set(),
        "score": models.frozen.keys() | iteration.scoring_trees(models.trained).keys(),
        "update": models.trained.keys() | {f"{name}.optimizer" for name in opt_state} | {BASE},
    }

    def compile_call(call: Call) -> Any:
        """Compile a call and give the shapes that it would return. Trees of the run that it reads and that do not rest are no bytes beside it."""
        if call.name == "reshard":
            compiled.extend([_reshard(moves, staying, limit)] if moves else [])
            return iteration.rollout_layout
        resident = sum(size for name, size in state.items() if name in read[call.name] - idle)
        if call.name == "generate":
            resident = shapes.size(models.backbone(models.trained["policy"])) - shapes.size([x for x, _ in moves])
        loop = settings.data.response_length if call.name == "generate" else 1
        program, outputs = _compile(call.name, call.function, staying - resident, limit, loop, *call.arguments)
        compiled.append(program)
        return outputs

    extra = shapes.replicated(jax.eval_shape(lambda: Extra(lagrangian.init(settings.constraint), critics.init())), mesh)
    start = states.TrainState(models.trained, opt_state, 0, extra)
    ptx = shapes.answers(config, settings, mesh) if settings.ptx.coef > 0 else None
    key = shapes.replicated(jax.eval_shape(lambda: jax.random.key(0)), mesh)
    drive(iteration.calls(start, shapes.prompts(config, settings, mesh), ptx, Keys(key, key)), compile_call)
    return Plan(state, compiled)


def supervised_step(settings: SFTConfig | ScoresConfig | GuardConfig, config: VLMConfig, mesh: Mesh, limit: int) -> Plan:
    """The same of a supervised stage: its one function."""
    hosts.check_batch(settings.data.batch_size, mesh, "a batch of")
    tree, base = {"backbone": shapes.backbone(config, settings.model.param_dtype, mesh)}, None
    if settings.lora.rank:
        base = shapes.base(config, settings.lora, mesh)
        tree = {"adapter": shapes.adapter(settings.lora, base, mesh)}
    objective = OBJECTIVES[settings.stage](config, settings)
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
    whole = states.TrainState(tree, opt_state, shapes.replicated(jax.ShapeDtypeStruct((), np.int32), mesh), ())
    trainable, places = optimizers.trainable(settings.optimizer, tree), states.places(tree, optimizer, mesh)
    update = supervised.make_update(objective.loss, optimizer, trainable, settings.microbatches, places)
    found, _ = _compile("update", update, 0, limit, 1, whole, base, batch)
    return Plan(state, [found])


def _load(trees: int, limit: int) -> Compiled:
    """All trees at once, which is how they are loaded and compared."""
    return Compiled("load", 0.0, trees, trees, 0, 0, trees <= limit, work.Counted((), 0))


def _reshard(moves: Sequence[tuple[Any, Any]], everything: int, limit: int) -> Compiled:
    """Moving the policy's leaves to where a rollout reads them, one after the other, as if it were one function.

    Beside the run's trees there are all copies at the end, and while a leaf moves its temporaries.
    """
    once = {}
    for x, want in dict.fromkeys(moves):
        once[x, want], _ = _compile("reshard", layout.mover(want.dtype, want.sharding), 0, limit, 1, x)
    before, after = (sum(map(shapes.size, side)) for side in zip(*moves))
    temporaries = max(one.temporaries for one in once.values())
    peak, seconds = before + after + temporaries, sum(one.seconds for one in once.values())
    fits = all(one.fits for one in once.values()) and everything + after + temporaries <= limit
    counted = None
    if all(one.work is not None for one in once.values()):
        parts = tuple(part for move in moves for part in once[move].work.parts)
        counted = work.Counted(parts, 0)
    return Compiled("reshard", seconds, peak, before, temporaries, everything - before, fits, counted)


# What the compiler says of a program that does not fit: of all it needs, or of temporaries, which come on top of arguments.
ALL = re.compile(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm")
TEMPORARIES = re.compile(r"required for HLO temporaries \(([\d.]+)([KMGT])\) exceeds")


def _compile(name: str, function: Callable, beside: int, limit: int, loop: int, *arguments: Any) -> tuple[Compiled, Any]:
    """Compile one function, whose loop without a constant bound runs `loop` times; gives what it would return, where its
    out_shardings say."""
    began = time.monotonic()
    lowered = function.lower(*arguments)
    outputs = lowered.out_info
    try:
        done = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        found = TEMPORARIES.search(str(error)) or ALL.search(str(error))
        if found is None:
            raise UserError(f"the TPU compiler refuses {name}: {str(error).strip().splitlines()[0]}") from error
        said, size = int(float(found[1]) * 1024 ** ("KMGT".index(found[2]) + 1)), sum(map(shapes.size, arguments))
        peak = said + size if found.re is TEMPORARIES else said
        return Compiled(name, time.monotonic() - began, peak, size, peak - size, beside, False, None), outputs
    seconds = time.monotonic() - began
    memory = done.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    counted = work.count(_text(lowered, done), loop)
    sizes = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    return Compiled(name, seconds, peak, *sizes, beside, peak + beside <= limit, counted), outputs


def _text(lowered: jax.stages.Lowered, compiled: jax.stages.Compiled) -> str:
    """The optimized program. jaxlib 0.10.2 cannot read every program of a newer libtpu (async slices on v6e); the compiler then
    writes it to a file, for which it compiles again."""
    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError:
        with tempfile.TemporaryDirectory() as folder:
            lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": "True"})
            return next(Path(folder).glob("*.after_optimizations.txt")).read_text()
