"""Compiled programs on disk, for all commands: a run that goes on after a preemption, and the next run like it, compile nothing again.

JAX keeps them in the folder that JAX_COMPILATION_CACHE_DIR names, and finds them by program, devices and versions.
"""

import hashlib
import os
import platform
from pathlib import Path

FOLDER = "JAX_COMPILATION_CACHE_DIR"
LARGEST = 10 << 30  # bytes; what was not read for longest goes first


def prepare() -> None:
    """Name a folder of the user's cache, unless the environment names one. Call it before JAX is imported.

    JAX_ENABLE_COMPILATION_CACHE=false switches it off. Where the folder cannot be written there is none.
    """
    if FOLDER in os.environ:
        return
    try:
        folder = default_folder()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # nowhere to write, or no home
        return
    if os.access(folder, os.W_OK | os.X_OK):
        os.environ[FOLDER] = str(folder)
        os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(LARGEST))


def default_folder() -> Path:
    """`~/.cache/srlhfv_jax/compiled/PROCESSOR`, or under XDG_CACHE_HOME.

    Processors do not share one: a program for a CPU may use instructions that another has not, and home folders are shared.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(cache) / "srlhfv_jax" / "compiled" / _processor()


def _processor() -> str:
    """Architecture, and a digest of the instructions that Linux says the processor has."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = [platform.processor()]
    features = next((line for line in lines if line.startswith(("flags", "Features"))), lines[0] if lines else "")
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:12]}"
