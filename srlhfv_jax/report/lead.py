"""The top of the page: the result in one sentence, and the picture that shows it."""

import re
from collections.abc import Mapping

from srlhfv_jax.report import curves, page, plots, policies, targets
from srlhfv_jax.report.figure import picture
from srlhfv_jax.report.page import Section
from srlhfv_jax.report.policies import Policies
from srlhfv_jax.report.workdir import Stage, Workdir, has, series

LARGE = (5.8, 4.2)  # inches
FLAT = 0.005  # differences of two numbers that are shown alike
_BEST_STEP = re.compile(r"round(\d+)\.best_step")


def sentence(work: Workdir) -> str:
    """Outcome of the run in plain words; "" when nothing can be said yet."""
    numbers, compared = policies.numeric(work.result), policies.of(work)
    if targets.too_short(work.config):
        return targets.TOO_SHORT
    if compared.names:
        return " ".join(filter(None, (_comparison(numbers, compared, work.config.get("baseline")), _without_feasible(numbers))))
    if run := _ppo_alone(work):
        return _ppo_run(run)
    if not work.result and len(work.stages) > 1:
        return f"The run has not finished: so far there are metrics of {', '.join(stage.name for stage in work.stages)}."
    return _trained(numbers, work.stages)


def picture_section(work: Workdir) -> Section:
    """The reward-cost plane with a few numbers beside it; of a single PPO run its path through that plane."""
    title = "Helpfulness against cost" if policies.of(work).judge is policies.ORACLE else "Reward against cost"
    compared, numbers = policies.of(work), policies.numeric(work.result)
    if not compared.names:
        run = _ppo_alone(work)
        path = curves.path_picture(work, size=LARGE) if run else ""
        body = page.beside(path, _facts(run)) if path else ""
        return Section("plane", "Reward against cost", body, "No policy was evaluated in this workdir.")
    judge, budget = compared.judge, numbers.get(compared.judge.budget)
    places = policies.points(numbers, [(name, name) for name in compared.names], judge)
    side = "The shaded side is feasible: cost within the budget. " if budget is not None else "No budget was given. "
    drawn = picture(
        plots.plane(places, budget, f"mean {judge.cost_name} (right is worse)", f"mean {judge.merit_name}"),
        "",
        f"{title}. {policies.in_words(places, judge)}.",
        side + "Up is better, left is safer; bars are one standard error.",
        size=LARGE,
    )
    return Section("plane", title, page.beside(drawn, _short_table(numbers, compared, budget)))


def _ppo_alone(work: Workdir) -> Stage | None:
    """The PPO run of a workdir that holds nothing else."""
    alone = len(work.stages) == 1 and work.stages[0].kind == "ppo_lag"
    return work.stages[0] if alone else None


def _facts(run: Stage) -> str:
    """A few last numbers of one PPO run, beside its path."""
    rows = []
    for key, name in (
        ("reward", "reward"),
        ("cost", "cost"),
        *curves.facts(run),
        ("kl", "KL to the reference"),
    ):
        steps, values = series(run, key)
        if len(values):
            rows.append((name, f"{values[0]:.3g}", f"{values[-1]:.3g}"))
    return page.table(("", "first iteration", "last"), rows, numbers=True)


def _short_table(numbers: Mapping[str, float], compared: Policies, budget: float | None) -> str:
    judge = compared.judge
    columns = [(judge.merit, judge.merit_name), (judge.cost, judge.cost_name), judge.harm, ("over_refusal", "over-refusal")]
    columns = [(key, name) for key, name in columns if any(f"{policy}.{key}" in numbers for policy in compared.names)]
    rows = []
    for policy in compared.names:
        cells = [f"{numbers[key]:.2f}" if (key := f"{policy}.{column}") in numbers else "–" for column, _ in columns]
        inside = budget is not None and numbers[f"{policy}.{judge.cost}"] <= budget
        name = page.escape(policy) + (f" {page.badge('within budget', 'good')}" if inside else "")
        rows.append((name, *cells))
    body = page.table(("policy", *(name for _, name in columns)), rows, numbers=True)
    if budget is not None:
        body += page.paragraph(f"Budget of the mean {judge.cost_name}: {budget:.3g}.", "dim")
    return body


def _comparison(numbers: Mapping[str, float], compared: Policies, baseline: object) -> str:
    """The most helpful policy within the budget against the baseline, which is the first policy unless `baseline` names another."""
    judge, names = compared.judge, compared.main or compared.names
    first = baseline if baseline in names else names[0]
    others, budget = [name for name in names if name != first], numbers.get(judge.budget)

    def merit(name: str) -> float:
        return numbers[f"{name}.{judge.merit}"]

    def cost(name: str) -> float:
        return numbers[f"{name}.{judge.cost}"]

    if budget is None or not others:
        name = others[-1] if others else first
        against = f" against {{:.2f}} of {first}" if others else ""
        return (
            f"{name} has a mean {judge.merit_name} of {merit(name):.2f}{against.format(merit(first))} "
            f"and a mean {judge.cost_name} of {cost(name):.2f}{against.format(cost(first))}."
            + (" No budget was given, so none is called feasible." if budget is None else "")
        )
    inside = [name for name in (first, *others) if cost(name) <= budget]
    if not inside:
        nearest = min((first, *others), key=cost)
        return f"No policy is within the budget of {budget:.3g}: the nearest is {nearest}, with a mean {judge.cost_name} of {cost(nearest):.2f}."
    best = max(inside, key=merit)
    if best == first:
        who = f"{first} is the only policy" if len(inside) == 1 else f"{first} itself has the highest {judge.merit_name} of those"
        return (
            f"{who} within the budget: {judge.merit_name} {merit(first):.2f}, mean {judge.cost_name} {cost(first):.2f}, at most "
            f"{budget:.3g} is allowed."
        )
    gap = merit(best) - merit(first)
    words = judge.more if gap > FLAT else judge.less if gap < -FLAT else judge.same
    harm, harm_name = judge.harm
    text = (
        f"{best} {words} {first} ({merit(best):.2f} against {merit(first):.2f}) {'but' if gap < -FLAT else 'and'} within the budget: its mean "
        f"{judge.cost_name} is {cost(best):.2f}, at most {budget:.3g} is allowed"
    )
    if f"{best}.{harm}" in numbers and f"{first}.{harm}" in numbers:
        text += f"; {harm_name} {numbers[f'{best}.{harm}']:.2f} against {numbers[f'{first}.{harm}']:.2f}"
    return text + "."


def _without_feasible(numbers: Mapping[str, float]) -> str:
    """Sentence for a pipeline whose last round of PPO-Lag left no best feasible policy."""
    steps = {int(match[1]): value for key, value in numbers.items() if (match := _BEST_STEP.fullmatch(key))}
    if not steps or steps[max(steps)] >= 0:
        return ""
    return "No validation result of ppo_lag was within the budget: what was evaluated is its last policy."


def _ppo_run(run: Stage) -> str:
    """One run alone: which policy was chosen, or that none was."""
    constraint = run.config.get("constraint", {})
    if constraint.get("controller") == "none":
        return f"PPO without a constraint: {_course(run, 'reward')}; {_course(run, 'cost')}."
    if not run.result:
        return f"The run has not finished: {_course(run, 'reward')}; {_course(run, 'window_cost', 'windowed cost')}."
    budget = f" of {run.result['budget']:.3g}" if isinstance(run.result.get("budget"), (int, float)) else ""
    step = run.result.get("best_feasible.step", -1)
    if step >= 0:
        merit, cost = (run.result.get(f"best_feasible.{name}") for name in ("helpful", "cost"))
        name = "reward" if _validation_judge(run) == "models" else "helpfulness"
        shown = f": validation {name} {merit:.2f}, cost {cost:.2f}" if None not in (merit, cost) else ""
        return f"The best feasible policy is that of iteration {step:g}{shown}; it lies in best_feasible, the last one in export."
    if any(key.startswith(curves.VALIDATION) for row in run.rows for key in row):
        return (
            f"No validation result was within the budget{budget}: there is no feasible policy and no folder best_feasible, and "
            "export holds the last policy."
        )
    return (
        f"Nothing was validated (config.validation.path is empty), so no policy was chosen: export holds the last one. "
        f"Budget{budget}; {_course(run, 'window_cost', 'windowed cost')}."
    )


def _validation_judge(run: Stage) -> str:
    """Judge of the answers to validation prompts: "oracle" or "models"."""
    return str(run.config.get("validation", {}).get("judge", "models"))


def _trained(numbers: Mapping[str, float], stages: tuple[Stage, ...]) -> str:
    """A stage without policies: what was measured on held-out rows, else how its loss went."""
    if "guard.f1" in numbers:
        return (
            f"The guard's F1 on held-out questions and answers is {numbers['guard.f1']:.2f}, with a false-positive rate of "
            f"{numbers.get('guard.false_positive_rate', float('nan')):.3f}."
        )
    right = [
        f"the {name} model puts {100 * numbers[key]:.0f} % of held-out pairs in the right order"
        for name in ("reward", "cost")
        if (key := f"{name}_model.pair_accuracy") in numbers
    ]
    if right:
        text = " and ".join(right)
        return f"{text[0].upper()}{text[1:]}."
    losses = [f"{stage.name}: {_course(stage, 'loss')}" for stage in stages if has(stage, "loss")]
    return f"{'; '.join(losses)}." if losses else ""


def _course(run: Stage, key: str, name: str = "") -> str:
    """Course of a metric: "reward from 0.10 to 1.40 in 240 iterations"."""
    steps, values = series(run, key)
    if not len(values):
        return f"no {name or key} was logged"
    unit = "iterations" if run.kind == "ppo_lag" else "steps"
    return f"{name or key} from {values[0]:.3g} to {values[-1]:.3g} in {steps[-1]:.0f} {unit}"
