"""The curves of a guard's training in a report."""

from srlhfv_jax.runs.curves import Curve, Curves

GUARD = Curves(
    kind="guard",
    marks=frozenset({"severity_loss", "category_loss"}),
    unit="step",
    curves=(
        Curve(("loss",), "Loss", "Severity and categories together, on training batches."),
        Curve(("evaluation.loss",), "Held-out loss", "Severity and categories together, on held-out questions and answers."),
        Curve(
            ("guard.auroc", "guard.f1", "guard.accuracy"),
            "Held-out accuracy of the guard",
            "Safe or unsafe: ranking, and the verdicts at the thresholds of that step; on held-out questions and answers.",
        ),
        Curve(
            ("severity_accuracy", "category_accuracy"),
            "Accuracy of severity and categories",
            "Share of the single yes-or-no labels that are right, on training batches.",
        ),
        Curve(("severity_loss", "category_loss"), "Loss of severity and of categories", folded=True),
        Curve(
            ("evaluation.severity_loss", "evaluation.category_loss"), "Held-out loss of severity and of categories", folded=True
        ),
        Curve(
            ("guard.input.auroc", "guard.output.auroc", "guard.auprc"), "Held-out ranking of each part, and AUPRC", folded=True
        ),
        Curve(("guard.severity_accuracy", "guard.category_f1_macro"), "Held-out severity and categories", folded=True),
        Curve(("guard.calibration_error",), "Held-out calibration error", folded=True),
        Curve(("grad_norm",), "Gradient norm", "Before it is clipped.", folded=True),
    ),
)
