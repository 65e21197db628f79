"""Records of the supervised stages."""

from collections.abc import Callable
from typing import Any

from srlhfv_jax.config import ScoresConfig, SFTConfig
from srlhfv_jax.errors import UserError
from srlhfv_jax.runs.curves import Curve, Curves
from srlhfv_jax.runs.stage import INIT, Run, Stage

PAIRS = {"init": INIT, "data.path": "rows with two responses and both preferences"}


def _sft() -> Run:
    from srlhfv_jax.supervised import sft

    return sft.run


def _sft_objective() -> Callable[[Any, Any], Any]:
    from srlhfv_jax.supervised import sft

    return sft.objective


def _scores() -> Run:
    from srlhfv_jax.supervised import scores

    return scores.run


def _scores_objective() -> Callable[[Any, Any], Any]:
    from srlhfv_jax.supervised import scores

    return scores.objective


def _one_head(name: str) -> Callable[[ScoresConfig], None]:
    def check(settings: ScoresConfig) -> None:
        if settings.heads != (name,):
            raise UserError(
                f"srlhfv {name} trains one head: expected config.heads = ({name!r},), got {settings.heads}; use srlhfv scores for both"
            )

    return check


SFT = Stage(
    name="sft",
    text="Supervised fine-tuning on questions with one response.",
    settings=SFTConfig,
    needed={"init": INIT, "data.path": "rows with a question and a response"},
    example="--workdir=W/sft --config.init=LLAVA_FOLDER --config.data.path=rows.jsonl",
    load=_sft,
    objective=_sft_objective,
    curves=Curves(
        kind="sft",
        marks=frozenset({"loss"}),
        unit="step",
        curves=(
            Curve(("loss",), "Loss", "Cross-entropy in nats per token of the answer, on training batches."),
            Curve(("evaluation.loss",), "Held-out loss", "Cross-entropy in nats per token of the answer, on held-out rows."),
            Curve(("entropy",), "Entropy", "Entropy of the next-token distribution, in nats."),
            Curve(("grad_norm",), "Gradient norm", "Before it is clipped.", folded=True),
        ),
    ),
)
SCORES = Stage(
    name="scores",
    text="Reward and cost heads on one backbone, trained jointly from dual preferences.",
    settings=ScoresConfig,
    needed=PAIRS,
    example="--workdir=W/scores --config.init=W/sft --config.data.path=BEAVERTAILS_V",
    load=_scores,
    objective=_scores_objective,
    curves=Curves(
        kind="scores",
        marks=frozenset({"reward_accuracy", "cost_accuracy", "reward_loss", "cost_loss"}),
        unit="step",
        curves=(
            Curve(("loss",), "Loss", "Sum of the losses of both heads, on training batches."),
            Curve(("evaluation.loss",), "Held-out loss", "Sum of the losses of both heads, on held-out pairs."),
            Curve(
                ("reward_model.pair_accuracy", "cost_model.pair_accuracy", "cost_model.sign_accuracy"),
                "Held-out accuracy of the score heads",
                "Share of pairs in the right order, and of answers whose cost has the right sign; on held-out pairs.",
            ),
            Curve(
                ("reward_accuracy", "cost_accuracy", "cost_sign_accuracy"),
                "Accuracy of the score heads",
                "Share of pairs in the right order, and of answers whose cost has the right sign; on training batches.",
            ),
            Curve(("reward_loss", "cost_loss"), "Loss of each head", folded=True),
            Curve(("evaluation.reward_loss", "evaluation.cost_loss"), "Held-out loss of each head", folded=True),
            Curve(("cost_model.calibration_error",), "Held-out calibration error of the cost head", folded=True),
            Curve(("grad_norm",), "Gradient norm", "Before it is clipped.", folded=True),
        ),
    ),
)
REWARD = SCORES._replace(
    name="reward",
    text='A reward model on a backbone of its own, for ppo_lag with config.sharing="separate".',
    example="--workdir=W/reward --config.init=W/sft --config.data.path=BEAVERTAILS_V",
    check=_one_head("reward"),
)
COST = SCORES._replace(
    name="cost",
    text='A cost model on a backbone of its own, for ppo_lag with config.sharing="separate".',
    example="--workdir=W/cost --config.init=W/sft --config.data.path=BEAVERTAILS_V",
    check=_one_head("cost"),
)
STAGES = (SFT, SCORES, REWARD, COST)
