"""How a matrix of queries by keys stands on axes: one square a pair, tokens as labels, queries down, keys across."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

from pagedlab.errors import CourseError
from pagedlab.visualize.style import PALETTE, new_figure

MAX_LABELS = 24
"""More rows or columns than this have numbers at round steps in place of a label each."""
MAX_SIDE = 512
TITLE_LETTER = 0.11
"""Inches that a letter of a panel's title takes, about."""
PAGE_WIDTH = 11.0
"""Inches: what stays legible in a notebook's column."""


@dataclass(frozen=True)
class Panel:
    """Shape and labels of one matrix."""

    shape: tuple[int, int]
    queries: Sequence[str] | None = None
    keys: Sequence[str] | None = None

    @property
    def labels(self) -> tuple[Any, ...]:
        """What two panels must have in common to share labels."""
        return self.shape, list(self.queries or ()), list(self.keys or ())


@dataclass(frozen=True)
class Grid:
    """A figure's axes in reading order; `shared` if all panels have the same labels, so that one set serves all.

    `inner` is a panel's width in inches, about.
    """

    figure: Figure
    axes: list[Axes]
    columns: int
    shared: bool
    inner: float

    def wrapped(self, title: str) -> str:
        """A panel's title in lines that stay above its panel."""
        return "\n".join(textwrap.wrap(title, max(8, int(self.inner / TITLE_LETTER))))


def checked_matrix(values: Any, what: str) -> NDArray[Any]:
    """Anything like a matrix (tensor, array, nested lists), as an array.

    Raises:
        CourseError: not two dimensions, empty, or too large to draw.
    """
    array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    if array.ndim != 2 or 0 in array.shape:
        raise CourseError(
            f"{what} must be a matrix [queries, keys], got the shape {list(array.shape)}: index the rest."
        )
    if max(array.shape) > MAX_SIDE:
        raise CourseError(f"{what} has {max(array.shape)} rows or columns: at most {MAX_SIDE} can be told apart.")
    return array


def panel_grid(
    panels: Sequence[Panel], columns: int | None, title: str | None, width: float | None = None, beside: float = 0
) -> Grid:
    """A figure with one axes for each matrix; squares are as large as the page allows.

    Args:
        width: inches; from the number of panels if not given.
        beside: inches that the caller needs at the right, for a colour bar.

    Raises:
        CourseError: there is no matrix.
    """
    if not panels:
        raise CourseError("There is nothing to draw: pass at least one panel.")
    count = len(panels)
    columns = min(count, columns or (count if count <= 4 else math.ceil(count / math.ceil(count / 4))))
    rows = math.ceil(count / columns)
    # One label column at the left is enough where all panels have the same labels.
    shared = all(panel.labels == panels[0].labels for panel in panels)
    side = 0.9 if any(panel.queries or panel.keys for panel in panels) else 0.4
    width = width or (PAGE_WIDTH if columns > 2 else 1.5 + 4.2 * columns)
    inner = (width - beside - 0.3 - side * (1 if shared else columns)) / columns - 0.15
    tallest = max(panel.shape[0] / panel.shape[1] for panel in panels)
    panel_height = min(max(inner, 0.6) * tallest, 5.6)
    below = rows * 0.7 + side * (1 if shared else rows)
    figure = new_figure(width, min(20, rows * panel_height + below + (0.75 if title else 0.4)), title)
    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.set(h_pad=0.08)  # a title stands clear of the labels of the panel above it
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[count:]:
        unused.set_axis_off()
    return Grid(figure, axes[:count], columns, shared, inner)


def label_sides(grid: Grid, panels: Sequence[Panel], names: tuple[str, str]) -> None:
    """Labels of both sides of all panels, positions counted from 0 where there are none; names at the grid's edges.

    Raises:
        CourseError: there are not as many labels as rows or columns.
    """
    for place, (axes, panel) in enumerate(zip(grid.axes, panels, strict=True)):
        at_left, at_bottom = place % grid.columns == 0, place + grid.columns >= len(panels)
        tick(axes, "rows", panel.shape[0], panel.queries, hide=grid.shared and not at_left)
        tick(axes, "columns", panel.shape[1], panel.keys, hide=grid.shared and not at_bottom)
        if at_left:
            axes.set_ylabel(names[0])
        if at_bottom:
            axes.set_xlabel(names[1])
        axes.set_anchor("N")  # panels of unlike height begin on one line
        axes.grid(False)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(True)
            spine.set_color(PALETTE["grey"])


def tick(axes: Axes, side: str, size: int, labels: Sequence[str] | None, hide: bool) -> None:
    """One label a row or column; of many, positions at round steps."""
    set_ticks = axes.set_yticks if side == "rows" else axes.set_xticks
    if labels is not None and len(labels) != size:
        raise CourseError(f"The matrix has {size} {side} but {len(labels)} labels: give one a position.")
    if hide:
        set_ticks([])
    elif labels is not None and size <= MAX_LABELS:
        turned: dict[str, Any] = {}
        if side == "columns" and max(len(label) for label in labels) > 2:
            turned = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"}
        set_ticks(range(size), [readable(label) for label in labels], fontsize=9, **turned)
    else:
        step = next(step for step in (1, 2, 4, 8, 16, 32, 64, 128) if size / step <= 12 or step == 128)
        set_ticks(range(0, size, step), [str(position) for position in range(0, size, step)], fontsize=9)


def draw_lines(axes: Axes, shape: tuple[int, int], queries: Sequence[int], keys: Sequence[int]) -> None:
    """Thin squares, and strong lines before the given rows and columns: where sequences or chunks begin."""
    if max(shape) <= 64:
        axes.set_xticks(np.arange(-0.5, shape[1]), minor=True)
        axes.set_yticks(np.arange(-0.5, shape[0]), minor=True)
        axes.grid(True, which="minor", color="white" if max(shape) > 32 else PALETTE["light"], linewidth=0.6)
        axes.tick_params(which="minor", length=0)
    for row in queries:
        axes.axhline(row - 0.5, color=PALETTE["black"], linewidth=1.4)
    for column in keys:
        axes.axvline(column - 0.5, color=PALETTE["black"], linewidth=1.4)


def readable(token: str) -> str:
    """A token as a label: spaces around it dropped, line ends made visible, and no dollar starts a formula."""
    shown = token.replace("\n", "⏎").replace("\t", "⇥").replace("$", r"\$")
    shown = shown.strip(" ") or "␣"
    return shown if len(shown) <= 14 else shown[:13] + "…"
