"""Pictures of growth: curves on linear or logarithmic axes, the triangle of wasted work, bars of bytes a token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pagedlab.basics.counters import Pass
from pagedlab.errors import CourseError
from pagedlab.visualize.style import CYCLE, PALETTE, legend_beside, new_figure

Curve = tuple[Sequence[float], Sequence[float]]
"""x and y of the same length."""

FIRST, AGAIN, READ = "computed for the first time", "computed again", "read from the cache"
CELLS = {FIRST: PALETTE["blue"], AGAIN: PALETTE["orange"], READ: PALETTE["light"]}
"""What happens to a token in a pass; blue, orange and light grey differ in brightness too."""

KINDS = {"MHA": PALETTE["vermillion"], "GQA": PALETTE["blue"], "MQA": PALETTE["green"], "MLA": PALETTE["purple"]}
MARKERS = "os^Dv*P"


def curves(
    series: Mapping[str, Curve],
    xlabel: str,
    ylabel: str,
    title: str | None = None,
    log: bool = False,
    width: float = 8,
    height: float = 4,
) -> Figure:
    """One line with markers a series, the legend beside them. On logarithmic axes n² is a line of slope 2.

    Raises:
        CourseError: nothing to draw, x and y differ in length, or a number that has no logarithm on logarithmic axes.
    """
    if not series:
        raise CourseError("There is no curve to draw: pass at least one series of x and y.")
    figure = new_figure(width, height, title)
    axes = figure.subplots()
    for index, (name, (x, y)) in enumerate(series.items()):
        if len(x) != len(y):
            raise CourseError(f"{name!r} has {len(x)} x and {len(y)} y: give one y for each x.")
        if log and any(number <= 0 for number in (*x, *y)):
            raise CourseError(f"{name!r} has a number that is not positive: draw it with log=False.")
        axes.plot(x, y, marker=MARKERS[index % len(MARKERS)], markersize=5, color=CYCLE[index % len(CYCLE)], label=name)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    if log:
        axes.set_xscale("log")
        axes.set_yscale("log")
    else:
        if all(number >= 0 for _, y in series.values() for number in y):
            axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(_plain))
    legend_beside(axes)
    return figure


def work_triangle(passes: Mapping[str, Sequence[Pass]], title: str | None = None) -> Figure:
    """One panel a way of generating: a row for each pass, a column for each token, coloured by what the pass does.

    Args:
        passes: name -> its passes in order; recorded from a run or computed.
    """
    width = max((one.past + one.new for steps in passes.values() for one in steps), default=0)
    if not width:
        raise CourseError("There is no pass to draw: generate at least one token.")
    figure = new_figure(9, 4.4, title)
    panels = figure.subplots(1, len(passes), squeeze=False)[0]
    present = set()
    for axes, (name, steps) in zip(panels, passes.items(), strict=True):
        cells = work_cells(steps, width)
        present |= set(cells.flat)
        _draw_cells(axes, cells)
        again = int((cells == 1).sum())
        axes.set_title(f"{name}: {again:,} of {int((cells < 2).sum()):,} computed again")
    panels[0].set_ylabel("pass (makes one token)")
    handles = [Patch(color=colour, label=name) for code, (name, colour) in enumerate(CELLS.items()) if code in present]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def work_cells(passes: Sequence[Pass], width: int) -> np.ndarray:
    """[passes, width]: 0 computed for the first time, 1 computed again, 2 read from the cache, 3 not there yet."""
    cells = np.full((len(passes), width), 3)
    known = 0
    for row, one in zip(cells, passes, strict=True):
        end = one.past + one.new
        row[: one.past] = 2
        row[one.past : end] = np.where(np.arange(one.past, end) < known, 1, 0)
        known = max(known, end)
    return cells


def _draw_cells(axes: Axes, cells: np.ndarray) -> None:
    rows, width = cells.shape
    colours = ListedColormap([*CELLS.values(), "#FFFFFF"])
    lines: Any = {"edgecolors": "white", "linewidth": 0.4} if max(rows, width) <= 80 else {}
    edges = np.arange(width + 1) + 0.5, np.arange(rows + 1) + 0.5
    axes.pcolormesh(*edges, cells, cmap=colours, vmin=-0.5, vmax=3.5, **lines)
    axes.invert_yaxis()
    axes.grid(False)
    axes.set_xlabel("position of the token")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))


def bytes_bars(bars: Sequence[tuple[str, str, int]], title: str | None = None, of: str = "all layers") -> Figure:
    """Horizontal bars on a logarithmic axis: what one token leaves in the cache.

    Args:
        bars: name, kind (MHA, GQA, MQA or MLA, which gives the colour and stands in the legend) and bytes a token.
        of: which layers the bytes are of, for the label of the axis.
    """
    if not bars or any(size <= 0 for _, _, size in bars):
        raise CourseError("Bars on a logarithmic axis need one positive number of bytes or more.")
    if unknown := {kind for _, kind, _ in bars} - set(KINDS):
        raise CourseError(f"A bar's kind is one of {', '.join(KINDS)}, got {', '.join(sorted(unknown))}.")
    figure = new_figure(9, 0.36 * len(bars) + 1.6, title)
    axes = figure.subplots()
    names, kinds, sizes = zip(*bars, strict=True)
    drawn = axes.barh(range(len(bars)), sizes, color=[KINDS[kind] for kind in kinds], height=0.7)
    labels = [f"{_three_digits(size / 1024)} KiB  {kind}" for size, kind in zip(sizes, kinds, strict=True)]
    axes.bar_label(drawn, labels, padding=4)
    axes.set_yticks(range(len(bars)), names)
    axes.invert_yaxis()
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(sizes) / 2, max(sizes) * 4)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size / 1024:g}"))
    axes.set_xlabel(f"KiB a token, {of} (logarithmic axis)")
    axes.grid(axis="y", visible=False)
    present = {kind: KINDS[kind] for kind in KINDS if kind in kinds}
    axes.legend(handles=[Patch(color=colour, label=kind) for kind, colour in present.items()], loc="lower right")
    return figure


def _plain(value: float, _position: int | None = None) -> str:
    return f"{value:,.10g}"


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
