"""Pictures of a kernel's programs: which of them read which block, and which threads hold one program's tile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from pagedlab.errors import CourseError
from pagedlab.visualize.matrix import checked_matrix
from pagedlab.visualize.style import CYCLE, PALETTE, new_figure

BLUES = LinearSegmentedColormap.from_list("reads", ["#DCEEF9", PALETTE["sky"], PALETTE["blue"]])
MAX_COLUMNS = 32
"""Blocks up to which each number is written out."""
MAX_WRITTEN = 512
"""Runs of a thread in a tile that are numbered one by one."""


def who_reads(
    panels: Mapping[str, tuple[Any, Sequence[str]]],
    block_size: int,
    title: str | None = None,
    blocks: str = "physical block",
    columns: int = 1,
) -> Figure:
    """Programs by blocks: each cell says how many positions of a block a program read; white is none.

    Args:
        panels: title -> (counts [num_programs, num_blocks], a label for each program).
        block_size: positions of a block, the darkest shade.
        blocks: what the columns are.
        columns: panels side by side.

    Raises:
        CourseError: counts are no matrix, a label is missing, or a program read more of a block than it holds.
    """
    if not panels:
        raise CourseError("There is nothing to draw: pass one panel or more.")
    tables = [checked_matrix(counts, "Reads") for counts, _ in panels.values()]
    for table, (_, programs) in zip(tables, panels.values(), strict=True):
        if table.min() < 0 or table.max() > block_size:
            raise CourseError(f"A block holds {block_size} positions: a program reads 0 to {block_size} of it.")
        if len(programs) != len(table):
            raise CourseError(f"There are {len(table)} programs but {len(programs)} labels: give each one.")
    columns = min(columns, len(tables))
    heights = [max(len(table) for table in tables[i : i + columns]) for i in range(0, len(tables), columns)]
    height = 0.28 * sum(heights) + 0.75 * len(heights) + (0.75 if title else 0.35)
    figure = new_figure(9, min(height, 20), title)
    grid = figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights)
    for axes, table, (name, (_, programs)) in zip(grid.flat, tables, panels.items(), strict=False):
        draw_reads(axes, table, block_size)
        axes.set_yticks(range(len(programs)), list(programs), fontsize=9)
        axes.set_title(name, fontsize=11)
    for unused in grid.flat[len(tables) :]:
        unused.set_axis_off()
    for axes in grid[-1]:
        axes.set_xlabel(blocks)
    return figure


def draw_reads(axes: Axes, table: NDArray[Any], block_size: int) -> None:
    """One matrix: shades of blue, and the numbers where they can be read."""
    rows, columns = table.shape
    shades = np.ma.masked_equal(table, 0)
    axes.imshow(shades, cmap=BLUES, vmin=0, vmax=block_size, aspect="auto", interpolation="nearest")
    for row, column in np.argwhere(table > 0) if columns <= MAX_COLUMNS else ():
        count = int(table[row, column])
        colour = "white" if count > block_size / 2 else "black"
        axes.text(column, row, str(count), ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(0, columns, 1 if columns <= MAX_COLUMNS else 8))
    axes.set_xticks(np.arange(-0.5, columns), minor=True)
    axes.set_yticks(np.arange(-0.5, rows), minor=True)
    axes.grid(False)
    axes.grid(True, which="minor", color="#D9D9D9", linewidth=0.6)
    axes.tick_params(which="both", length=0)


def tile_of_threads(owners: Any, threads_per_warp: int, title: str = "Which thread holds what") -> Figure:
    """One tile of a program, dealt to its threads: a colour for each warp, a number in each thread's run of elements.

    Args:
        owners: [rows, columns] the thread that holds each element, counted from 0 through all warps.
        threads_per_warp: 32 on every NVIDIA chip.

    Raises:
        CourseError: owners are no matrix of whole numbers from 0 up.
    """
    table = checked_matrix(owners, "A tile of threads")
    if not np.issubdtype(table.dtype, np.integer) or table.min() < 0:
        raise CourseError("owners are numbers of threads: whole numbers from 0 up.")
    rows, columns = table.shape
    figure = new_figure(10, min(1.5 + 0.26 * rows, 9), title)
    axes = figure.subplots()
    runs = [(row, first, end) for row in range(rows) for first, end in _runs(table[row].tolist())]
    for row, first, end in runs:
        thread = int(table[row, first])
        colour = CYCLE[thread // threads_per_warp % len(CYCLE)]
        box = Rectangle((first, row), end - first, 1, facecolor=colour, alpha=0.45, edgecolor="white", linewidth=1)
        axes.add_patch(box)
        if len(runs) <= MAX_WRITTEN:
            axes.text((first + end) / 2, row + 0.5, str(thread), ha="center", va="center", fontsize=7)
    axes.set(xlim=(0, columns), ylim=(rows, 0), xlabel="dimension", ylabel="slot of the block")
    axes.grid(False)
    warps = range(int(table.max()) // threads_per_warp + 1)
    handles = [Patch(facecolor=CYCLE[w % len(CYCLE)], alpha=0.45, label=f"warp {w}") for w in warps]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 8))
    return figure


def _runs(line: list[int]) -> list[tuple[int, int]]:
    """First and end of each stretch of equal numbers."""
    edges = [0, *(place for place in range(1, len(line)) if line[place] != line[place - 1]), len(line)]
    return list(pairwise(edges))
