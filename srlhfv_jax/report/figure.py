"""A drawing function -> an HTML figure with a light and a dark PNG inside, and words for those who cannot see it.

Matplotlib's object interface with the Agg canvas: no display, no global state. One panel per figure and a small canvas, so that
the letters stay readable when a phone shows the picture at a third of its size.
"""

import base64
import io
import re
from collections.abc import Callable
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from srlhfv_jax.report.page import escape

SIZE, DPI = (5.2, 3.0), 180  # inches; 936 x 540 pixels
BOX = (0.1, 0.16, 0.88, 0.81)  # left, bottom, width, height of the axes; drawings call `fit` to leave the labels their room
PAD = 6  # pixels between the edge of a picture and the labels


class Theme(NamedTuple):
    page: str
    ink: str
    dim: str
    grid: str
    safe: str  # the feasible side
    limit: str  # the budget
    lines: tuple[str, ...]  # distinguishable without colour vision (Okabe & Ito), in a light and a dark version


LIGHT = Theme(
    "#ffffff", "#1c2024", "#60646c", "#e0e1e6", "#18794e", "#b4232a",
    ("#0072b2", "#d55e00", "#6b7280", "#009e73", "#cc79a7", "#a67c00", "#56b4e9", "#4b3f72"),
)  # fmt: skip
DARK = Theme(
    "#19191b", "#edeef0", "#b0b4ba", "#363a3f", "#71d083", "#ff9592",
    ("#56b4e9", "#ff9f5a", "#a8adb5", "#3fd0a4", "#e8a5cb", "#f0e442", "#8ecbf2", "#b7a6f0"),
)  # fmt: skip
KNOWN = {"ppo_lag": 0, "ppo": 1, "sft": 2, "scores": 3}  # the same thing has the same colour in every picture
_ROUND = re.compile(r", round \d+$")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")  # a second sign beside the colour

Draw = Callable[[Axes, Theme], None]


def picture(draw: Draw, title: str, alt: str, caption: str, *, size: tuple[float, float] = SIZE) -> str:
    """HTML of one figure; `alt` says in words (with numbers) what is to be seen, `caption` how to read it.

    Title ("" where the section's own says it) and caption are text of the page: they wrap on a phone and can be searched.
    """
    light, dark = (_png(draw, theme, size) for theme in (LIGHT, DARK))
    width, height = (round(side * DPI) for side in size)
    above = f"<figcaption>{escape(title)}</figcaption>" if title else ""
    below = f"<p>{escape(caption)}</p>" if caption else ""
    return (
        f"<figure>{above}"
        f'<picture><source media="screen and (prefers-color-scheme: dark)" srcset="data:image/png;base64,{dark}">'
        f'<img src="data:image/png;base64,{light}" width="{width}" height="{height}" alt="{escape(alt)}"></picture>'
        f"{below}</figure>"
    )


def slots(names: list[str]) -> dict[str, int]:
    """A place in the palette for each name: fixed for the known ones (of "NAME, round N" the last), a free one for the others."""
    places: dict[str, int] = {}
    for name in sorted(reversed(names), key=lambda name: name not in KNOWN):
        place = KNOWN.get(_ROUND.sub("", name))
        if place is not None and place not in places.values():
            places[name] = place
    free = [place for place in range(len(LIGHT.lines)) if place not in places.values()]
    free.sort(key=lambda place: place in KNOWN.values())
    for number, name in enumerate(name for name in names if name not in places):
        places[name] = free[number % len(free)] if free else number % len(LIGHT.lines)
    return {name: places[name] for name in names}


def fit(axes: Axes, above: float = 0.0) -> None:
    """Move the edges of the axes so that the labels on the left and below lie just inside the picture.

    Args:
        above: inches to keep free over the axes, for words.
    """
    figure = axes.figure
    renderer, top = figure.canvas.get_renderer(), axes.get_position().y1 - above / figure.get_size_inches()[1]
    for _ in range(2):  # a new size may bring other, wider tick labels
        area, box = axes.get_window_extent(), axes.get_position()
        labels = [axis.get_tightbbox(renderer) for axis in (axes.yaxis, axes.xaxis)]
        left, bottom = box.x0, box.y0
        if labels[0] is not None:
            left = (area.x0 - labels[0].x0 + PAD) / figure.bbox.width
        if labels[1] is not None:
            bottom = (area.y0 - labels[1].y0 + PAD) / figure.bbox.height
        axes.set_position((left, bottom, box.x1 - left, top - bottom))


def _png(draw: Draw, theme: Theme, size: tuple[float, float]) -> str:
    style = {
        "font.size": 9.5,
        "axes.facecolor": theme.page,
        "axes.edgecolor": theme.dim,
        "axes.labelcolor": theme.dim,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.color": theme.ink,
        "xtick.color": theme.dim,
        "ytick.color": theme.dim,
        "grid.color": theme.grid,
        "axes.grid": True,
        "axes.axisbelow": True,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "lines.linewidth": 1.6,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, dpi=DPI, facecolor=theme.page)
        canvas = FigureCanvasAgg(figure)
        draw(figure.add_axes(BOX), theme)
        canvas.draw()
        drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    # 48 colours are enough for lines and letters, and make the page a third of the size
    buffer = io.BytesIO()
    drawn.quantize(48, dither=Image.Dither.NONE).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
