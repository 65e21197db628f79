"""Commands in processes of their own, as a user has them: without PyTorch, which only tests need, and on one device."""

import os
import sys
from pathlib import Path

SRLHFV = (sys.executable, "-m", "srlhfv_jax")
_PATHS = (str(Path(__file__).parent / "without_torch"), os.environ.get("PYTHONPATH", ""))
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join(path for path in _PATHS if path),
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
}
