"""Fused attention beside XLA's on the accelerator at hand: how far apart the numbers are, and the seconds of each.

    python benchmarks/attention.py          (one JSON line for each mask; on a GPU cuDNN, on a TPU splash)

bfloat16, with left and right padding. Errors are relative, ||x - y|| / ||y||, over real queries, against XLA in float32: of the output
and of the gradients of q, k and v. `xla` is what XLA in bfloat16 makes of the same arrays. Seconds are of one forward and backward pass.
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from srlhfv_jax.config import MeshConfig
from srlhfv_jax.models import attention, kernels
from srlhfv_jax.parallel.mesh import make_mesh


def padded(rows: int, length: int):
    """Rows [pads | real | pads], the last one whole."""
    rng = np.random.default_rng(0)
    left, right = rng.integers(0, length // 4, (2, rows, 1))
    left[-1] = right[-1] = 0
    place = np.arange(length)[None]
    return jnp.asarray((place >= left) & (place < length - right))


def masks(kernel: str, rows: int, length: int) -> dict:
    """Name -> (bias, span, real queries): those of a decoder, of local layers, of Gemma's pictures, of a tower."""
    mask_BT = padded(rows, length)
    place_T = jnp.arange(length)
    block_BT = attention.blocks(((place_T >= length // 3) & (place_T < 2 * length // 3))[None] & mask_BT)
    group_BT = jnp.tile(place_T // (length // 2), (rows, 1))
    everybody_BT = jnp.ones_like(mask_BT)
    seen = {
        "causal": (attention.causal(mask_BT), kernels.causal(kernel, mask_BT), mask_BT),
        "window": (attention.causal(mask_BT, 64), kernels.causal(kernel, mask_BT, 64), mask_BT),
        "whole images": (attention.causal(mask_BT, 64, block_BT), kernels.causal(kernel, mask_BT, 64, block_BT), mask_BT),
        "pictures": (group_BT[:, :, None] == group_BT[:, None], kernels.together(kernel, group_BT), everybody_BT),
    }
    return {name: (attention.bias(seen_BTT), span, real_BT) for name, (seen_BTT, span, real_BT) in seen.items()}


def timed(function, *arrays) -> tuple[tuple, float]:
    result = jax.block_until_ready(function(*arrays))
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        jax.block_until_ready(function(*arrays))
        seconds.append(time.perf_counter() - start)
    return result, statistics.median(seconds)


def both_ways(sees, real_BT):
    """(output, gradients of q, k, v), the output weighted as if all that follows were one dot product."""

    def run(q, k, v, weight):
        def total(q, k, v):
            mixed = jnp.where(real_BT[:, None, :, None], kernels.attend(q, k, v, sees), 0)
            return jnp.sum(mixed.astype(jnp.float32) * weight), mixed

        (_, mixed), gradients = jax.value_and_grad(total, (0, 1, 2), has_aux=True)(q, k, v)
        return mixed, *gradients

    return jax.jit(run)


def errors(found: tuple, exact: tuple) -> dict[str, float]:
    pairs = zip(("output", "q", "k", "v"), found, exact)
    norm = jnp.linalg.norm
    return {name: float(f"{norm(x.astype(jnp.float32) - y) / norm(y):.2e}") for name, x, y in pairs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=1536)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv_heads", type=int, default=8)
    parser.add_argument("--head_dim", type=int, default=128)
    args = parser.parse_args()
    jax.set_mesh(make_mesh(MeshConfig(data=-1, fsdp=1, tensor=1)))
    kernel = kernels.choose("auto", "bfloat16", args.head_dim)
    if kernel == "xla":
        parser.error(f"there is no fused kernel for {jax.devices()[0].device_kind}")
    counts = (args.heads, args.kv_heads, args.kv_heads, args.heads)
    keys = jax.random.split(jax.random.key(0), 4)
    exact = [jax.random.normal(key, (args.rows, n, args.length, args.head_dim)) for key, n in zip(keys, counts)]
    half = [x.astype(jnp.bfloat16) for x in exact]
    exact = [x.astype(jnp.float32) for x in half]
    for name, (bias, span, real_BT) in masks(kernel, args.rows, args.length).items():
        with jax.default_matmul_precision("highest"):
            truth, _ = timed(both_ways(bias, real_BT), *exact)
        line = {"device": jax.devices()[0].device_kind, "mask": name, "shape": [x.shape for x in half[:2]]}
        for what, sees in (("xla", bias), (kernel, span)):
            found, seconds = timed(both_ways(sees, real_BT), *half)
            line |= {what: errors(found, truth), f"{what}_ms": round(1e3 * seconds, 2)}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
