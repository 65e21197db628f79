"""Drawings of the page: functions (data) -> draw(axes, theme), for `figure.picture`."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from srlhfv_jax.report.figure import MARKERS, Draw, Theme, fit, slots
from srlhfv_jax.report.labels import Point, place_labels

SMOOTH = 15  # of this many points or more, the running mean is drawn over the faint raw line
ABOVE = 0.18  # inches over the axes for the budget's words
BORDER = (0, (4, 3))  # dashes of budgets and of the border between safe and unsafe


class Line(NamedTuple):
    name: str
    steps: np.ndarray
    values: np.ndarray
    dashed: bool = False
    noisy: bool = True  # drawn as a running mean over the faint raw line


def lines(
    data: Sequence[Line],
    *,
    xlabel: str = "iteration",
    limits: Sequence[tuple[str, float]] = (),
    colours: Sequence[str] = (),
    points: bool = False,
) -> Draw:
    """One line per run; `limits` are horizontal lines (the budget). `colours`: all names of the page, so that colours agree.

    Args:
        points: a marker at each value; steps need not be whole.
    """
    places = slots([*dict.fromkeys([*colours, *(line.name for line in data)])])

    def draw(axes: Axes, theme: Theme) -> None:
        for line in data:
            colour, style = theme.lines[places[line.name]], "--" if line.dashed else "-"
            values = line.values
            if line.noisy and len(values) >= SMOOTH:
                axes.plot(line.steps, values, color=colour, alpha=0.3, linewidth=0.8)
                values = running_mean(values)
            axes.plot(line.steps, values, style, color=colour, label=line.name)
            if len(line.values) == 1 or points:
                axes.plot(line.steps, line.values, "o", color=colour)
        for name, level in limits:
            axes.axhline(level, color=theme.limit, linestyle=BORDER, linewidth=1.2, label=f"{name} {level:g}")
        axes.set_xlabel(xlabel)
        if not points:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        fit(axes)
        if len(data) + len(limits) > 1:
            axes.legend(loc="best", ncols=2 if len(data) + len(limits) > 4 else 1)

    return draw


def running_mean(values: np.ndarray) -> np.ndarray:
    """Centred mean over an eighth of the points (at the ends over what there is); short series as they are."""
    if len(values) < SMOOTH:
        return values
    half = max(1, len(values) // 16)
    total = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def plane(points: Sequence[Point], budget: float | None, xlabel: str, ylabel: str, *, front: Sequence[Point] = ()) -> Draw:
    """The reward-cost plane: one point per policy with its standard errors, the feasible side (cost <= budget) shaded.

    Args:
        front: points that no other beats (`pareto`), joined by a line.
    """
    places = slots([point.name for point in points])

    def draw(axes: Axes, theme: Theme) -> None:
        if len(front) > 1:
            line = [point.cost for point in front], [point.helpful for point in front]
            axes.plot(*line, color=theme.dim, linewidth=0.8, linestyle=":", zorder=0)
        for point in points:
            _marker(axes, theme, point, places[point.name], filled=True)
        axes.margins(0.18)
        _shade(axes, theme, budget)
        _names(axes, xlabel, ylabel)
        place_labels(axes, points, [theme.lines[places[point.name]] for point in points], border=budget)

    return draw


def pareto(points: Sequence[Point], *, up: bool) -> list[Point]:
    """The points that none beats, from left to right, where left is better, and up (or down) is.

    Args:
        up: whether more of the vertical axis is better.
    """
    sign, front = 1 if up else -1, []
    for point in sorted(points, key=lambda point: (point.cost, -sign * point.helpful)):
        if not front or sign * point.helpful > sign * front[-1].helpful:
            front.append(point)
    return front


def moves(pairs: Sequence[tuple[Point, Point]], budget: float | None, xlabel: str, ylabel: str) -> Draw:
    """The same plane with an arrow per policy: from the hollow marker (before) to the filled one (after); one label for both."""
    places = slots([before.name for before, _ in pairs])

    def draw(axes: Axes, theme: Theme) -> None:
        for before, after in pairs:
            place = places[before.name]
            axes.annotate(
                "",
                (after.cost, after.helpful),
                (before.cost, before.helpful),
                arrowprops={"arrowstyle": "->", "color": theme.lines[place], "linewidth": 1.2, "shrinkA": 5, "shrinkB": 5},
            )
            _marker(axes, theme, before, place, filled=False)
            _marker(axes, theme, after, place, filled=True)
        axes.margins(0.18)
        _shade(axes, theme, budget)
        _names(axes, xlabel, ylabel)
        points = [before for before, _ in pairs]
        ends = [after for _, after in pairs]
        place_labels(axes, points, [theme.lines[places[point.name]] for point in points], others=ends, border=budget)

    return draw


def paths(runs: Sequence[tuple[str, np.ndarray, np.ndarray]], budget: float | None, colours: Sequence[str]) -> Draw:
    """Reward against cost over the iterations of each run, from the hollow to the filled marker."""
    places = slots([*dict.fromkeys([*colours, *(name for name, _, _ in runs)])])

    def draw(axes: Axes, theme: Theme) -> None:
        for name, cost, reward in runs:
            colour, marker = theme.lines[places[name]], MARKERS[places[name] % len(MARKERS)]
            x, y = running_mean(cost), running_mean(reward)
            axes.plot(x, y, color=colour, linewidth=1.1, label=name)
            axes.plot(x[0], y[0], marker, markerfacecolor=theme.page, markeredgecolor=colour, markersize=6)
            axes.plot(x[-1], y[-1], marker, color=colour, markersize=7)
        _shade(axes, theme, budget)
        _names(axes, "constraint (learned cost)", "learned reward")
        if len(runs) > 1:
            axes.legend(loc="best")

    return draw


def histogram(values: Mapping[str, Sequence[float]], xlabel: str, border: float | None, colours: Sequence[str]) -> Draw:
    """Share of the answers per bin, one outline per policy; `border` is where safe ends."""
    places = slots([*dict.fromkeys([*colours, *values])])
    everything = np.concatenate([np.asarray(column, np.float64) for column in values.values()])
    edges = np.histogram_bin_edges(everything, bins=24)

    def draw(axes: Axes, theme: Theme) -> None:
        for name, column in values.items():
            shares = np.histogram(column, bins=edges)[0] / max(len(column), 1)
            colour = theme.lines[places[name]]
            axes.stairs(shares, edges, color=colour, linewidth=1.5, label=name)
            axes.stairs(shares, edges, color=colour, fill=True, alpha=0.12)
        if border is not None:
            axes.axvline(border, color=theme.limit, linestyle=BORDER, linewidth=1.2)
        _names(axes, xlabel, "share of answers", above=0.0)
        axes.legend(loc="best")

    return draw


def _marker(axes: Axes, theme: Theme, point: Point, place: int, *, filled: bool) -> None:
    axes.errorbar(
        point.cost,
        point.helpful,
        xerr=point.cost_error or None,
        yerr=point.helpful_error or None,
        fmt=MARKERS[place % len(MARKERS)],
        color=theme.lines[place],
        markerfacecolor=theme.lines[place] if filled else theme.page,
        markersize=7,
        capsize=2,
        linewidth=1,
    )


def _shade(axes: Axes, theme: Theme, budget: float | None) -> None:
    """The feasible side, and the budget in words above the axes, where nothing is drawn."""
    if budget is None:
        return
    low, high = axes.get_xlim()
    span = high - low
    low, high = min(low, budget - 0.1 * span), max(high, budget + 0.1 * span)
    axes.set_xlim(low, high)
    axes.axvspan(low, budget, color=theme.safe, alpha=0.13, linewidth=0)
    axes.axvline(budget, color=theme.limit, linestyle=BORDER, linewidth=1.2)
    near_right = budget > low + 0.8 * (high - low)
    axes.text(
        budget,
        1.01,
        f"budget {budget:.3g}",
        transform=axes.get_xaxis_transform(),
        ha="right" if near_right else "center" if budget > low + 0.2 * (high - low) else "left",
        va="bottom",
        fontsize=8.5,
        color=theme.limit,
    )


def _names(axes: Axes, xlabel: str, ylabel: str, above: float = ABOVE) -> None:
    """Labels of both axes, and the room that they need on the left."""
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    fit(axes, above)
