"""Provenance of a checkpoint: versions, commit, settings; and the check that a resumed run is still the same run."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from srlhfv_jax.config.stored import GONE, current
from srlhfv_jax.errors import UserError, shown
from srlhfv_jax.hf import hub

PACKAGES = ("srlhfv-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "numpy")

# Settings that may differ between a run and its resumption: they change speed, memory, what is written or how it is measured, not
# what is trained.
MAY_CHANGE = (
    *("checkpoint", "log", "sweep", "functions", "evaluation_every", "keep_best", "patience"),
    *("evaluation", "evaluation_split", "calibration", "calibration_split", "false_positive_rate", "thresholds", "validation"),
    *("mesh", "microbatches", "score_microbatches", "slots", "workers", "remat", "scan_unroll", "attention", "logp_chunk"),
    "decode_first",  # the loader compares the rows themselves
)


def record(settings: dict[str, Any]) -> dict[str, Any]:
    """Versions, commit (if the package runs from a git checkout), settings and the revisions of their models, JSON-able."""
    return {"versions": versions(), "commit": commit(), "settings": _plain(settings), "revisions": _revisions(settings)}


def check_same(stored: dict[str, Any], settings: dict[str, Any]) -> None:
    """Refuse to resume with a setting that changes the mathematics of the run.

    Raises:
        UserError: names the first such setting, or model of the hub, what it was and what it is.
    """
    revisions, here = stored.get("revisions", {}), _revisions(settings)
    for model, revision in revisions.items():
        if here.get(model, revision) != revision:
            raise UserError(
                f"cannot resume: {model} was {revision} on the hub when this workdir was started and is now {here[model]}; use "
                f"{hub.name(model)}@{revision}, or another --workdir"
            )
    before, now = (dict(_flat(_plain(tree))) for tree in (current(stored["settings"]), settings))
    for name in sorted(before.keys() | now.keys()):
        if any(part in MAY_CHANGE or part in GONE for part in name.split(".")):
            continue
        pinned = f"{before.get(name)}@{revisions.get(before.get(name))}" if isinstance(before.get(name), str) else None
        if name not in before or name not in now or now[name] not in (before[name], pinned):
            raise UserError(
                f"cannot resume: config.{name} was {shown(before.get(name))} when this workdir was started "
                f"and is now {shown(now.get(name))}; use the old value, or another --workdir"
            )


def _revisions(settings: dict[str, Any]) -> dict[str, str]:
    """The commit of every model of the hub that settings name, as far as its files are here."""
    named = sorted({value for _, value in _flat(_plain(settings)) if isinstance(value, str) and hub.is_model_id(value)})
    return {model: revision for model in named if (revision := hub.revision(model))}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    by_package = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            by_package[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            by_package[package] = "not installed"
    return by_package


def commit() -> str | None:
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
