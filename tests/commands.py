"""Commands in processes of their own, as a user has them: without PyTorch, which only tests need, and on one device."""

import importlib.metadata
import os
import sys
from pathlib import Path

# Compiling is most of the work of the tests: LLVM optimizes nothing, and jaxlib 0.10 takes its older emitters of loops, for which it
# needs a third of the time. Later ones have no others, and end at a flag that they do not know.
COMPILER = ("--xla_backend_optimization_level=0",)
if importlib.metadata.version("jaxlib").startswith("0.10."):
    COMPILER += ("--xla_cpu_use_fusion_emitters=false",)
SRLHFV = (sys.executable, "-m", "srlhfv_jax")
_PATHS = (str(Path(__file__).parent / "without_torch"), os.environ.get("PYTHONPATH", ""))
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join(path for path in _PATHS if path),
    "XLA_FLAGS": " ".join(COMPILER),
}


def on_path(folder: Path) -> dict[str, str]:
    """The environment in which `srlhfv` and `python` are this Python's, as in a shell with its environment activated.

    Args:
        folder: an empty one, for the two.
    """
    for name, command in (("srlhfv", f"{sys.executable} -m srlhfv_jax"), ("python", sys.executable)):
        (folder / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (folder / name).chmod(0o755)
    return ENVIRONMENT | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
