"""Stages in tests: settings of the tiny presets with changed keys, and a small picture task."""

from pathlib import Path

from srlhfv_jax.cli import flags
from srlhfv_jax.data.quickstart import processor as task_processor, rows as task_rows
from srlhfv_jax.parsing import parse
from srlhfv_jax.stages.quickstart import write_rows


def settings(kind, command: str, **changes):
    """configs/<command>.py:tiny on one device, with changed keys ("data.path" and so on)."""
    changes = {"mesh.fsdp": 1} | changes
    config = flags.load(f"{command}.py:tiny")
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    return parse(kind, config)


def picture_task(folder: Path) -> Path:
    """A folder with `base`, to start a small LLaVA from, and supervised rows of the embedded task, `sft.parquet`."""
    task_processor.write_base(folder / "base", patch=16, vision_layers=1, vision_width=16, text_layers=2, text_width=16, heads=2)
    write_rows(folder / "sft.parquet", task_rows.sft_rows(0, task_rows.split_cells(0), 48))
    return folder
