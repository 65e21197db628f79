"""PPO-Lagrangian on a tiny text model in every way of sharing: as a library for tests, and as one of several processes.

python tests/tiny_sharing.py FOLDER OUT DATA FSDP TENSOR      FOLDER as `prepare` left it; OUT/<way>/metrics.jsonl
"""

import json
import sys
from pathlib import Path

from tiny_stages import numbers, settings

from srlhfv_jax.config import PPOLagConfig, ScoresConfig, SFTConfig
from srlhfv_jax.parallel import hosts
from srlhfv_jax.stages import ppo_lag, scores, sft

ROWS = 8
LORA = {"lora.rank": 4, "lora.alpha": 8.0}
WAYS = {
    "shared": {"sharing": "shared"},
    "idle": {"sharing": "shared", "rollout.offload": "idle"},  # what is not read waits in the host's memory
    "separate": {"sharing": "separate"},
    "adapters": {"sharing": "adapters"} | LORA,
}


def prepare(folder: Path) -> None:
    """A random Llama with scores trained a step from it, an adapter over it with scores of its own, and rows of PKU-SafeRLHF."""
    import tiny_hf  # needs PyTorch, which `run` does without

    tiny_hf.save(folder / "llama", tiny_hf.llama_config())
    lines = []
    for i in range(ROWS):
        row = {"prompt": " ".join(f"w{7 + i + k}" for k in range(1 + i % 3)), "response_0": "w5 w6", "response_1": "w8 w9 w10"}
        row |= {"better_response_id": i % 2, "safer_response_id": 1}
        row |= {f"is_response_{k}_safe": bool(k) for k in (0, 1)} | {f"response_{k}_severity_level": 2 - 2 * k for k in (0, 1)}
        lines.append(json.dumps(row) + "\n")
    (folder / "pku.jsonl").write_text("".join(lines))
    rows = where(folder)
    scores.run(settings(ScoresConfig, "scores", init=str(folder / "llama"), steps=2, **rows), folder / "scores")
    sft.run(settings(SFTConfig, "sft", init=str(folder / "llama"), steps=2, **rows, **LORA), folder / "adapter")
    scores.run(settings(ScoresConfig, "scores", init=str(folder / "adapter"), steps=2, **rows, **LORA), folder / "adapter_scores")


def where(folder: Path) -> dict:
    return {"data.path": str(folder / "pku.jsonl"), "data.split": "", "data.response_length": 6, "data.batch_size": ROWS}


def run(folder: Path, out: Path, way: str, data: int, fsdp: int, tensor: int, unroll: int = 1, iterations: int = 2) -> list[dict]:
    """Train; gives the numbers of its log."""
    adapted = way == "adapters"
    policy, scorer = (str(folder / name) for name in (("adapter", "adapter_scores") if adapted else ("llama", "scores")))
    roles = {"reward": scorer, "cost": scorer} if way == "separate" else {"scorer": scorer}
    mesh = {"mesh.data": data, "mesh.fsdp": fsdp, "mesh.tensor": tensor, "model.scan_unroll": unroll}
    changes = {"policy": policy, "iterations": iterations, "validation.path": ""} | roles | mesh | where(folder) | WAYS[way]
    ppo_lag.run(settings(PPOLagConfig, "ppo_lag", **changes), out / way)
    return numbers(out / way)


if __name__ == "__main__":
    hosts.initialize()
    for name in WAYS:
        run(Path(sys.argv[1]), Path(sys.argv[2]), name, *map(int, sys.argv[3:6]))
