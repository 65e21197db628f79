"""`python -m srlhfv_jax <command>`, the same as `srlhfv <command>`."""

import sys

from srlhfv_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
