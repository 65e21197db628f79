"""Time the update alone, and on a GPU say what it spends its time on.

    python benchmarks/update.py --size=1b --dtype=bfloat16 --remat=dots          (prints one JSON line last)

The jitted call that `ppo_lag_iteration.py` times as `update_s`, on an experience that nobody sampled: nothing else is compiled.
`temporaries_gb` is what it needs beside its arguments and results, as the compiler says.
`kernels_ms` adds up the profiler's events of one call: matrix products, fused attention, copies, all the rest, and the gaps.
"""

import collections
import gzip
import json
import re
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import ppo_lag_iteration as whole
import sizes
from sizes import SIZES

from srlhfv_jax.batches import Experience, PromptBatch
from srlhfv_jax.parallel import host_cpu
from srlhfv_jax.ppo_lag.iteration import Iteration
from srlhfv_jax.ppo_lag.update import Multipliers
from srlhfv_jax.training import state as states

KINDS = {"attention": "sdpa|fmha|flash|cudnn", "products": "gemm|nvjet|cutlass|cublas", "copies": "[Mm]emcpy"}  # in this order


def made_up(iteration: Iteration, state: states.TrainState, prompts: PromptBatch, key) -> Experience:
    """Full responses of random tokens, with small random numbers in the place of everything computed."""
    rollout = jax.eval_shape(iteration.generate, iteration.rollout_weights(state.params["policy"]), prompts, key)
    arguments = (iteration.scoring_trees(state.params), rollout, prompts.images, {}, state.extra.controllers, np.bool_(False))
    shapes = jax.eval_shape(iteration.score, *arguments)[0]
    rng = np.random.default_rng(0)

    def fill(shape):
        if shape.dtype == bool:
            return jnp.ones(shape.shape, bool)
        if jnp.issubdtype(shape.dtype, jnp.integer):
            return jnp.asarray(rng.integers(3, 32, shape.shape), shape.dtype)
        return jnp.asarray(0.1 * rng.normal(size=shape.shape), shape.dtype)

    batch = jax.tree.map(fill, shapes)
    tokens_BT = batch.rollout.tokens_BT
    B, T = tokens_BT.shape
    tokens_BT = tokens_BT.at[:, : prompts.tokens_BP.shape[1]].set(iteration.for_each_answer(prompts.tokens_BP))
    positions_BT = jnp.tile(jnp.arange(T, dtype=jnp.int32), (B, 1))
    return batch._replace(rollout=batch.rollout._replace(tokens_BT=tokens_BT, positions_BT=positions_BT))


def kernels_ms(folder: str | Path) -> dict[str, float]:
    """Milliseconds of a GPU's streams by kind of kernel, from the traces in a folder; empty without a GPU."""
    spent: collections.Counter[str] = collections.Counter()
    spans = []
    for path in Path(folder).rglob("*.trace.json.gz"):
        with gzip.open(path) as file:
            events = json.load(file)["traceEvents"]
        named = [event for event in events if event.get("ph") == "M"]
        devices = {e["pid"] for e in named if e["name"] == "process_name" and "GPU" in e["args"]["name"]}
        streams = {(e["pid"], e["tid"]) for e in named if e["name"] == "thread_name" and "Stream" in e["args"]["name"]}
        for event in events:
            if event.get("ph") == "X" and event["pid"] in devices and (event["pid"], event["tid"]) in streams:
                kind = next((kind for kind, pattern in KINDS.items() if re.search(pattern, event["name"])), "rest")
                spent[kind] += event["dur"]
                spans.append((event["ts"], event["ts"] + event["dur"]))
    end = None
    for start, stop in sorted(spans):
        spent["gaps"] += 0 if end is None else max(start - end, 0)
        end = stop if end is None else max(end, stop)
    return {kind: round(microseconds / 1e3, 1) for kind, microseconds in spent.items()}


def main() -> None:
    host_cpu.prepare()
    args = whole.arguments(__doc__.splitlines()[0])
    size = SIZES[args.size]
    iteration, state, prompts = whole.prepare(size, args)
    key = states.key(0, 0, "minibatches")
    experience = made_up(iteration, state, prompts, key)
    params, opt_state, seconds = state.params, state.opt_state, []
    frozen = (experience, prompts.images, Multipliers({"cost": jnp.float32(1)}), key, None, iteration.models.base)
    start = time.perf_counter()
    program = iteration.update.lower(params, opt_state, *frozen).compile()
    compiling = time.perf_counter() - start

    def update():
        nonlocal params, opt_state
        start = time.perf_counter()
        params, opt_state, metrics = jax.block_until_ready(program(params, opt_state, *frozen))
        seconds.append(time.perf_counter() - start)
        return metrics

    for _ in range(whole.WARM_UP + args.iterations):
        metrics = update()
    if not np.isfinite(float(metrics["grad_norm"])):
        raise RuntimeError(f"not the work that was meant: a gradient of {metrics['grad_norm']}")
    median = statistics.median(seconds[whole.WARM_UP :])
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            update()
        kernels = kernels_ms(folder)
    on_device = jax.devices()[0].memory_stats()
    work = sizes.jax_iteration(size, args.sharing, args.activated, args.group_size)["update"]
    result = {
        "params": whole.parameters(iteration),
        "update_s": round(median, 4),
        "update_gflops": round(work / median / 1e9, 1),
        "compile_s": round(compiling, 1),
        "temporaries_gb": round(program.memory_analysis().temp_size_in_bytes / 1e9, 2),
        **({"peak_device_gb": round(on_device["peak_bytes_in_use"] / 1e9, 2)} if on_device else {}),
        "matmul_gflops": round(whole.matmul_gflops(args.config.dtype), 1),
        "kernels_ms": kernels,
    }
    print(json.dumps(args.about | result), flush=True)


if __name__ == "__main__":
    main()
