"""Heat maps of queries by keys: attention weights, and which position felt the change of which other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Colormap, LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pagedlab.errors import CourseError
from pagedlab.visualize.matrix import Grid, Panel, checked_matrix, draw_lines, label_sides, panel_grid
from pagedlab.visualize.style import PALETTE

WEIGHTS = ("query: who reads", "key: who is read")
CHANGES = ("position looked at", "position changed")
BLUES = LinearSegmentedColormap.from_list("weights", ["#FFFFFF", PALETTE["sky"], PALETTE["blue"], "#00263E"])
SMALLEST = 1e-3
"""Relative changes from here to 1 have their own shade; smaller ones look like this one, and exactly 0 is white."""


@dataclass(frozen=True)
class HeatPanel:
    """One matrix of non-negative numbers and what is written beside it.

    Attributes:
        values: [num_queries, num_keys]: tensor, array or nested lists
        title: over the panel
        queries, keys: a label for each row and column; positions without them
    """

    values: Any
    title: str = ""
    queries: Sequence[str] | None = None
    keys: Sequence[str] | None = None


Panels = HeatPanel | Sequence[HeatPanel] | Mapping[str, Any]


def attention_maps(
    panels: Panels,
    title: str | None = None,
    columns: int | None = None,
    width: float | None = None,
    top: float = 1.0,
) -> Figure:
    """Attention weights, white at 0: how much of its attention a query (row) gives to each key (column).

    Args:
        panels: one panel or several; or {title: weights} where nothing but a title is needed.
        columns, width: panels in a row, and inches; as fits if not given.
        top: the weight that has the darkest colour; lower it to see small weights.

    Raises:
        CourseError: values are no matrix of numbers from 0 to 1, or labels do not fit.
    """
    if not 0 < top <= 1:
        raise CourseError(f"top is the weight with the darkest colour, above 0 and at most 1, got {top}.")
    chosen = listed(panels)
    tables = [numbers(panel) for panel in chosen]
    if any(np.nanmax(table, initial=0) > 1 + 1e-5 for table in tables):
        raise CourseError("Attention weights lie between 0 and 1: take the softmax of scores over the keys first.")
    grid = grid_of(chosen, tables, title, columns, width)
    return draw(grid, chosen, tables, WEIGHTS, Normalize(0, top), BLUES, "attention weight (share of a row)")


def change_maps(
    panels: Panels, title: str | None = None, columns: int | None = None, width: float | None = None
) -> Figure:
    """Who felt whose change: column j was changed, row i looked at. Exactly 0 is white, so a zero is seen as one.

    Args:
        panels: matrices of relative changes (size of the change over size of the vector); {title: matrix} is enough.
        columns, width: panels in a row, and inches; as fits if not given.

    Raises:
        CourseError: values are no matrix of numbers from 0 up, or labels do not fit.
    """
    chosen = listed(panels)
    tables = [numbers(panel) for panel in chosen]
    norm, colours = LogNorm(SMALLEST, 1, clip=True), colormaps["cividis_r"]
    grid = grid_of(chosen, tables, title, columns, width)
    return draw(grid, chosen, tables, CHANGES, norm, colours, "relative change (white: exactly 0)")


def listed(panels: Panels) -> list[HeatPanel]:
    if isinstance(panels, Mapping):
        return [HeatPanel(values, name) for name, values in panels.items()]
    return [panels] if isinstance(panels, HeatPanel) else list(panels)


def numbers(panel: HeatPanel) -> NDArray[np.float64]:
    table = checked_matrix(panel.values, "A heat map").astype(float)
    if (table < 0).any():
        raise CourseError("A heat map shows sizes, from 0 up; this one has negative numbers: take abs() or a norm.")
    return table


def matrices(panels: list[HeatPanel], tables: list[NDArray[np.float64]]) -> list[Panel]:
    return [Panel(table.shape, panel.queries, panel.keys) for panel, table in zip(panels, tables, strict=True)]


def grid_of(
    panels: list[HeatPanel],
    tables: list[NDArray[np.float64]],
    title: str | None,
    columns: int | None,
    width: float | None,
) -> Grid:
    return panel_grid(matrices(panels, tables), columns, title, width, beside=0.9)


def draw(
    grid: Grid,
    panels: list[HeatPanel],
    tables: list[NDArray[np.float64]],
    names: tuple[str, str],
    norm: Normalize,
    colours: Colormap,
    label: str,
) -> Figure:
    image = None
    for axes, panel, table in zip(grid.axes, panels, tables, strict=True):
        image = axes.imshow(
            np.ma.masked_where((table == 0) | np.isnan(table), table),
            cmap=colours.with_extremes(bad="white"),
            norm=norm,
            interpolation="nearest",
            aspect="equal",
        )
        for row, column in np.argwhere(np.isnan(table)) if table.size <= 400 else ():
            axes.text(column, row, "×", ha="center", va="center", fontsize=9)  # NaN: no number at all
        draw_lines(axes, table.shape, (), ())
        axes.set_title(grid.wrapped(panel.title), fontsize=11)
    label_sides(grid, matrices(panels, tables), names)
    assert image is not None  # panel_grid refuses to draw nothing
    grid.figure.colorbar(image, ax=grid.axes, label=label, shrink=0.9, pad=0.02, aspect=28)
    return grid.figure
