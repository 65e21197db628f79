"""Time a step on pairs, both answers in one sequence and the reference's numbers stored, beside the plain way in PyTorch.

    python benchmarks/preference.py --size=medium --compare          (needs the `test` extra; prints one JSON line last)

Without `--compare` our step alone. With it three sides take turns in processes of their own: the plain way, the plain way with stored
numbers, and ours. The targets are a `speedup` over the plain way of 1.8 at small and 2.2 at medium, and a `memory_ratio` of at most 0.7.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pairs
import ppo_lag_iteration as whole
from sizes import RESPONSE, SIZES, Size

from srlhfv_jax.batches import PreferenceBatch
from srlhfv_jax.config import MeshConfig, PreferenceConfig
from srlhfv_jax.configs import preference as presets
from srlhfv_jax.models import vlm
from srlhfv_jax.parallel import host_cpu
from srlhfv_jax.parallel.mesh import make_mesh
from srlhfv_jax.parsing import parse
from srlhfv_jax.preference.run import objective
from srlhfv_jax.supervised.train import make_update
from srlhfv_jax.training import optimizer as optimizers, state as states

HERE = Path(__file__).parent
SIDES = {"plain": ("torch_dpo.py",), "plain_stored": ("torch_dpo.py", "--stored"), "ours": ("preference.py",)}
ROUNDS = 3


def random_pairs(size: Size) -> PreferenceBatch:
    """The pairs of the other benchmark, with what a loss reads of them."""
    B, number_B = size.batch, np.full(size.batch, 0.1, np.float32)
    return PreferenceBatch(
        *pairs.random_pairs(size)[:5],
        weight_B=np.ones(B, np.float32),
        winner_B=np.arange(B, dtype=np.int32) % 2,
        unsafe_BS=np.full((B, 2), 0.5, np.float32),
        reference_BS=np.random.default_rng(2).normal(size=(B, 2)).astype(np.float32),
        scale_B=number_B,
        offset_B=0 * number_B,
        flip_B=0 * number_B,
        target_B=number_B,
        sft_B=0 * number_B,
    )


def measure(size: Size, args) -> dict[str, float]:
    """Seconds of our step, and what it needs of memory."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=1))
    settings = parse(PreferenceConfig, presets.get_config("dpo_helpful"))
    with jax.set_mesh(mesh):
        batch = jax.tree.map(jnp.asarray, random_pairs(size))
        tree = {"backbone": vlm.init(args.config, jax.random.key(0))}
        optimizer, trainable = optimizers.make(settings.optimizer, tree, 10), optimizers.trainable(settings.optimizer, tree)
        loss = objective(args.config, settings).loss
        update = make_update(loss, optimizer, trainable, 1, states.places(tree, optimizer, mesh))
        state, seconds = states.create(tree, optimizer, mesh), []
        del tree
        for _ in range(whole.WARM_UP + args.iterations):
            start = time.perf_counter()
            state, metrics = update(state, None, batch)
            jax.block_until_ready((state, metrics))
            seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[whole.WARM_UP :])
    return {
        "pairs": size.batch,
        "prompt": size.prompt,
        "response": RESPONSE,
        "step_s": round(median, 3),
        "pairs_per_s": round(size.batch / median, 3),
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }


def compare(flags: list[str]) -> dict[str, float]:
    """Medians of all sides over rounds in which they take turns, and ours beside the plain way."""
    results: dict[str, list[dict]] = {side: [] for side in SIDES}
    for _ in range(ROUNDS):
        for side, (script, *own) in SIDES.items():
            mine = flags if side == "ours" else [flag for flag in flags if not flag.startswith(("--remat", "--scan_unroll"))]
            command = [sys.executable, str(HERE / script), *own, *mine]
            output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            results[side].append(json.loads(output.splitlines()[-1]))
            print(output.splitlines()[-1], flush=True)

    def median(side: str, name: str) -> float:
        return statistics.median(result[name] for result in results[side])

    numbers = {f"{side}.{name}": median(side, name) for side in SIDES for name in ("step_s", "peak_rss_gb")}
    return numbers | {
        "speedup": round(median("plain", "step_s") / median("ours", "step_s"), 2),
        "speedup_of_stored": round(median("plain", "step_s") / median("plain_stored", "step_s"), 2),
        "speedup_of_one_sequence": round(median("plain_stored", "step_s") / median("ours", "step_s"), 2),
        "memory_ratio": round(median("ours", "peak_rss_gb") / median("plain", "peak_rss_gb"), 2),
    }


def main() -> None:
    if "--compare" in sys.argv:
        print(json.dumps(compare([flag for flag in sys.argv[1:] if flag != "--compare"])), flush=True)
        return
    host_cpu.prepare()
    args = whole.arguments(__doc__.splitlines()[0], roles=False)
    print(json.dumps(args.about | measure(SIZES[args.size], args)), flush=True)


if __name__ == "__main__":
    main()
