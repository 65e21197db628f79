"""Sections made of metrics.jsonl: the multiplier and its constraint, the PPO runs, the supervised stages.

Which metrics share a picture is said by the record of each stage (`runs/curves.py`).
"""

from collections.abc import Sequence

import numpy as np

from srlhfv_jax.config.constraints import FIRST, metric
from srlhfv_jax.report import page, plots
from srlhfv_jax.report.figure import SIZE, picture
from srlhfv_jax.report.page import Section
from srlhfv_jax.report.workdir import STAGES, Stage, Workdir, has, series
from srlhfv_jax.runs.curves import Curve

CONSTRAINT = ("lambda", "window_cost", "budget", "constraint")  # what the section of the multiplier draws
VALIDATION = "validation."
VALIDATED = ("validation.helpful", "validation.cost")  # shown at once, the others folded
PPO = next(stage for stage in STAGES if stage.kind == "ppo_lag")


def constraint_section(work: Workdir) -> Section:
    """lambda of each constraint, and its windowed cost against the budget."""
    title, runs = "Multiplier and constraint", _ppo_runs(work)
    items = [item for key, name in _constraints(runs).items() for item in _of_constraint(runs, key, f": {name}" if name else "")]
    if len(work.stages) > 1 and (path := path_picture(work)):  # alone, it stands at the top of the page
        items.append(path)
    if not items:
        return Section("constraint", title, "", "No constrained run here: no metrics with lambda or window_cost.")
    return Section("constraint", title, page.figures(items))


def _constraints(runs: Sequence[Stage]) -> dict[str, str]:
    """Key of a constraint -> its name, in the order of the settings; "" where a run has one without a name."""
    logged = {key for run in runs for row in run.rows for key in row}
    listed = next((run.config["constraints"] for run in runs if run.config.get("constraints")), [])
    names = [str(item.get("name", "")) for item in listed]
    named = dict(zip([FIRST, *names[1:]], names)) if names else {FIRST: ""}
    return {key: name for key, name in named.items() if metric(key, "window_cost") in logged}


def facts(run: Stage) -> list[tuple[str, str]]:
    """(metric, words) of what tells most of each constraint."""
    words = (("window_cost", "windowed cost"), ("budget", "budget"), ("lambda", "multiplier λ"))
    named = {key: f" ({name})" if name else "" for key, name in _constraints([run]).items()}
    return [(metric(key, number), text + end) for key, end in named.items() for number, text in words]


def _of_constraint(runs: Sequence[Stage], key: str, named: str) -> list[str]:
    """Its multiplier, what that weighs, and its windowed cost.

    Args:
        named: the end of each title.
    """
    names, items = [run.name for run in runs], []
    lam, cost = metric(key, "lambda"), metric(key, "window_cost")
    steered = [
        run for run in runs if run.config.get("constraints") or run.config.get("constraint", {}).get("controller") != "none"
    ]
    lams = [plots.Line(run.name, *series(run, lam), noisy=False) for run in steered if has(run, lam, cost)]
    if lams:
        weights = [plots.Line(line.name, line.steps, line.values / (1 + line.values), noisy=False) for line in lams]
        items.append(
            picture(
                plots.lines(lams, colours=names),
                f"Multiplier λ{named}",
                f"Multiplier by iteration. {_ends(lams)}.",
                "Rises while the windowed cost is above the budget, falls while it is below.",
            )
        )
        if not named:
            items.append(
                picture(
                    plots.lines(weights, colours=names),
                    "Weight of the cost, λ / (1 + λ)",
                    f"Weight of the cost advantage by iteration. {_ends(weights)}.",
                    "What the update really sees: the share of the cost in the combined advantage.",
                )
            )
    costs = [plots.Line(run.name, *series(run, cost), noisy=False) for run in runs if has(run, lam, cost)]
    if costs:
        budgets = _budgets(runs, metric(key, "budget"))
        items.append(
            picture(
                plots.lines(costs, limits=[("budget", budget) for budget in budgets], colours=names),
                f"Windowed cost against the budget{named}",
                f"Windowed cost by iteration. {_ends(costs)}. Budget {', '.join(map(str, budgets)) or 'unknown'}.",
                "Mean of the constraint's statistic over the last answers; the controller steers it to the dashed line.",
            )
        )
    return items


def path_picture(work: Workdir, size: tuple[float, float] = SIZE) -> str:
    """HTML of reward against the constraint over the iterations of every PPO run; "" when none logged both."""
    runs = _ppo_runs(work)
    key = "constraint" if any(has(run, "constraint") for run in runs) else "cost"  # one axis, one unit
    tracks = [(run.name, *track) for run in runs if len((track := _track(run, key))[0])]
    if not tracks:
        return ""
    budgets = _budgets(runs)
    words = "; ".join(f"{name} from ({x[0]:.2f}, {y[0]:.2f}) to ({x[-1]:.2f}, {y[-1]:.2f})" for name, x, y in tracks)
    return picture(
        plots.paths(tracks, budgets[0] if len(budgets) == 1 else None, [run.name for run in runs]),
        "Path in the learned reward-cost plane",
        f"Reward against the constraint over the iterations: {words}.",
        "From the hollow to the filled marker, in the scores the controller sees. Shaded: within the budget.",
        size=size,
    )


def ppo_section(work: Workdir) -> Section:
    """Every metric of the PPO runs."""
    runs = _ppo_runs(work)
    if not runs:
        return Section("ppo", "PPO iterations", "", "No PPO metrics here.")
    names = [run.name for run in runs]
    body = page.figures(_curves(runs, [curve for curve in PPO.curves if not curve.folded], PPO.unit, names))
    logged = list(dict.fromkeys(key for run in runs for row in run.rows for key in row))
    checks = [key for key in logged if key.startswith(VALIDATION) and not key.endswith("_se")]
    judges = {run.config.get("validation", {}).get("judge", "models") for run in runs if has(run, *checks)}
    validation = {key: Curve((key,), _validation_title(key, judges), "On validation prompts.") for key in checks}
    first = [validation.pop(key) for key in VALIDATED if key in validation]
    if first:
        body += page.figures(_curves(runs, first, PPO.unit, names))
    if validation:
        pictures = _curves(runs, list(validation.values()), PPO.unit, names)
        body += page.details("More of the validation during the run", page.figures(pictures))
    drawn = [metric(key, name) for key in _constraints(runs) for name in CONSTRAINT]
    folded = [curve for curve in PPO.curves if curve.folded] + _unnamed(logged, (*PPO.keys(), *CONSTRAINT, *drawn, *checks))
    if folded := _curves(runs, folded, PPO.unit, names):
        body += page.details("Diagnostics of the update", page.figures(folded))
    return Section("ppo", "PPO iterations", body)


def supervised_section(work: Workdir) -> Section:
    """The other stages: one row of pictures each, and what needs a second look folded."""
    stages = [stage for stage in work.stages if stage.kind != "ppo_lag"]
    if not stages:
        return Section("supervised", "Supervised stages", "", "No supervised stage in this workdir.")
    shown, folded = [], []
    for stage in stages:
        record = next((record for record in STAGES if record.kind == stage.kind), None)
        named = record.curves if record else ()
        logged = dict.fromkeys(key for row in stage.rows for key in row)
        curves = [*named, *_unnamed(logged, record.keys() if record else ())]
        for curve in curves:
            pictures = _curves([stage], [curve._replace(title=f"{stage.name}: {curve.title}")], "step", [stage.name])
            (folded if curve.folded else shown).extend(pictures)
    body = page.figures(shown)
    if folded:
        body += page.details("Diagnostics of the supervised stages", page.figures(folded))
    return Section("supervised", "Supervised stages", body)


def _ppo_runs(work: Workdir) -> list[Stage]:
    return [stage for stage in work.stages if stage.kind == PPO.kind]


def _unnamed(logged: Sequence[str], named: Sequence[str]) -> list[Curve]:
    """Metrics that no record names."""
    return [Curve((key,), _words(key), folded=True) for key in logged if key not in (*named, "step")]


def _validation_title(key: str, judges: set[str]) -> str:
    name = key.removeprefix(VALIDATION)
    if name == "helpful":
        return "Validation: helpfulness" if judges == {"oracle"} else "Validation: learned reward"
    if name == "cost":
        return "Validation: true cost" if judges == {"oracle"} else "Validation: learned cost"
    return f"Validation: {_words(name)}"


def _curves(runs: Sequence[Stage], curves: Sequence[Curve], unit: str, names: Sequence[str]) -> list[str]:
    """A picture of each curve that a run logged. Several keys of one run get a line each."""
    pictures = []
    for curve in curves:
        data = []
        for run in runs:
            for index, key in enumerate(curve.keys):
                steps, values = series(run, key)
                if len(values):
                    name = run.name if len(curve.keys) == 1 else _words(key) if len(runs) == 1 else f"{run.name}, {_words(key)}"
                    data.append(plots.Line(name, steps, values, dashed=index > 0))
        if data:
            draw = plots.lines(data, xlabel=unit, colours=names if len(curve.keys) == 1 else ())
            pictures.append(picture(draw, curve.title, f"{curve.title} by {unit}. {_ends(data)}.", curve.note))
    return pictures


def _track(run: Stage, key: str) -> tuple[np.ndarray, np.ndarray]:
    """(the values under `key`, reward), both empty unless the same iterations have both."""
    (steps, cost), (reward_steps, reward) = series(run, key), series(run, "reward")
    same = len(steps) == len(reward_steps) and bool((steps == reward_steps).all())
    return (cost, reward) if same else (cost[:0], reward[:0])


def _budgets(runs: Sequence[Stage], key: str = "budget") -> list[float]:
    """Budgets of the runs, as they were given: the logged ones went through float32."""
    return sorted({float(f"{series(run, key)[1][-1]:.6g}") for run in runs if has(run, key)})


def _ends(data: Sequence[plots.Line]) -> str:
    return "; ".join(f"{line.name} from {line.values[0]:.3g} to {line.values[-1]:.3g}" for line in data)


def _words(key: str) -> str:
    text = key.replace("_", " ").replace(".", ": ")
    return text[:1].upper() + text[1:]
