"""What a run is given: other rows than those it trains on, and checkpoints. All of it is opened and checked before any weights."""

import dataclasses

from srlhfv_jax.config import DataConfig
from srlhfv_jax.data import loader
from srlhfv_jax.errors import UserError
from srlhfv_jax.hf import peft, weights
from srlhfv_jax.hf.load import backbone_name, checkpoint_folder
from srlhfv_jax.parallel import hosts


def elsewhere(data: DataConfig, path: str, split: str) -> DataConfig:
    """The settings of `data` for rows of another place."""
    return dataclasses.replace(data, path=path, split=split)


def check_held_out(name: str, held: loader.Prepared, trained: loader.Prepared) -> None:
    """Say how many of the rows that a setting names are trained on too: their numbers say nothing of new rows."""
    known = {loader.content(row) for row in trained.rows}
    shared = sum(loader.content(row) in known for row in held.rows)
    if shared:
        hosts.say(f"warning: {name}: {shared} of its {len(held.rows)} rows are trained on too")


def check_checkpoint(path: str, name: str, *heads: str) -> None:
    """Open a checkpoint, without reading its weights.

    Raises:
        UserError: it is not there, not whole, or without these score heads.
    """
    folder = checkpoint_folder(path)
    weights.open_tensors(checkpoint_folder(backbone_name(path)))
    if peft.is_adapter(folder):
        weights.open_file(folder / peft.WEIGHTS)
    scored = folder / weights.HEADS_FILE
    found = sorted(weights.open_file(scored)) if scored.is_file() else []
    for head in heads:
        if head not in found:
            raise UserError(
                f"{name}={path} has no {head} head (it has {', '.join(found) or 'none'}): give the workdir of srlhfv scores"
            )
