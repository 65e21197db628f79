"""Settings of the jitted calls of an iteration, beside their arrays: one object for all of them."""

from typing import Mapping, NamedTuple

from srlhfv_jax.config import PPOConfig, PPOLagConfig
from srlhfv_jax.losses import lagrangian
from srlhfv_jax.losses.calibration import Calibration
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.ppo_lag.roles import Place
from srlhfv_jax.rollout.generate import Vocabulary


class Static(NamedTuple):
    """Settings and architecture of a run; no arrays."""

    settings: PPOLagConfig
    model: VLMConfig  # of every role
    places: Mapping[str, Place]  # role -> tree and head
    own_towers: frozenset[str]  # trees whose vision tower differs from the policy's and runs on its own
    vocabulary: Vocabulary
    calibration: Calibration | None = None  # of the cost, where config.constraint.calibrated

    def calibration_of(self, key: str) -> Calibration | None:
        """The calibration that a constraint's statistic is taken with; None: it has none."""
        return lagrangian.border(self.settings.costs[key].settings, self.calibration)

    @property
    def recomputes_logp(self) -> bool:
        """Whether the training graph's log-probabilities take the place of the sampler's."""
        return self.settings.rollout.old_logp == "recompute"


def is_single_step(ppo: PPOConfig) -> bool:
    """Whether an iteration is one gradient step. The values that its critic losses compute are those of the rollout's parameters
    then, so that advantages need no forward pass of their own."""
    return ppo.epochs * ppo.minibatches == 1
