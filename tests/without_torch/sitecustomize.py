"""On PYTHONPATH: a process without PyTorch, as where the package alone is installed. `transformers` imports sooner there."""

import sys
from importlib.machinery import PathFinder


class WithoutTorch(PathFinder):
    """Finds what there is, but for PyTorch."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        return None if fullname == "torch" else super().find_spec(fullname, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutTorch
