"""`srlhfv plan`: one setting planned, or the cheapest of many searched for; lines for the terminal, numbers for WORKDIR/result.json."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.parallel.mesh import make_mesh
from srlhfv_jax.plan import memory, search, table, topology
from srlhfv_jax.training.metrics import write_result


def run(settings: Any, slice_name: str, workdir: str, searched: int = 0) -> None:
    """Print what `settings` need on a slice such as "v5e:2x4".

    Args:
        workdir: folder for result.json; "": none is written.
        searched: compile at most this many meshes, microbatches and remats, and plan the cheapest; 0: the settings as they are.
    """
    topology.compute_on_cpu()
    device, devices = topology.device(slice_name), topology.devices(slice_name)

    def config_of(settings: Any) -> VLMConfig:
        return memory.shape(settings.start, settings.model)

    if searched:
        best = _search(settings, slice_name, config_of, devices, device, searched)
        settings, plan = best.candidate.settings, best.plan
    mesh = make_mesh(settings.mesh, devices)
    if not searched:
        sizes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
        print(f"{settings.start} on {slice_name}, mesh ({sizes})", flush=True)
        plan = memory.of(settings, config_of(settings), mesh, topology.limit_bytes(slice_name))
    numbers = table.result(plan, device, settings.data.batch_size)
    for line in table.table(numbers, plan, device, settings.lora.int8):
        print(line)
    if workdir:
        sizes = {f"mesh.{axis}": size for axis, size in mesh.shape.items()}
        write_result(Path(workdir), numbers | search.chosen(settings) | sizes | {"topology": slice_name})


def _search(
    settings: Any,
    slice_name: str,
    config_of: Callable[[Any], VLMConfig],
    devices: Sequence[jax.Device],
    device: topology.Device,
    count: int,
) -> search.Tried:
    candidates = search.candidates(settings, config_of(settings), devices, device)
    print(f"{settings.start} on {slice_name}: {len(candidates)} settings may fit, compiling at most {count}", flush=True)
    tried = []
    for trial in search.search(candidates, config_of, devices, device, count):
        print(f"  {search.describe(trial)}", flush=True)
        tried.append(trial)
    best = search.best(tried)
    print(f"{'the cheapest that fits' if best.numbers['fits'] else 'nothing fits; the nearest'}: {best.candidate.flags}")
    return best
