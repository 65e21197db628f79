"""The newest checkpoint of a run that has no export yet, as a checkpoint that others read."""

from pathlib import Path
from typing import Any, NamedTuple

from srlhfv_jax import files
from srlhfv_jax.checkpoint.manager import Manager
from srlhfv_jax.config import Trained, stored
from srlhfv_jax.hf import hub, leaves
from srlhfv_jax.hf.load import is_checkpoint
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.runs import checkpoints
from srlhfv_jax.runs.run import EXPORT, recorded_template


class Unfinished(NamedTuple):
    """Arguments of `hf.export_pretrained`."""

    step: int
    config: VLMConfig
    tree: dict[str, Any]  # "backbone" or "adapter", and "heads" and "guard" where they are trained
    base: Path
    about: dict[str, Any]
    settings: Trained
    chat_template: str | None = None
    guard: dict[str, Any] | None = None  # for guard.json


def is_unfinished(workdir: Path) -> bool:
    """Whether a folder is the workdir of a stage that has checkpoints and no export."""
    return (workdir / "checkpoints").is_dir() and not is_checkpoint(workdir / EXPORT)


def read(workdir: Path) -> Unfinished:
    """The trees that a run has trained so far. A guard has still to be completed: `guard.train.complete`.

    Raises:
        UserError: no whole checkpoint, or settings that are damaged.
    """
    found = files.read_json(workdir / "config.json")
    settings = stored.read(found, str(workdir / "config.json"))
    parameters, step = Manager(workdir, 1, 1).parameters()
    tree: dict[str, Any] = {}
    for path, leaf in parameters.items():
        leaves.put(tree, tuple(path.split("/")), leaf)
    tree = tree["policy"] if settings.stage == "ppo_lag" else tree
    shape = checkpoints.load_shape(settings.start, settings.model, settings.data.chat_template)
    about = {"stage": settings.stage, "step": step} | hub.origin(settings.start)
    return Unfinished(step, shape.config, tree, shape.path, about, settings, recorded_template(workdir))
