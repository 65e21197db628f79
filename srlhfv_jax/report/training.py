"""Sections made of metrics.jsonl: the multiplier and its constraint, the PPO runs, the supervised stages."""

from collections.abc import Sequence

import numpy as np

from srlhfv_jax.report import page, plots
from srlhfv_jax.report.figure import picture
from srlhfv_jax.report.page import Section
from srlhfv_jax.report.workdir import Stage, Workdir, has, series

# (keys drawn together, title, how to read it)
PPO_PICTURES = (
    (("reward",), "Reward per iteration", "Mean score of the learned reward model on sampled answers."),
    (("cost",), "Cost per iteration", "Mean score of the learned cost model; above 0 means unsafe."),
    (("harm_rate_model",), "Answers the cost model calls unsafe", "Share of sampled answers with cost above 0."),
    (("kl",), "KL to the reference", "In nats per answer; runaway growth is a sign of reward hacking."),
    (("length",), "Answer length", "Mean tokens of a sampled answer."),
    (("ended",), "Answers that end by themselves", "Share not cut at the longest length allowed."),
    (("entropy",), "Entropy", "Of the next-token distribution; once gone, a smaller multiplier does not bring it back."),
    (("advantage_correlation",), "Conflict of the advantages", "Correlation of reward and cost; nearer to 1 is harder."),
    (("reward_explained_variance", "cost_explained_variance"), "Explained variance of the critics", "1 is perfect, 0 useless."),
    (("clip_fraction",), "Clipped updates", "Share of tokens whose probability ratio was clipped."),
    (("ratio_row_max",), "Largest probability ratio", "Far above 1 on the first pass means that sampler and trainer disagree."),
    (("mismatch",), "Sampler against trainer", "Mean |log ratio| before the first update: rounding errors, or a bug."),
    (("sampler_gap",), "Sampler against trainer, corrected", "Mean |log ratio| that old_logp=recompute takes out."),
    (("policy_loss",), "Policy loss", ""),
    (("reward_critic_loss", "cost_critic_loss"), "Critic losses", ""),
)  # fmt: skip
MAIN_PICTURES = 6  # of PPO_PICTURES are shown at once, the others folded
SUPERVISED_PICTURES = (
    (("loss",), "Loss", "Training loss per step."),
    (("reward_accuracy", "cost_accuracy", "cost_sign_accuracy"), "Accuracy of the score heads", "On training batches."),
)  # fmt: skip
VALIDATION = "validation."


def constraint_section(work: Workdir) -> Section:
    """lambda, and the windowed cost against the budget."""
    title = "Multiplier and constraint"
    runs = [stage for stage in work.stages if stage.kind == "ppo" and has(stage, "lambda", "window_cost")]
    names = _colours(work)
    items = []
    lams = [plots.Line(run.name, *series(run, "lambda"), noisy=False) for run in runs if has(run, "lambda")]
    if lams:
        weights = [plots.Line(line.name, line.steps, line.values / (1 + line.values), noisy=False) for line in lams]
        items.append(
            picture(
                plots.lines("Multiplier λ", lams, colours=names),
                f"Multiplier by iteration. {_ends(lams)}.",
                "Rises while the windowed cost is above the budget, falls while it is below.",
            )
        )
        items.append(
            picture(
                plots.lines("Weight of the cost, λ / (1 + λ)", weights, colours=names),
                f"Weight of the cost advantage by iteration. {_ends(weights)}.",
                "What the update really sees: the share of the cost in the combined advantage.",
            )
        )
    costs = [plots.Line(run.name, *series(run, "window_cost"), noisy=False) for run in runs if has(run, "window_cost")]
    if costs:
        budgets = _budgets(runs)
        items.append(
            picture(
                plots.lines(
                    "Windowed cost against the budget", costs, limits=[("budget", budget) for budget in budgets], colours=names
                ),
                f"Windowed cost by iteration. {_ends(costs)}. Budget {', '.join(map(str, budgets)) or 'unknown'}.",
                "Mean of the constraint's statistic over the last answers; the controller steers it to the dashed line.",
            )
        )
    key = "constraint" if any(has(run, "constraint") for run in runs) else "cost"  # one axis, one unit
    tracks = [(run.name, *track) for run in runs if len((track := _track(run, key))[0])]
    if tracks:
        budgets = _budgets(runs)
        words = "; ".join(f"{name} from ({x[0]:.2f}, {y[0]:.2f}) to ({x[-1]:.2f}, {y[-1]:.2f})" for name, x, y in tracks)
        items.append(
            picture(
                plots.paths(tracks, budgets[0] if len(budgets) == 1 else None, "Path in the learned reward-cost plane", names),
                f"Reward against the constraint over the iterations: {words}.",
                "Each run from the hollow to the filled marker, in the scores the controller sees. Shaded: within its budget.",
            )
        )
    if not items:
        return Section("constraint", title, "", "No constrained run here: no metrics with lambda or window_cost.")
    return Section("constraint", title, page.figures(items))


def ppo_section(work: Workdir) -> Section:
    runs = [stage for stage in work.stages if stage.kind == "ppo"]
    names = _colours(work)
    drawn = [html for keys, title, note in PPO_PICTURES if (html := _curves(runs, keys, title, note, "iteration", names))]
    main = sum(any(has(run, *keys) for run in runs) for keys, _, _ in PPO_PICTURES[:MAIN_PICTURES])
    if not drawn:
        return Section("ppo", "PPO iterations", "", "No PPO metrics here.")
    body = page.figures(drawn[:main])
    if drawn[main:]:
        body += page.details("Diagnostics of the update", page.figures(drawn[main:]))
    checks = sorted({key for run in runs for row in run.rows for key in row if key.startswith(VALIDATION)})
    checks = [key for key in checks if not key.endswith("_se")]
    extra = [html for key in checks if (html := _curves(runs, (key,), _words(key), "On validation prompts.", "iteration", names))]
    if extra:
        body += page.details("Validation during the run", page.figures(extra))
    return Section("ppo", "PPO iterations", body)


def supervised_section(work: Workdir) -> Section:
    stages = [stage for stage in work.stages if stage.kind in ("sft", "scores")]
    if not stages:
        return Section("supervised", "Supervised stages", "", "No supervised stage in this workdir.")
    body = ""
    for stage in stages:
        drawn = [
            html
            for keys, title, note in SUPERVISED_PICTURES
            if (html := _curves([stage], keys, title, note, "step", [stage.name]))
        ]
        body += f"<h3>{page.escape(stage.name)}</h3>" + page.figures(drawn)
    return Section("supervised", "Supervised stages", body)


def _curves(runs: Sequence[Stage], keys: tuple[str, ...], title: str, note: str, xlabel: str, names: Sequence[str]) -> str:
    """One picture of the runs that logged the keys; "" when none did. Several keys of one run get a line each."""
    data = []
    for run in runs:
        for index, key in enumerate(keys):
            steps, values = series(run, key)
            if len(values):
                name = run.name if len(keys) == 1 else _words(key) if len(runs) == 1 else f"{run.name}, {_words(key)}"
                data.append(plots.Line(name, steps, values, dashed=index > 0))
    if not data:
        return ""
    draw = plots.lines(title, data, xlabel=xlabel, colours=names if len(keys) == 1 else ())
    return picture(draw, f"{title} by {xlabel}. {_ends(data)}.", note or title)


def _track(run: Stage, key: str) -> tuple[np.ndarray, np.ndarray]:
    """(the values under `key`, reward), both empty unless the same iterations have both."""
    (steps, cost), (reward_steps, reward) = series(run, key), series(run, "reward")
    same = len(steps) == len(reward_steps) and bool((steps == reward_steps).all())
    return (cost, reward) if same else (cost[:0], reward[:0])


def _budgets(runs: Sequence[Stage]) -> list[float]:
    return sorted({float(series(run, "budget")[1][-1]) for run in runs if has(run, "budget")})


def _colours(work: Workdir) -> list[str]:
    return [stage.name for stage in work.stages if stage.kind == "ppo"]


def _ends(data: Sequence[plots.Line]) -> str:
    return "; ".join(f"{line.name} from {line.values[0]:.3g} to {line.values[-1]:.3g}" for line in data)


def _words(key: str) -> str:
    return key.replace("_", " ").replace(".", ": ")
