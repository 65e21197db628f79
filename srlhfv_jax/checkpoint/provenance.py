"""What made a checkpoint: versions, commit, settings; and the check that a resumed run is still the same run."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from srlhfv_jax.errors import UserError

PACKAGES = ("srlhfv-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "numpy")

# Settings that may differ between a run and its resumption: they change speed, memory, what is written or how it is measured, not
# what is trained.
MAY_CHANGE = (
    *("checkpoint", "log", "sweep"),
    *("evaluation", "evaluation_split", "calibration", "calibration_split", "false_positive_rate", "thresholds", "validation"),
    *("mesh", "microbatches", "score_microbatches", "workers", "remat", "scan_unroll", "attention", "logp_chunk"),
)


def record(settings: dict[str, Any]) -> dict[str, Any]:
    """Versions, commit (if the package runs from a git checkout) and settings, JSON-able."""
    return {"versions": _versions(), "commit": _commit(), "settings": _plain(settings)}


def check_same(stored: dict[str, Any], settings: dict[str, Any]) -> None:
    """Refuse to resume with a setting that changes the mathematics of the run.

    Raises:
        UserError: names the first such setting, what it was and what it is.
    """
    before, now = (dict(_flat(_plain(tree))) for tree in (stored["settings"], settings))
    for name in sorted(before.keys() | now.keys()):
        if any(part in MAY_CHANGE for part in name.split(".")):
            continue
        if name not in before or name not in now or before[name] != now[name]:
            raise UserError(
                f"cannot resume: config.{name} was {before.get(name)!r} when this workdir was started "
                f"and is now {now.get(name)!r}; use the old value, or another --workdir"
            )


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _commit() -> str | None:
    """The commit of the checkout that holds this package, with "+" if files were changed; None outside git."""
    folder = Path(__file__).parent
    try:
        run = [
            subprocess.run(["git", "-C", str(folder), *command], capture_output=True, text=True, timeout=10)
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no", "."])
        ]
    except (OSError, subprocess.TimeoutExpired):
        return None
    if any(process.returncode for process in run):
        return None
    return run[0].stdout.strip() + ("+" if run[1].stdout.strip() else "")


def _plain(tree: Any) -> Any:
    """As JSON would give it back: tuples become lists."""
    if isinstance(tree, dict):
        return {str(name): _plain(value) for name, value in tree.items()}
    return [_plain(value) for value in tree] if isinstance(tree, (tuple, list)) else tree


def _flat(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs = []
    for name, value in tree.items():
        pairs += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return pairs
