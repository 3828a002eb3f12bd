"""A pool of KV blocks as a grid: whose each block is, how many tables hold it, how full it is, what can be hit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from pagedlab.errors import CourseError
from pagedlab.model_authoring.block_manager import BlockManager
from pagedlab.visualize.style import PALETTE, new_figure

Fill = tuple[str, str]
"""Colour and hatch."""
OWNER_COLOURS = [PALETTE[name] for name in ("blue", "orange", "green", "vermillion", "purple", "sky", "yellow")]
CELL_HEIGHT = 0.9
"""Inches of a cell at up to eight columns."""
HATCHES = ("", "///", "...", "xxx")
"""Tell owners apart once the colours are used up."""
MAX_NAMED = 12
"""Owners in the legend; the rest is counted."""
MARGIN = 0.07
"""Of a cell's side, left and right of it."""
MAX_TICKS = 32
"""Slots of a block that are drawn one by one; above that only their share."""
STATES = (
    (PALETTE["light"], "free, can be hit"),
    ("white", "free"),
    (PALETTE["grey"], "null block"),
)
"""Fill and meaning of blocks that no table holds."""


@dataclass(frozen=True)
class BlockView:
    """One block of a pool, as plain data.

    Attributes:
        block_id: its place in the pool
        owners: names of the sequences whose block tables hold it; none means free
        num_filled: slots that hold a computed token
        is_cached: its content has a hash and can be hit, whether it is in use or free
        is_null: block 0, which is never handed out
    """

    block_id: int
    owners: tuple[str, ...] = ()
    num_filled: int = 0
    is_cached: bool = False
    is_null: bool = False


def view_blocks(manager: BlockManager) -> list[BlockView]:
    """Every block of a real BlockManager's device pool; owners are named by their request ids."""
    owners: dict[int, list[str]] = {}
    filled: dict[int, int] = {}
    for request, table in manager.tables.items():
        for index, block in enumerate(table.blocks):
            owners.setdefault(block.block_id, []).append(request.request_id)
            computed = min(max(request.num_computed_tokens - index * manager.block_size, 0), manager.block_size)
            filled[block.block_id] = max(filled.get(block.block_id, 0), computed)
    usable = {block.block_id for block in manager.pool.free_queue} | set(owners)
    return [
        BlockView(
            block_id=block.block_id,
            owners=tuple(owners.get(block.block_id, ())),
            num_filled=filled.get(block.block_id, manager.block_size if block.block_hash is not None else 0),
            is_cached=block.block_hash is not None,
            is_null=block.block_id not in usable,
        )
        for block in manager.pool.blocks
    ]


def block_map(
    blocks: Sequence[BlockView],
    block_size: int,
    title: str = "KV blocks",
    columns: int = 8,
    owners: Sequence[str] | None = None,
) -> Figure:
    """One grid of blocks.

    Args:
        blocks: the pool, in the order of drawing.
        block_size: slots of a block.
        title: above the grid.
        columns: blocks side by side.
        owners: fixes the colours of these names, so that several pictures agree; None takes them as they come.
    """
    return block_maps({title: blocks}, block_size, columns, owners)


def block_maps(
    moments: dict[str, Sequence[BlockView]], block_size: int, columns: int = 8, owners: Sequence[str] | None = None
) -> Figure:
    """The same pool at several moments, one grid under the other; arguments as in `block_map`.

    Raises:
        CourseError: there is nothing to draw.
    """
    if not moments or not all(moments.values()) or columns < 1:
        raise CourseError("A block map needs at least one block and one column: pass view_blocks(manager).")
    names = list(owners or dict.fromkeys(name for blocks in moments.values() for b in blocks for name in b.owners))
    fills = {name: fill_of(index) for index, name in enumerate(names)}
    rows = [-(-len(blocks) // columns) for blocks in moments.values()]
    height = sum(rows) * CELL_HEIGHT * min(1.0, 8 / columns) + 0.45 * len(rows) + 0.8
    figure = new_figure(width=8, height=min(height, 20))
    grids = figure.subplots(len(rows), 1, squeeze=False, height_ratios=rows)[:, 0]
    small = columns > 10
    for axes, (title, blocks) in zip(grids, moments.items(), strict=True):
        draw_grid(axes, blocks, block_size, columns, fills, small)
        axes.set_title(title)
    legend = [Patch(facecolor=fills[n][0], hatch=fills[n][1], edgecolor="black", label=n) for n in names[:MAX_NAMED]]
    if len(names) > MAX_NAMED:
        legend.append(Patch(facecolor="none", edgecolor="none", label=f"and {len(names) - MAX_NAMED} more"))
    legend += [Patch(facecolor=fill, edgecolor="black", label=label) for fill, label in STATES]
    if any(block.is_cached for blocks in moments.values() for block in blocks) and not small:
        legend.append(Patch(facecolor="none", edgecolor="none", label="#  content can be hit"))
    figure.legend(handles=legend, loc="outside lower center", ncols=min(len(legend), 4))
    return figure


def fill_of(index: int) -> Fill:
    """Colour and hatch of the owner number `index`."""
    return OWNER_COLOURS[index % len(OWNER_COLOURS)], HATCHES[index // len(OWNER_COLOURS) % len(HATCHES)]


def draw_grid(
    axes: Axes, blocks: Sequence[BlockView], block_size: int, columns: int, fills: dict[str, Fill], small: bool
) -> None:
    """The blocks in reading order, on axes of one unit a cell."""
    for index, block in enumerate(blocks):
        row, column = divmod(index, columns)
        draw_block(axes, block, block_size, column, row, fills, small)
    axes.set_xlim(0, columns)
    axes.set_ylim(-(-len(blocks) // columns), 0)
    axes.axis("off")


def draw_block(
    axes: Axes, block: BlockView, block_size: int, x: int, y: int, fills: dict[str, Fill], small: bool
) -> None:
    """One cell: number and state above, slots below, in a band for each owner."""
    left, width = x + MARGIN, 1 - 2 * MARGIN
    top, height = y + 0.38, 0.5
    shown = [fills.get(name, (PALETTE["black"], "")) for name in block.owners]
    shown = shown or [(PALETTE["grey"] if block.is_null else PALETTE["light"] if block.is_cached else "white", "")]
    used = width if block.is_null else width * min(1.0, block.num_filled / block_size)
    band = height / len(shown)
    for index, (colour, hatch) in enumerate(shown):
        pale = "white" if not block.owners else mixed(colour, 0.22)
        axes.add_patch(Rectangle((left, top + index * band), width, band, facecolor=pale, edgecolor="none"))
        corner = (left, top + index * band)
        axes.add_patch(Rectangle(corner, used, band, facecolor=colour, hatch=hatch, edgecolor="black", linewidth=0))
    if block_size <= MAX_TICKS and not small and not block.is_null:
        ticks = [left + width * slot / block_size for slot in range(1, block_size)]
        axes.vlines(ticks, top, top + height, color="white" if block.owners else "#BBBBBB", linewidth=0.7)
    axes.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor="black", linewidth=1.1))
    size = 7 if small else 10
    axes.text(left, top - 0.06, str(block.block_id), fontsize=size, va="bottom", ha="left")
    state = "null" if block.is_null else f"×{len(block.owners)}" if block.owners else ""
    state = " ".join(part for part in ("#" if block.is_cached and not small else "", state) if part)
    weight = "bold" if len(block.owners) > 1 else "normal"
    axes.text(left + width, top - 0.06, state, fontsize=size, va="bottom", ha="right", fontweight=weight)


def mixed(colour: str, share: float) -> tuple[float, ...]:
    """A colour on white, as if it covered `share` of the paper."""
    return tuple(1 - share * (1 - part) for part in to_rgb(colour))
