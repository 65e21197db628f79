"""Record of PPO-Lagrangian."""

from srlhfv_jax.config import PPOLagConfig
from srlhfv_jax.errors import UserError
from srlhfv_jax.ppo_lag import curves
from srlhfv_jax.runs.stage import Run, Stage


def _ppo_lag() -> Run:
    from srlhfv_jax.ppo_lag import run

    return run.run


def _check(settings: PPOLagConfig) -> None:
    for name in settings.heads:
        if not (settings.scorer or (settings.reward if name == "reward" else settings.cost)):
            raise UserError(
                f"nothing says what the {name} is: give config.scorer (the workdir of `srlhfv scores`), config.{name} with "
                f"config.sharing=separate, or a function of your own: config.{name}_fn=FILE.py:NAME"
            )


PPO_LAG = Stage(
    name="ppo_lag",
    text="""Raise the reward while the expected cost stays under the budget, config.constraint.budget.

config.constraint.controller: none (plain PPO), fixed (reward shaping), log, projected, pid, crpo or p3o.
The scores come from config.scorer (the workdir of `srlhfv scores`), from config.reward and config.cost, or from
functions of your own, f(samples) -> list of numbers: config.reward_fn=FILE.py:NAME and config.cost_fn.
Several constraints: config.constraints, of which --config.constraints.NAME.KEY=VALUE changes one or adds it.""",
    settings=PPOLagConfig,
    needed={
        "policy": "the supervised policy: a workdir, an export or a Hugging Face folder",
        "data.path": "rows with a question",
    },
    example="--workdir=W/ppo_lag --config.policy=W/sft --config.scorer=W/scores --config.data.path=PROMPTS",
    load=_ppo_lag,
    curves=curves.PPO_LAG,
    check=_check,
)
