"""The cheapest settings under which a run fits a slice: meshes, microbatches and remat, ordered by arithmetic, compiled in turn.

Arithmetic is for leaving out and for ordering only: what cannot fit (trees, and the larger of a rollout's copies with its cache
and kept activations) is never compiled, and the rest goes from cheap to dear until `count` of them were. What a compilation shows
rules out others: a `generate` or an `update` that leaves too little memory free does so with fewer parts as well; what else does
has no remedy on the same mesh; and once a mesh has room, its dearer variants are not tried.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from srlhfv_jax.config import MeshConfig, Trained
from srlhfv_jax.errors import UserError
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.parallel.mesh import make_mesh
from srlhfv_jax.plan import memory as planning, table as plan_table
from srlhfv_jax.plan.memory import STAGES
from srlhfv_jax.plan.programs import Plan
from srlhfv_jax.plan.stage import item, powers
from srlhfv_jax.plan.topology import Device

REMAT = ("none", "dots", "layer")


class Candidate(NamedTuple):
    """Settings, and what arithmetic says of them on one device."""

    settings: Any
    least: float  # bytes: trees, and the cache or the activations kept for one microbatch
    seconds: float  # of one prompt or row, roughly

    @property
    def mesh(self) -> tuple[int, int, int]:
        return dataclasses.astuple(self.settings.mesh)

    @property
    def flags(self) -> str:
        """As written on the command line."""
        return " ".join(f"--config.{name}={value}" for name, value in chosen(self.settings).items())


def chosen(settings: Trained) -> dict[str, Any]:
    """The settings that are searched over, by name."""
    found = {f"mesh.{axis}": size for axis, size in dataclasses.asdict(settings.mesh).items()}
    found |= {"microbatches": settings.microbatches, "model.remat": settings.model.remat}
    return found | STAGES[settings.stage].searched(settings)


class Tried(NamedTuple):
    candidate: Candidate
    plan: Plan
    numbers: dict[str, Any]  # as in result.json


def candidates(settings: Trained, config: VLMConfig, devices: Sequence[jax.Device], device: Device) -> list[Candidate]:
    """Everything that may fit, the cheapest first.

    Raises:
        UserError: nothing may: not even the trees fit, or no mesh divides rows and heads.
    """
    limit, fitting, smallest, stage = device.limit_gib * 2**30, [], math.inf, STAGES[settings.stage]
    for mesh in _meshes(settings, config, len(devices)):
        at = dataclasses.replace(settings, mesh=mesh)
        sampling, updating = stage.state_bytes(at, config, devices)
        sampling += stage.copied_bytes(at, config, devices)
        for variant in _variants(at):
            least = max(sampling + stage.cache_bytes(variant, config), updating + activation_bytes(variant, config))
            smallest = min(smallest, least)
            if least <= limit:
                fitting.append(Candidate(variant, least, rough_seconds(variant, config, device) / settings.data.batch_size))
    if smallest == math.inf:
        raise UserError(
            f"no mesh of {len(devices)} devices divides both the {_step_rows(settings)} rows of a step and the "
            f"{config.text.heads} heads: change config.data.batch_size"
        )
    if not fitting:
        raise UserError(
            f"nothing was compiled: trees, cache and activations need at least {smallest / 1e9:.2f} GB on each device and there "
            f"are {limit / 1e9:.2f}: take a larger slice, config.sharing=adapters, or a smaller config.data.batch_size"
        )
    return sorted(fitting, key=lambda candidate: candidate.seconds)


def search(
    ordered: Sequence[Candidate],
    config_of: Callable[[Any], VLMConfig],
    devices: Sequence[jax.Device],
    device: Device,
    count: int,
) -> Iterator[Tried]:
    """Compile at most `count` of the candidates, in order, without those that an earlier one rules out."""
    tried: list[Tried] = []
    for candidate in ordered:
        if len(tried) == count:
            return
        if any(_ruled_out(candidate, one) for one in tried):
            continue
        settings, mesh = candidate.settings, make_mesh(candidate.settings.mesh, devices)
        plan = planning.of(settings, config_of(settings), mesh, int(device.limit_gib * 2**30))
        tried.append(Tried(candidate, plan, plan_table.result(plan, device, settings.data.batch_size)))
        yield tried[-1]


def best(tried: Sequence[Tried]) -> Tried:
    """The cheapest of those that leave enough memory free, else of those that fit, else the one that misses by the least."""

    def rank(trial: Tried) -> tuple:
        free = trial.numbers["hbm_free_fraction"]
        if not trial.numbers["fits"]:
            return 2, -free
        return (0 if free >= plan_table.ENOUGH else 1), trial.numbers["estimate_s_per_prompt"]

    return min(tried, key=rank)


def describe(trial: Tried) -> str:
    """One line."""
    numbers = trial.numbers
    if not numbers["fits"]:
        worst = max(trial.plan.compiled, key=plan_table.used)
        missing = plan_table.used(worst) / 1e9 - numbers["hbm_limit_gb"]
        return f"{trial.candidate.flags}: {worst.name} needs {missing:.2f} GB more than there are"
    seconds, free = numbers["estimate_s_per_prompt"], numbers["hbm_free_fraction"]
    return f"{trial.candidate.flags}: at least {seconds:.3f} s a prompt, {free:.0%} of the memory free"


def _ruled_out(candidate: Candidate, tried: Tried) -> bool:
    before, now = tried.candidate, candidate
    if before.mesh != now.mesh:
        return False
    room = (1 - plan_table.ENOUGH) * tried.numbers["hbm_limit_gb"] * 1e9
    failed = {one.name for one in tried.plan.compiled if plan_table.used(one) > room}
    if not failed:
        return True
    if failed - {"generate", "update"}:
        return True
    if "generate" in failed and now.settings.rollout.microbatches <= before.settings.rollout.microbatches:
        return True
    same_or_more_kept = REMAT.index(now.settings.model.remat) <= REMAT.index(before.settings.model.remat)
    return "update" in failed and same_or_more_kept and now.settings.microbatches <= before.settings.microbatches


def _meshes(settings: Trained, config: VLMConfig, devices: int) -> Iterator[MeshConfig]:
    """All that use every device, divide the rows of a step, and whose tensor axis divides the query heads."""
    for tensor in _divisors(devices):
        for fsdp in _divisors(devices // tensor):
            data = devices // tensor // fsdp
            if config.text.heads % tensor == 0 and _step_rows(settings) % (data * fsdp) == 0:
                yield MeshConfig(data, fsdp, tensor)


def _variants(settings: Trained) -> Iterator[Trained]:
    """All microbatches, kept activations and, of a rollout, parts."""
    shards = settings.mesh.data * settings.mesh.fsdp
    for microbatches, remat in itertools.product(powers(_step_rows(settings) // shards), REMAT):
        model = dataclasses.replace(settings.model, remat=remat)
        one = dataclasses.replace(settings, microbatches=microbatches, model=model)
        yield from STAGES[settings.stage].variants(one, shards)


def _step_rows(settings: Trained) -> int:
    """Rows of one gradient step."""
    return settings.data.batch_size // STAGES[settings.stage].minibatches(settings)


def activation_bytes(settings: Trained, config: VLMConfig) -> float:
    """Bytes that the decoder keeps of one microbatch for the backward pass, on one device."""
    text, mesh = config.text, settings.mesh
    T, rows = _length(settings), _sequences(settings, _step_rows(settings)) / settings.microbatches / (mesh.data * mesh.fsdp)
    values = text.width
    if settings.model.remat != "layer":
        products = (text.heads + 2 * text.kv_heads) * text.head_dim + 2 * text.mlp + text.heads * T
        values += 2 * text.width + products / mesh.tensor
    if settings.model.remat == "none":
        values += 2 * text.width + (2 * text.mlp + text.heads * T) / mesh.tensor
    return text.layers * rows * T * values * item(config)


def rough_seconds(settings: Trained, config: VLMConfig, device: Device) -> float:
    """A rough time of one iteration or step: products, weights and cache read for each token, and what goes over links."""
    text, mesh = config.text, settings.mesh
    shards, devices = mesh.data * mesh.fsdp, mesh.data * mesh.fsdp * mesh.tensor
    layer = text.width * ((2 * text.heads + 2 * text.kv_heads) * text.head_dim + 3 * text.mlp)
    weights = text.layers * layer + text.vocab * text.width
    split = weights * item(config) / mesh.tensor  # bytes on one device once fsdp's shards are gathered
    again = {"none": 0.0, "dots": 0.2, "layer": 1.0}[settings.model.remat]
    sequences, T = _sequences(settings, settings.data.batch_size), _length(settings)
    stage = STAGES[settings.stage]
    backward = 1.0 if stage.adapters(settings) else 2.0

    trees, other = stage.passes(settings)
    passes = trees * (1 + again + backward) + other
    compute = passes * 2 * weights * sequences * T / devices / (device.tflops * 1e12)
    steps = settings.data.batch_size // _step_rows(settings)
    gathers = trees * settings.microbatches * steps * (2 + again) + other
    links = gathers * split * (mesh.fsdp - 1) / mesh.fsdp
    sums = 2 * 2 * text.layers * sequences / shards * T * text.width * item(config)
    links += passes * sums * (mesh.tensor - 1) / mesh.tensor
    read, gathers = stage.decoding(settings, config, split)
    links += gathers * split * (mesh.fsdp - 1) / mesh.fsdp
    return compute + read / (device.hbm * 1e9) + links / (device.ici * 1e9)


def _sequences(settings: Trained, rows: int) -> int:
    return rows * STAGES[settings.stage].sequences(settings)


def _length(settings: Trained) -> int:
    return settings.data.prompt_length + settings.data.response_length


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
