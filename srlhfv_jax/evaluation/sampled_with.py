"""Answers that lie in a workdir are read again where they are what the settings of now would sample: of the same weights, in the same way.

sampled.json beside them has all that they were made with.
"""

import dataclasses
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from srlhfv_jax import files
from srlhfv_jax.data.given import RowSettings
from srlhfv_jax.hf.load import checkpoint_folder
from srlhfv_jax.parallel import hosts

FILE = "sampled.json"
ADVICE = "remove the file, and the answers are sampled again"


def described(settings: RowSettings, later: Collection[str], checkpoints: Iterable[str]) -> dict[str, Any]:
    """All that answers and their scores depend on, as JSON has it.

    Args:
        settings: a dataclass, that of a command.
        later: names of those that change no answer and no score.
        checkpoints: all that are read; "" is none.
    """
    values = {name: value for name, value in dataclasses.asdict(settings).items() if name not in later}
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return values | {"weights": [fingerprint(checkpoint_folder(path)) for path in checkpoints if path]}


def is_there(command: str, answers: Path, made_with: dict[str, Any]) -> bool:
    """Whether the file has the answers of these settings; says so, for the command.

    Args:
        made_with: as `described` says of these settings.

    Raises:
        UserError: sampled.json is damaged.
    """
    path = answers.parent / FILE
    if not (path.is_file() and answers.is_file()):
        return False
    if files.read_json(path, advice=ADVICE) == made_with:
        hosts.say(f"{command}: the answers are those of {answers}, which was made with the same settings")
        return True
    hosts.say(f"{command}: {answers} was made with other settings, or of other weights: sampled anew")
    return False


def fingerprint(folder: Path) -> list[Any]:
    """Names, sizes and times of a checkpoint's files: others are another checkpoint, most likely."""
    stats = sorted((file.name, file.stat()) for file in folder.iterdir() if file.is_file() and file.suffix == ".safetensors")
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
