"""Pictures of attention masks: any [queries, keys] matrix of truths, one panel or several, with tokens as labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from pagedlab.errors import CourseError
from pagedlab.visualize.matrix import Panel, checked_matrix, draw_lines, label_sides, panel_grid
from pagedlab.visualize.style import PALETTE

SEEN, HIDDEN, EMPTY = PALETTE["green"], "#FFFFFF", PALETTE["vermillion"]
OWNERS = tuple(PALETTE[name] for name in ("green", "blue", "orange", "purple", "sky", "vermillion"))


@dataclass(frozen=True)
class MaskPanel:
    """One mask and what is written beside it.

    Attributes:
        mask: [num_queries, num_keys], true where a query may attend to a key: tensor, array or nested lists
        title: over the panel
        queries, keys: a label for each row and column, such as tokens; positions without them
        query_starts, key_starts: rows and columns before which a line is drawn: where a sequence or a chunk begins
        owners: for each query a whole number, such as the request it belongs to; it decides the colour
    """

    mask: Any
    title: str = ""
    queries: Sequence[str] | None = None
    keys: Sequence[str] | None = None
    query_starts: Sequence[int] = ()
    key_starts: Sequence[int] = ()
    owners: Sequence[int] | None = None


def draw_masks(
    panels: MaskPanel | Sequence[MaskPanel] | Mapping[str, Any],
    title: str | None = None,
    columns: int | None = None,
    count: bool = True,
    width: float | None = None,
) -> Figure:
    """Masks side by side: a coloured square is a key that the query may see, a white one is hidden.

    Rows are queries (the token that reads), columns are keys (the tokens that it reads). A row without any key is
    struck through: its softmax is NaN.

    Args:
        panels: one panel or several; or {title: mask} where nothing but a title is needed.
        columns: panels in a row; as fits if not given.
        count: write under each title how many pairs may meet.
        width: inches; from the number of panels if not given.

    Raises:
        CourseError: a mask is no matrix of truths, or labels do not fit it.
    """
    if isinstance(panels, Mapping):
        panels = [MaskPanel(mask, name) for name, mask in panels.items()]
    panels = [panels] if isinstance(panels, MaskPanel) else list(panels)
    tables = [truths(panel) for panel in panels]
    matrices = [Panel(table.shape, panel.queries, panel.keys) for panel, table in zip(panels, tables, strict=True)]
    grid = panel_grid(matrices, columns, title, width)
    for axes, panel, table in zip(grid.axes, panels, tables, strict=True):
        draw_panel(axes, panel, table)
        seen = f"{int(table.sum())} of {table.size} pairs" if count else ""
        axes.set_title("\n".join(part for part in (grid.wrapped(panel.title), seen) if part), fontsize=11)
    label_sides(grid, matrices, ("query: who reads", "key: who is read"))
    add_legend(grid.figure, panels, tables)
    return grid.figure


def truths(panel: MaskPanel) -> NDArray[np.bool_]:
    table = checked_matrix(panel.mask, "A mask")
    if table.dtype != np.bool_:
        raise CourseError(
            f"A mask holds True and False, this one {table.dtype}: compare it first (mask > 0, mask == 1)."
        )
    if panel.owners is not None and len(panel.owners) != len(table):
        raise CourseError(f"The mask has {len(table)} rows but {len(panel.owners)} owners: give one for each query.")
    return table


def draw_panel(axes: Axes, panel: MaskPanel, table: NDArray[np.bool_]) -> None:
    owners = np.zeros(len(table), dtype=int) if panel.owners is None else np.asarray(panel.owners) % len(OWNERS)
    # 0 is hidden; a visible pair has the number of its query's colour.
    image = np.where(table, owners[:, None] + 1, 0)
    colours = ListedColormap([HIDDEN, *OWNERS])
    axes.imshow(image, cmap=colours, vmin=0, vmax=len(OWNERS), interpolation="nearest", aspect="equal")
    for row in np.flatnonzero(~table.any(axis=1)):
        box = Rectangle((-0.5, row - 0.5), table.shape[1], 1, fill=False, edgecolor=EMPTY, hatch="////", linewidth=1.2)
        axes.add_patch(box)
    draw_lines(axes, table.shape, panel.query_starts, panel.key_starts)


def add_legend(figure: Figure, panels: Sequence[MaskPanel], tables: Sequence[NDArray[np.bool_]]) -> None:
    by_owner = any(panel.owners is not None for panel in panels)
    handles = [
        Patch(facecolor=SEEN, label="may attend (colour: whose query)" if by_owner else "may attend"),
        Patch(facecolor=HIDDEN, edgecolor=PALETTE["grey"], label="hidden"),
    ]
    if any((~table.any(axis=1)).any() for table in tables):
        handles.append(Patch(facecolor=HIDDEN, edgecolor=EMPTY, hatch="////", label="sees nothing: NaN"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
