"""The curves of supervised fine-tuning and of reward and cost heads in a report."""

from srlhfv_jax.runs.curves import Curve, Curves

SFT = Curves(
    kind="sft",
    marks=frozenset({"loss"}),
    unit="step",
    curves=(
        Curve(("loss",), "Loss", "Cross-entropy in nats per token of the answer, on training batches."),
        Curve(("entropy",), "Entropy", "Entropy of the next-token distribution, in nats."),
        Curve(("grad_norm",), "Gradient norm", "Before it is clipped.", folded=True),
    ),
)
SCORES = Curves(
    kind="scores",
    marks=frozenset({"reward_accuracy", "cost_accuracy", "reward_loss", "cost_loss"}),
    unit="step",
    curves=(
        Curve(("loss",), "Loss", "Sum of the losses of both heads, on training batches."),
        Curve(
            ("reward_accuracy", "cost_accuracy", "cost_sign_accuracy"),
            "Accuracy of the score heads",
            "Share of pairs in the right order, and of answers whose cost has the right sign; on training batches.",
        ),
        Curve(("reward_loss", "cost_loss"), "Loss of each head", folded=True),
        Curve(("grad_norm",), "Gradient norm", "Before it is clipped.", folded=True),
    ),
)
