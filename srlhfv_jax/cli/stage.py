"""What every stage command does around its stage: settings that must match an earlier start, config.json, result.json."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from srlhfv_jax import files
from srlhfv_jax.config import to_dict
from srlhfv_jax.errors import UserError

ADVICE = "remove it, since the checkpoints hold the settings too"


def run(stage: Callable[[Any, Path], dict[str, Any]], settings: Any, workdir: Path) -> None:
    """Run a stage in `workdir`, refusing a changed config before anything is loaded or overwritten.

    result.json gets `seconds`, those of the last start, beside the numbers of the stage.
    """
    from srlhfv_jax.checkpoint import lock
    from srlhfv_jax.parallel import host_cpu, hosts
    from srlhfv_jax.training import metrics

    host_cpu.prepare()
    hosts.initialize()
    with lock.held(workdir):
        check_unchanged(settings, workdir)
        metrics.write_json(workdir / "config.json", to_dict(settings))
        began = time.monotonic()
        try:
            result = stage(settings, workdir)
        except Exception as error:
            if (lost := hosts.lost(error)) is None:
                raise
            print(f"srlhfv: error: {lost}; the same command in all processes goes on from the last checkpoint", file=sys.stderr)
            sys.stderr.flush()
            os._exit(1)  # an orderly end would wait for the others
        metrics.write_result(workdir, {**result, "seconds": time.monotonic() - began})


def check_unchanged(settings: Any, workdir: Path) -> None:
    """Raise UserError where `workdir` has checkpoints (its own, or those of a pipeline's stages) made with other settings."""
    from srlhfv_jax.checkpoint import provenance

    before = workdir / "config.json"
    if before.is_file() and ((workdir / "checkpoints").is_dir() or any(workdir.glob("*/checkpoints"))):
        provenance.check_same({"settings": files.read_json(before, advice=ADVICE)}, to_dict(settings))


def given(value: str, path: str, what: str) -> None:
    """Raise UserError where a config leaves a path empty that this command cannot do without."""
    if not value:
        raise UserError(f"{path} is empty: give {what} (--{path}=...)")
