"""On PYTHONPATH: a process without PyTorch, as where the package alone is installed. `transformers` imports in half the time there."""

import sys

sys.modules["torch"] = None
