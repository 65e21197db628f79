"""Time the gradient of reward and cost scores of pairs, with both answers in one sequence and with each in its own.

    python benchmarks/pairs.py --size=medium --remat=dots          (prints one JSON line last)

The two ways take turns on the same pairs; `speedup` is the ratio of their medians. The vision tower is frozen, as in training.
"""

import json
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import ppo_lag_iteration as whole
from sizes import RESPONSE, SIZES, Size

from srlhfv_jax.batches import PairBatch
from srlhfv_jax.config import MeshConfig
from srlhfv_jax.models import score_heads, sequences, vlm
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.parallel import host_cpu
from srlhfv_jax.parallel.mesh import make_mesh

WAYS = {"together": sequences.scores_together, "apart": sequences.scores_apart}


def random_pairs(size: Size) -> PairBatch:
    """The prompts of the other benchmarks with two full answers each."""
    prompts, rng = whole.random_prompts(size, size.batch), np.random.default_rng(1)
    B, T = size.batch, size.length
    tokens_BST = rng.integers(3, size.vocab - 1, (B, 2, T), dtype=np.int32)
    tokens_BST[:, :, : size.prompt] = prompts.tokens_BP[:, None]
    positions_BST = np.tile(np.arange(T, dtype=np.int32), (B, 2, 1))
    side_B, weight_B = np.zeros(B, np.int32), np.ones(B, np.float32)
    real = np.ones((B, 2, T), bool)
    sign_BS = np.ones((B, 2), np.float32)
    answers = real[:, :, -RESPONSE:]
    return PairBatch(tokens_BST, positions_BST, real, answers, prompts.images, side_B, weight_B, side_B, weight_B, sign_BS)


def gradient(config: VLMConfig, way: Callable) -> Callable:
    """Jitted: (what is trained, the tower, pairs) -> the gradient of the sum of squared scores."""

    def total(trained: dict, tower: dict, batch: PairBatch) -> jax.Array:
        tree = trained | {"backbone": trained["backbone"] | {"vision": tower}}
        scores = way(config, tree, batch, sequences.encode(config, tree, batch.images))
        return sum(jnp.sum(score_BS**2) for score_BS in scores.values())

    return jax.jit(jax.grad(total))


def main() -> None:
    host_cpu.prepare()
    args = whole.arguments(__doc__.splitlines()[0], roles=False)
    size = SIZES[args.size]
    jax.set_mesh(make_mesh(MeshConfig(data=1, fsdp=1, tensor=1)))  # a fused kernel asks for one
    batch = jax.tree.map(jnp.asarray, random_pairs(size))
    trained = {"backbone": vlm.init(args.config, jax.random.key(0))}
    tower = trained["backbone"].pop("vision")
    trained |= {"heads": score_heads.init(args.config, ("reward", "cost"), jax.random.key(1))}
    programs = {name: gradient(args.config, way).lower(trained, tower, batch).compile() for name, way in WAYS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(whole.WARM_UP + args.iterations):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(trained, tower, batch))
            seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(times[whole.WARM_UP :]) for name, times in seconds.items()}
    result = {
        "pairs": size.batch,
        "prompt": size.prompt,
        "response": RESPONSE,
        **{f"{name}_s": round(value, 4) for name, value in median.items()},
        "speedup": round(median["apart"] / median["together"], 2),
        **{f"{name}_temporaries_gb": round(p.memory_analysis().temp_size_in_bytes / 1e9, 2) for name, p in programs.items()},
        "matmul_gflops": round(whole.matmul_gflops(args.config.dtype), 1),
    }
    print(json.dumps(args.about | result), flush=True)


if __name__ == "__main__":
    main()
