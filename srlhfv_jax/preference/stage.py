"""Record of the stage."""

from collections.abc import Callable
from typing import Any

from srlhfv_jax.config import PreferenceConfig
from srlhfv_jax.runs.curves import Curve, Curves
from srlhfv_jax.runs.stage import INIT, Run, Stage


def _run() -> Run:
    from srlhfv_jax.preference import run

    return run.run


def _objective() -> Callable[[Any, Any], Any]:
    from srlhfv_jax.preference import run

    return run.objective


PREFERENCE = Stage(
    name="preference",
    text="A policy from pairs of which one answer wins, without a rollout: DPO, SafeDPO, BFPO, IPO, SimPO, KTO, MODPO, SACPO, MoCAN and others, by preset.",
    settings=PreferenceConfig,
    needed={"init": INIT, "data.path": "rows with two responses and a preference, or safety labels"},
    example="--config=configs/preference.py:safedpo --workdir=W/safedpo --config.init=W/sft --config.data.path=BEAVERTAILS_V",
    load=_run,
    objective=_objective,
    curves=Curves(
        kind="preference",
        marks=frozenset({"winner_log_ratio", "loser_log_ratio", "desirable_log_ratio"}),
        unit="step",
        curves=(
            Curve(("loss",), "Loss", "Mean over the pairs of training batches."),
            Curve(("evaluation.loss",), "Held-out loss", "Mean over held-out pairs."),
            Curve(
                ("accuracy", "evaluation.accuracy"),
                "Accuracy",
                "Share of pairs whose winner's log-ratio is the higher one; of KTO, of answers on their side of the baseline.",
            ),
            Curve(
                ("winner_log_ratio", "loser_log_ratio"),
                "Log-ratio of winner and loser",
                "log policy / reference of each answer, in nats. A winner's that falls far says that the policy forgets how to answer.",
            ),
            Curve(
                ("desirable_log_ratio", "undesirable_log_ratio", "kto_baseline"),
                "Log-ratio of safe and unsafe answers",
                "log policy / reference of each answer, in nats, and of answers to other prompts, which KTO compares them with.",
            ),
            Curve(("beta_h",), "Margin", "beta times the difference of the two.", folded=True),
            Curve(
                ("replay_loss",),
                "Loss of replay",
                "Mean over the pairs of `config.replay`, whose answers count as safe.",
                folded=True,
            ),
            Curve(("winner_nll",), "Negative log-likelihood of the winner", "In nats per token.", folded=True),
            Curve(
                ("share.safe_safe", "share.safe_unsafe", "share.unsafe_safe", "share.unsafe_unsafe"),
                "Safety of winner and loser",
                "Share of pairs whose winner and loser are labelled so.",
                folded=True,
            ),
            Curve(("share.desirable",), "Safe answers", "Share of the answers with a label.", folded=True),
            Curve(("grad_norm",), "Gradient norm", "Before it is clipped.", folded=True),
        ),
    ),
)
