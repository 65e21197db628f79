"""The reward head alone, on a backbone of its own: `scores` with one head, for `roles.sharing = separate`."""

from pathlib import Path

from srlhfv_jax.config import ScoresConfig
from srlhfv_jax.errors import UserError
from srlhfv_jax.supervised import scores


def run(settings: ScoresConfig, workdir: Path) -> dict[str, float]:
    """As `scores.run`, with config.heads = ("reward",)."""
    if settings.heads != ("reward",):
        raise UserError(
            f"srlhfv reward trains one head: expected config.heads = ('reward',), got {settings.heads}; use srlhfv scores for both"
        )
    return scores.run(settings, workdir)
