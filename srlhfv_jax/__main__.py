"""`python -m srlhfv_jax <command>`, the same as `srlhfv <command>`. Signals first: all other imports take a while."""

import atexit
import sys

from srlhfv_jax import signals


def run() -> int:
    """The command of this process's arguments; returns the exit code."""
    signals.install()
    atexit.register(signals.ignore)  # registered first, called last
    from srlhfv_jax.cli.main import main

    return main()


if __name__ == "__main__":
    sys.exit(run())
