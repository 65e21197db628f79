"""Beaver-Guard-V: judges a question before it is answered and an answer before it is shown.

The paper (arXiv 2503.17682) describes what its guard does, not how it is made: heads, losses and thresholds are our own design.
"""

from srlhfv_jax.data.rows import Prompt
from srlhfv_jax.guard.judge import Guard
from srlhfv_jax.guard.regenerate import guarded_generate
from srlhfv_jax.guard.verdict import Guarded, GuardVerdict, Round

__all__ = ["Guard", "GuardVerdict", "Guarded", "Prompt", "Round", "guarded_generate"]
