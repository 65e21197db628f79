"""A plan as the flat numbers of result.json, as a table for people, and in one line of advice."""

from collections.abc import Iterator, Mapping
from typing import Any

from srlhfv_jax.plan.programs import Compiled, Plan
from srlhfv_jax.plan.topology import Device

ENOUGH = 0.1  # of the memory free: what a plan should leave to the runtime and to what is not in it


def result(plan: Plan, device: Device, prompts: int) -> dict[str, Any]:
    """The flat numbers of result.json, each for one device; GB are 10^9 bytes, a tflop 10^12 operations.

    fits, hbm_free_fraction (the smallest of the functions), hbm_limit_gb, state_gb.TREE, and of each FUNCTION peak_hbm_gb,
    compile_s, tflop, hbm_traffic_gb, collectives.FUNCTION.count and .gb (sent), estimate_s; estimate_s_per_prompt of an iteration
    of `prompts` rows. What the compiler refused has a peak only, and leaves no estimate of the whole.
    """
    limit = device.limit_gib * 2**30
    numbers: dict[str, Any] = {
        "fits": all(program.fits for program in plan.compiled),
        "hbm_free_fraction": min(1 - used(program) / limit for program in plan.compiled),
        "hbm_limit_gb": limit / 1e9,
        **{f"state_gb.{name}": size / 1e9 for name, size in plan.state.items()},
        **{f"peak_hbm_gb.{program.name}": used(program) / 1e9 for program in plan.compiled},
        **{f"compile_s.{program.name}": program.seconds for program in plan.compiled},
    }
    for program in plan.compiled:
        if program.work is None:
            continue
        collectives = program.work.collectives().values()
        numbers |= {
            f"tflop.{program.name}": program.work.flops / 1e12,
            f"hbm_traffic_gb.{program.name}": program.work.traffic / 1e9,
            f"collectives.{program.name}.count": sum(kind.count for kind in collectives),
            f"collectives.{program.name}.gb": sum(kind.sent for kind in collectives) / 1e9,
            f"estimate_s.{program.name}": estimate(program, device),
        }
    if all(program.work is not None for program in plan.compiled):
        numbers["estimate_s_per_prompt"] = sum(estimate(program, device) for program in plan.compiled) / prompts
    return numbers


def used(one: Compiled) -> int:
    """Bytes while the function runs."""
    return one.peak + one.beside


def estimate(one: Compiled, device: Device) -> float:
    """Seconds of one call at the device's peak rates: a lower bound (`work.Counted.seconds`)."""
    return one.work.seconds(device.tflops * 1e12, device.hbm * 1e9, device.ici * 1e9)


def table(numbers: Mapping[str, Any], plan: Plan, device: Device, int8: bool) -> Iterator[str]:
    """The same for people; `int8` as for `advice`."""
    limit = numbers["hbm_limit_gb"]
    half = "" if device.per_chip == 1 else f" ({device.per_chip} devices are one chip)"
    yield f"state on each device{half}"
    for name, value in numbers.items():
        if name.startswith("state_gb."):
            yield f"  {name.removeprefix('state_gb.'):<22}{value:>8.2f} GB"
    yield f"peak on each device, of {limit:.2f} GB"
    for program in plan.compiled:
        size = used(program) / 1e9
        parts = f"arguments {program.arguments / 1e9:.2f}, temporaries {program.temporaries / 1e9:.2f}, other trees {program.beside / 1e9:.2f}"
        verdict = "" if program.fits else f"   DOES NOT FIT: {size - limit:.2f} GB too many"
        yield f"  {program.name:<22}{size:>8.2f} GB   ({parts}; compiled in {program.seconds:.0f} s){verdict}"
    yield from _work(plan, device)
    if plan.kv_copies > 1:
        yield f"config.mesh.tensor does not divide the key-value heads: each is on {plan.kv_copies} devices, with its part of the cache"
    yield f"fits: {'yes' if numbers['fits'] else 'no'}, {max(numbers['hbm_free_fraction'], 0):.0%} of the memory free"
    if numbers["hbm_free_fraction"] < ENOUGH:
        yield advice(plan, int8)


def _work(plan: Plan, device: Device) -> Iterator[str]:
    """Operations, traffic, collectives and the estimate, with the rates that it assumes."""
    yield "work of each device, loops counted as often as they run; a rollout that ends early does less"
    for program in plan.compiled:
        if program.work is None:
            yield f"  {program.name:<22}not known: there is no program that does not fit"
            continue
        operations, traffic = f"{program.work.flops / 1e12:.2f} tflop", f"{program.work.traffic / 1e9:.1f} GB in HBM"
        yield f"  {program.name:<22}{operations:>14}, {traffic:>19}   at least {estimate(program, device):.2f} s"
        for kind in program.work.collectives().values():
            yield f"    {kind.kind:<20}{kind.count:>14,.0f} of them, {kind.sent / 1e9:.2f} GB sent"
        if program.work.unknown_kernels:
            yield f"    {program.work.unknown_kernels} kernels declare no operations: theirs are missing"
    yield (
        f"  rates assumed of a device, the published peaks: {device.tflops:g} tflop/s (bfloat16), {device.hbm:g} GB/s in HBM, "
        f"{device.ici:g} GB/s over links, which nothing hides; no latencies"
    )


def advice(plan: Plan, int8: bool) -> str:
    """The setting that would change most of what does not fit, or hardly. `int8`: the frozen backbone has eight bits already."""
    worst = max(plan.compiled, key=used)
    parts = {
        "state": sum(plan.state.values()),
        "temporaries": worst.temporaries,
    }
    size = f"{parts['state'] / 1e9:.2f} GB of state" if parts["state"] > parts["temporaries"] else ""
    if size:
        tried = "more config.mesh.fsdp or tensor (or a larger slice)"
        if "base" not in plan.state:
            tried = f"config.sharing=adapters, config.rollout.offload=idle, config.model.param_dtype=bfloat16, {tried}"
        elif not int8:
            tried = f"config.lora.int8=True, {tried}"
        return f"the most of it, in {worst.name}: {size}; try {tried}"
    size = f"{parts['temporaries'] / 1e9:.2f} GB of temporaries"
    if worst.name == "update":
        tried = "more config.microbatches (each needs its rows' activations only), config.model.remat=layer or logp_chunk=64"
    elif worst.name == "generate":
        tried = "more config.rollout.microbatches (each holds the cache of its own prompts only), or config.mesh.tensor above 1"
    elif worst.name == "score":
        tried = "more config.rollout.score_microbatches, config.model.logp_chunk=64, or config.mesh.tensor above 1"
    else:
        tried = "a smaller config.data.batch_size, or config.mesh.tensor above 1"
    return f"the most of it, in {worst.name}: {size}; try {tried}"
