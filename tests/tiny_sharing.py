"""PPO-Lagrangian on a tiny text model in every way of sharing, and the other stages with their held-out rows: as a library for
tests, and as one of several processes.

python tests/tiny_sharing.py FOLDER OUT DATA FSDP TENSOR NAME...     FOLDER as `prepare` left it; a NAME of WAYS or STAGES, or own
"""

import functools
import json
import sys
from pathlib import Path

from tiny_stages import numbers, settings

from srlhfv_jax.config import GuardConfig, PPOLagConfig, PreferenceConfig, ScoresConfig, SFTConfig
from srlhfv_jax.guard import train as guard
from srlhfv_jax.parallel import hosts
from srlhfv_jax.ppo_lag import run as ppo_lag
from srlhfv_jax.preference import run as preference
from srlhfv_jax.supervised import scores, sft

ROWS = 8
HELD_OUT = 11  # two batches, the second with rows that only fill it up
LORA = {"lora.rank": 4, "lora.alpha": 8.0}
OWN = {
    "reward_fn": "length",
    "constraints": (
        dict(name="harm", cost="first*0.5,model"),
        dict(name="brief", cost="answer:length", kind="mean", where="side=s1"),
    ),
    "functions.backoff_s": 0.0,
}  # functions: `given`
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
    (folder / "pku.jsonl").write_text("".join(_line(i) for i in range(ROWS)))
    (folder / "heldout.jsonl").write_text("".join(_line(3 * i + 1) for i in range(HELD_OUT)))
    rows = where(folder)
    scores.run(settings(ScoresConfig, "scores", init=str(folder / "llama"), steps=2, **rows), folder / "scores")
    sft.run(settings(SFTConfig, "sft", init=str(folder / "llama"), steps=2, **rows, **LORA), folder / "adapter")
    scores.run(settings(ScoresConfig, "scores", init=str(folder / "adapter"), steps=2, **rows, **LORA), folder / "adapter_scores")


def _line(i: int) -> str:
    row = {"prompt": " ".join(f"w{7 + i + k}" for k in range(1 + i % 3)), "response_0": "w5 w6", "response_1": "w8 w9 w10"}
    row |= {"better_response_id": i % 2, "safer_response_id": 1, "side": f"s{i % 2}"}
    row |= {f"is_response_{k}_safe": bool(k) for k in (0, 1)} | {f"response_{k}_severity_level": 2 - 2 * k for k in (0, 1)}
    row |= {f"response_{k}_harm_category": {"Violence": k == 0, "Drugs": k == 0 and i % 3 == 0} for k in (0, 1)}
    return json.dumps(row) + "\n"


def where(folder: Path) -> dict:
    return {"data.path": str(folder / "pku.jsonl"), "data.split": "", "data.response_length": 6, "data.batch_size": ROWS}


def stage(folder: Path, out: Path, name: str, data: int, fsdp: int, tensor: int) -> list[dict]:
    """Run one of STAGES with all held-out rows that it can read; gives the numbers of its log, and at the end its result."""
    held_out, paired = str(folder / "heldout.jsonl"), {"batch_size": ROWS // 2, "path": str(folder / "pku.jsonl")}
    mesh = {"mesh.data": data, "mesh.fsdp": fsdp, "mesh.tensor": tensor}
    rows, llama = where(folder) | mesh, str(folder / "llama")
    match name:
        case "sft":
            rows |= {"evaluation": held_out, "evaluation_every": 1, "keep_best": "evaluation.loss"}
            result = sft.run(settings(SFTConfig, "sft", init=llama, steps=2, **rows), out / name)
        case "scores":
            result = scores.run(settings(ScoresConfig, "scores", init=llama, steps=2, evaluation=held_out, **rows), out / name)
        case "preference":  # both passes of other models, and ours
            rows |= {"evaluation": held_out, "evaluation_every": 1, "axis": "scores", "scores.scorer": str(folder / "scores")}
            result = preference.run(settings(PreferenceConfig, "preference", init=llama, steps=2, **rows), out / name)
        case "guard":
            held = {"parts": ("output",), "calibration": rows["data.path"], "evaluation": held_out, "pairs.evaluation": held_out}
            held |= {"evaluation_every": 1, "keep_best": "guard.output.auroc"}  # the first of two equal ones
            rows |= held | {f"pairs.{key}": value for key, value in paired.items()}
            result = guard.run(settings(GuardConfig, "guard", init=llama, steps=2, taxonomy="pku_saferlhf", **rows), out / name)
        case "ppo_lag":
            rows |= {"validation.path": held_out, "validation.every_steps": 1, "validation.budget": 1e3}
            rows |= {"ptx.coef": 2.0, "ptx.path": rows["data.path"], "policy": llama, "scorer": str(folder / "scores")}
            result = ppo_lag.run(settings(PPOLagConfig, "ppo_lag", iterations=2, **rows), out / name)
    assert (out / name / "export" / "config.json").exists()
    return [*numbers(out / name), result]


def given(folder: Path) -> dict:
    """Functions as reward and cost. `first` fails, or is another one on each process, where a file in `folder` says so."""

    def first(samples, process=0):
        if (folder / "fails").exists() and hosts.process_index() == 1:
            raise ConnectionError("no route")
        return [sum(map(ord, one.answer)) / 700 - 0.75 for one in samples]

    odd = functools.partial(first, process=hosts.process_index()) if (folder / "differs").exists() else first
    return {"reward": {"length": lambda samples: [-abs(len(one.answer) - 9.5) for one in samples]}, "cost": {"first": odd}}


def own(folder: Path, out: Path, data: int, fsdp: int, tensor: int) -> list[dict]:
    """Train with functions as reward and cost, of which the second is mixed with the learned head, and a second constraint on some rows; gives the numbers of its log."""
    mesh = {"mesh.data": data, "mesh.fsdp": fsdp, "mesh.tensor": tensor}
    rows = where(folder) | mesh | OWN | {"policy": str(folder / "llama"), "scorer": str(folder / "scores")}
    held_out = {"validation.path": str(folder / "heldout.jsonl"), "validation.every_steps": 1}
    ppo_lag.run(settings(PPOLagConfig, "ppo_lag", iterations=2, **rows, **held_out), out / "own", given(out))
    return numbers(out / "own")


STAGES = ("sft", "scores", "preference", "guard", "ppo_lag")


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
    for asked in sys.argv[6:]:
        where_from, out, mesh = Path(sys.argv[1]), Path(sys.argv[2]), tuple(map(int, sys.argv[3:6]))
        if asked == "own":
            made = own(where_from, out, *mesh)
        else:
            made = (run if asked in WAYS else stage)(where_from, out, asked, *mesh)
        (out / f"{asked}.{hosts.process_index()}.json").write_text(json.dumps(made))
