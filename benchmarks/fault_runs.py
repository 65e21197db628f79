"""Damaged settings and workdirs of stages; the arguments of a stage over small random data."""

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fault_damage import NASTY, Inputs, damaged, damaged_bytes

from srlhfv_jax.cli import flags
from srlhfv_jax.config import GuardConfig, PPOLagConfig, ScoresConfig, SFTConfig
from srlhfv_jax.report.build import write_report
from srlhfv_jax.runs.run import check_unchanged


def some_settings(folder: Path, draw: random.Random) -> Inputs:
    """Any value for any setting of a stage, as flags."""
    kinds = {"sft": SFTConfig, "scores": ScoresConfig, "guard": GuardConfig, "ppo_lag": PPOLagConfig}
    names = {stage: sorted(_leaves(flags.load(f"{stage}.py:tiny").to_dict())) for stage in kinds}
    while True:
        stage = draw.choice(list(kinds))
        given = [f"--config.{draw.choice(names[stage])}={draw.choice(NASTY)}" for _ in range(draw.choice((1, 1, 2, 4)))]
        argv = [f"--config={stage}.py:tiny", f"--workdir={folder / 'none'}", *given]
        yield f"{stage} {' '.join(given)!r:.300}", lambda: flags.stage(stage, kinds[stage], argv, "")


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def stage(name: str, folder: Path, workdir: Path, **changes: Any) -> list[str]:
    """Arguments of a stage over the rows in `folder` that are called like it."""
    wanted = {
        "data.path": folder / f"{name}.parquet",
        "data.split": "",
        "data.prompt_length": 40,
        "data.response_length": 18,
        "model.scan_unroll": 1,
        "checkpoint.every_steps": 1,
    }
    flags = [f"--config.{key}={value}" for key, value in (wanted | changes).items()]
    return [f"--config={name}.py:tiny", f"--workdir={workdir}", *flags]


def sft(folder: Path, workdir: Path, steps: int = 6) -> list[str]:
    """Arguments of the stage that starts from random weights."""
    return stage("sft", folder, workdir, init=folder / "base", init_random=True, steps=steps)


def random_checkpoint(folder: Path) -> Path:
    """A small LLaVA with weights, as `srlhfv sft` exports it; an earlier part of the benchmark may have made it."""
    if not (folder / "sft" / "export").is_dir():
        command = [sys.executable, "-m", "srlhfv_jax", "sft", *sft(folder, folder / "sft")]
        subprocess.run(command, check=True, capture_output=True)
    return folder / "sft" / "export"


def workdirs(folder: Path, draw: random.Random) -> Inputs:
    """A finished run with damage to one of its files: does the same command start, and is there a report?"""
    random_checkpoint(folder)
    good, place = folder / "sft", folder / "workdir"
    wanted, _ = flags.stage("sft", SFTConfig, sft(folder, place), "")

    def use() -> None:
        write_report(place)
        check_unchanged(wanted, place)

    names = [name for name in ("config.json", "result.json", "metrics.jsonl") if (good / name).is_file()]
    while True:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        (place / "checkpoints").mkdir()
        for name in names:
            shutil.copyfile(good / name, place / name)
        name = draw.choice(names)
        if name.endswith(".json") and draw.random() < 0.7:
            done, changed = damaged(json.loads((place / name).read_text()), draw)
            (place / name).write_text(json.dumps(changed))
        else:
            done, content = damaged_bytes((place / name).read_bytes(), draw)
            (place / name).write_bytes(content)
        yield f"{name} {done}", use
