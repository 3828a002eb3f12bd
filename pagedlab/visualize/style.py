"""How every picture of the course looks: size, type, colours. A figure made here is never shown by pyplot itself."""

from __future__ import annotations

from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from pagedlab.errors import CourseError

PALETTE = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "vermillion": "#D55E00",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "yellow": "#F0E442",
    "black": "#000000",
    "grey": "#8C8C8C",
    "light": "#D9D9D9",
}
"""Okabe and Ito's colours, which people with any kind of colour vision can tell apart, and two greys.

The first six stand as lines and areas on white; yellow only as an area with an outline.
"""

CYCLE = [PALETTE[name] for name in ("blue", "orange", "green", "vermillion", "purple", "sky", "black")]

STYLE: Any = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same picture on every machine
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelsize": 11,
    "axes.prop_cycle": cycler(color=CYCLE),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.8,
    "figure.facecolor": "white",  # opaque: it must be legible on a dark page
    "savefig.facecolor": "white",
    "image.cmap": "cividis",
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.linewidth": 2.0,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
}


def new_figure(width: float = 8, height: float = 4, title: str | None = None) -> Figure:
    """An empty figure in the course's style; its axes come from `figure.subplots()`.

    The style stays in matplotlib's settings afterwards, so that axes made later have it too.

    Args:
        width, height: inches; 8 is the width of a notebook's column, 11 the most that stays legible there.
        title: one line above all axes.

    Raises:
        CourseError: the size is not two positive numbers.
    """
    if not (0 < width <= 20 and 0 < height <= 20):
        raise CourseError(f"A figure's width and height are inches between 0 and 20, got {width} and {height}.")
    matplotlib.rcParams.update(STYLE)
    figure = Figure(figsize=(width, height), layout="constrained")
    if title:
        figure.suptitle(title, fontsize=13, fontweight="bold", x=0.01, ha="left")
    return figure


def legend_beside(axes: Axes, title: str | None = None, **options: Any) -> Legend:
    """The legend to the right of the axes, where it covers no data."""
    return axes.legend(title=title, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0, **options)


def legend_below(axes: Axes, columns: int = 4, **options: Any) -> Legend:
    """The legend in one row or a few under the axes and their label."""
    figure = axes.figure
    handles, labels = axes.get_legend_handles_labels()
    return figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels) or 1), **options)
