"""`srlhfv ppo_lag`: raise the reward while the expected cost stays under the budget.

config.constraint.controller: none (plain PPO), fixed (reward shaping), log, projected or pid.
"""

from srlhfv_jax.cli import flags, stage
from srlhfv_jax.config import PPOLagConfig
from srlhfv_jax.errors import UserError


def main(argv: list[str]) -> None:
    settings, workdir = flags.stage("ppo_lag", PPOLagConfig, argv, __doc__)
    stage.given(settings.policy, "config.policy", "the supervised policy: a workdir, an export or a Hugging Face folder")
    stage.given(settings.data.path, "config.data.path", "rows with a question")
    if not settings.scorer and not (settings.reward and settings.cost):
        raise UserError("give config.scorer (the workdir of `srlhfv scores`), or both config.reward and config.cost")
    from srlhfv_jax.ppo_lag import run as ppo_lag
    from srlhfv_jax.runs.run import command

    command(ppo_lag.run, settings, workdir)
