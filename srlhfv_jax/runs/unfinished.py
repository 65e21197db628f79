"""The newest checkpoint of a run that has no export yet, as a checkpoint that others read."""

from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from srlhfv_jax import files
from srlhfv_jax.checkpoint.manager import Manager
from srlhfv_jax.config import GuardConfig, PPOLagConfig, ScoresConfig, SFTConfig
from srlhfv_jax.errors import UserError
from srlhfv_jax.hf import leaves
from srlhfv_jax.hf.load import is_checkpoint
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.parsing import parse
from srlhfv_jax.runs import checkpoints
from srlhfv_jax.runs.run import EXPORT

KINDS = {"sharing": PPOLagConfig, "taxonomy": GuardConfig, "heads": ScoresConfig, "init_random": SFTConfig}


class Unfinished(NamedTuple):
    """What `hf.export_pretrained` takes."""

    step: int
    config: VLMConfig
    tree: dict[str, Any]  # "backbone" or "adapter", and "heads" and "guard" where they are trained
    base: Path
    about: dict[str, Any]
    settings: PPOLagConfig | GuardConfig | ScoresConfig | SFTConfig
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
    kind = next((kind for mark, kind in KINDS.items() if mark in found), None)
    if kind is None:
        raise UserError(f"{workdir / 'config.json'} is of no stage that trains: give the workdir of one")
    settings = parse(kind, ConfigDict(found))
    parameters, step = Manager(workdir, 1, 1).parameters()
    tree: dict[str, Any] = {}
    for path, leaf in parameters.items():
        leaves.put(tree, tuple(path.split("/")), leaf)
    start = settings.policy if kind is PPOLagConfig else settings.init
    tree = tree["policy"] if kind is PPOLagConfig else tree
    shape = checkpoints.load_shape(start, settings.model)
    about = {"stage": kind.__name__.removesuffix("Config").lower(), "step": step}
    return Unfinished(step, shape.config, tree, shape.path, about, settings)
