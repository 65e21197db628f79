"""Stages in tests: settings of the tiny presets with changed keys, a small picture task, and whether two runs wrote the same."""

import json
from pathlib import Path

import pytest

from srlhfv_jax.cli import flags
from srlhfv_jax.config import ScoresConfig, SFTConfig
from srlhfv_jax.data.quickstart import processor as task_processor, rows as task_rows
from srlhfv_jax.parsing import parse
from srlhfv_jax.quickstart.pipeline import write_rows
from srlhfv_jax.supervised import scores, sft


def settings(kind, command: str, **changes):
    """configs/<command>.py:tiny on one device, with changed keys ("data.path" and so on). Layers are scanned: one is compiled."""
    changes = {"mesh.fsdp": 1, "model.scan_unroll": 1} | changes
    config = flags.load(f"{command}.py:tiny")
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    return parse(kind, config)


def picture_task(folder: Path) -> Path:
    """A folder with `base`, to start a small LLaVA from, and supervised rows of the embedded task, `sft.parquet`."""
    task_processor.write_base(folder / "base", patch=16, vision_layers=1, vision_width=16, text_layers=2, text_width=16, heads=2)
    write_rows(folder / "sft.parquet", task_rows.sft_rows(0, task_rows.split_cells(0), 48))
    return folder


def rows(picture: Path) -> dict:
    """The supervised rows of a picture task, for `settings`."""
    return {"data.path": str(picture / "sft.parquet"), "data.split": "", "data.response_length": 24, "data.prompt_length": 40}


def supervised_and_pairs(folder: Path, pairs: list[dict]) -> Path:
    """A picture task with a supervised policy of one step, `sft`, and `pairs.parquet`."""
    picture_task(folder)
    start = settings(SFTConfig, "sft", init=str(folder / "base"), init_random=True, steps=1, **rows(folder))
    sft.run(start, folder / "sft")
    write_rows(folder / "pairs.parquet", pairs)
    return folder


def supervised_and_scorer(folder: Path) -> Path:
    """The same with a scorer of its pairs, `scores`."""
    supervised_and_pairs(folder, task_rows.topic_rows(3, task_rows.split_cells(0), "train", 24, task_rows.Noise()))
    pairs = rows(folder) | {"data.path": str(folder / "pairs.parquet")}
    scores.run(settings(ScoresConfig, "scores", init=str(folder / "sft"), **pairs), folder / "scores")
    return folder


def adapters_and_prompts(folder: Path) -> Path:
    """Adapters over one small LLaVA, and prompts about pictures, `prompts.parquet`."""
    adapter_stages(picture_task(folder), folder, {"lora.rank": 4} | rows(folder))
    write_rows(folder / "prompts.parquet", task_rows.prompt_rows(0, task_rows.split_cells(0), "train", 16))
    return folder


def adapter_stages(picture: Path, out: Path, start: dict) -> Path:
    """Workdirs `sft` and `scores` with adapters, as `start` says, over `whole`, one random LLaVA."""
    whole = settings(SFTConfig, "sft", init=str(picture / "base"), init_random=True, steps=1, **rows(picture))
    sft.run(whole, out / "whole")
    sft.run(settings(SFTConfig, "sft", init=str(out / "whole"), **start), out / "sft")
    write_rows(out / "pairs.parquet", task_rows.probe_rows(0, task_rows.split_cells(0), "train", 16, task_rows.Noise()))
    pairs = start | {"data.path": str(out / "pairs.parquet")}
    scores.run(settings(ScoresConfig, "scores", init=str(out / "sft"), **pairs), out / "scores")
    return out


def numbers(workdir: Path) -> list[dict]:
    """The lines of a run's log, without their times."""
    log = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if "second" not in name} for line in log]


def same_numbers(log: list[dict], expected: list[dict], within: float) -> None:
    """Up to the order in which sums were taken."""
    for one, other in zip(log, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name] == pytest.approx(other[name], rel=within, abs=within / 10), name
