"""Names beside points of a picture, each where it covers least: no other name, no marker, no edge."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

ANGLES = np.linspace(0, 2 * np.pi, 16, endpoint=False)
DISTANCES = (9.0, 16.0, 26.0, 40.0)  # points between a marker and the name; from the third on a thin line joins them
MARKER = 6.0  # points around the middle of a marker that a name keeps free
FAR = 20.0
CAP = 4.0  # pixels on either side of an error bar
COVERED = 10.0  # how much worse a covered square pixel is than a pixel of distance


class Point(NamedTuple):
    """A policy in the reward-cost plane."""

    name: str
    cost: float
    helpful: float
    cost_error: float  # one standard error, 0 = unknown
    helpful_error: float


def place_labels(
    axes: Axes, points: Sequence[Point], colours: Sequence[str], *, others: Sequence[Point] = (), border: float | None = None
) -> None:
    """Write the name of each point beside it.

    Args:
        others: further points that no name may cover.
        border: where a vertical line stands that none should cross.
    """
    renderer, scale = axes.figure.canvas.get_renderer(), axes.figure.dpi / 72
    inside = axes.get_window_extent()
    taken = [box for point in (*points, *others) for box in _boxes(axes, point, MARKER * scale)]
    if border is not None:
        middle = axes.transData.transform((border, 0))[0]
        taken.append(Bbox([[middle - scale, inside.y0], [middle + scale, inside.y1]]))
    for point, colour in zip(points, colours, strict=True):
        x, y = axes.transData.transform((point.cost, point.helpful))
        text = axes.annotate(
            point.name,
            (point.cost, point.helpful),
            xytext=(0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=9,
            fontweight="bold",
            color=colour,
        )
        extent = text.get_window_extent(renderer)
        best = None
        for distance in DISTANCES:
            for angle in ANGLES:
                shift_x = np.cos(angle) * (extent.width / 2 + distance * scale)
                shift_y = np.sin(angle) * (extent.height / 2 + distance * scale)
                box = Bbox.from_bounds(
                    x + shift_x - extent.width / 2, y + shift_y - extent.height / 2, extent.width, extent.height
                )
                covered = sum(_overlap(box, other) for other in taken) + 4 * (_area(box) - _overlap(box, inside))
                cost = COVERED * covered + distance * scale
                if best is None or cost < best[0]:
                    best = cost, box, distance, (shift_x / scale, shift_y / scale)
        _, box, distance, offset = best
        text.set_position(offset)
        if distance > FAR:
            axes.annotate(
                "",
                (point.cost, point.helpful),
                xytext=offset,
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 6, "shrinkB": 5},
            )
        taken.append(box)


def _boxes(axes: Axes, point: Point, size: float) -> list[Bbox]:
    """Pixels of a marker and of its two error bars."""
    x, y = axes.transData.transform((point.cost, point.helpful))
    right, top = axes.transData.transform((point.cost + point.cost_error, point.helpful + point.helpful_error))
    wide, high = right - x, top - y
    return [
        Bbox([[x - size, y - size], [x + size, y + size]]),
        Bbox([[x - wide, y - CAP], [x + wide, y + CAP]]),
        Bbox([[x - CAP, y - high], [x + CAP, y + high]]),
    ]


def _overlap(a: Bbox, b: Bbox) -> float:
    both = Bbox.intersection(a, b)
    return 0.0 if both is None else _area(both)


def _area(box: Bbox) -> float:
    return box.width * box.height
