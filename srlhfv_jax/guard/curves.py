"""The curves of a guard's training in a report."""

from srlhfv_jax.runs.curves import Curve, Curves

GUARD = Curves(
    kind="guard",
    marks=frozenset({"severity_loss", "category_loss"}),
    unit="step",
    curves=(
        Curve(("loss",), "Loss", "Severity and categories together, on training batches."),
        Curve(
            ("severity_accuracy", "category_accuracy"),
            "Accuracy of severity and categories",
            "Share of the single yes-or-no labels that are right, on training batches.",
        ),
        Curve(("severity_loss", "category_loss"), "Loss of severity and of categories", folded=True),
        Curve(("grad_norm",), "Gradient norm", "Before it is clipped.", folded=True),
    ),
)
