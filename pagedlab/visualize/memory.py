"""Pictures of memory: what every address holds over time, shares of states, the tree of a buddy allocator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from pagedlab.errors import CourseError
from pagedlab.simulate.allocators import Leaf, Snapshot, State
from pagedlab.visualize.style import PALETTE, legend_beside, new_figure

STATE_COLOURS = {
    State.TOKEN: PALETTE["blue"],
    State.RESERVED: PALETTE["sky"],
    State.INTERNAL: PALETTE["orange"],
    State.EXTERNAL: PALETTE["vermillion"],
    State.FREE: PALETTE["light"],
}
STATE_LABELS = {
    State.TOKEN: "token",
    State.RESERVED: "reserved, used later",
    State.INTERNAL: "internal: never used",
    State.EXTERNAL: "external and other",
    State.FREE: "free",
}
DRAWN_ADDRESSES = 400
"""Rows of pixels that a strip shows; a larger memory is sampled at even distances."""
LABELLED = 0.055
"""Share of a bar from which on a part carries its number: less is too narrow for it."""


class Segment(NamedTuple):
    """A run of addresses in a drawn memory; `used` colours it."""

    start: float
    size: float
    label: str
    used: bool


def memory_maps(
    maps: Mapping[str, Sequence[tuple[int, Snapshot]]], title: str | None = None, gib_per_slot: float | None = None
) -> Figure:
    """Address by time, coloured by state, one strip an allocator.

    Args:
        maps: name of the strip -> (step, state of every slot) at increasing, evenly spaced steps.
        gib_per_slot: draws the addresses in GiB instead of slots.

    Raises:
        CourseError: there is no strip, or one of fewer than two moments.
    """
    if not maps or any(len(moments) < 2 for moments in maps.values()):
        raise CourseError("A map of memory over time needs at least one strip, of two moments or more each.")
    figure = new_figure(9, max(3.2, 1.0 + 1.45 * len(maps)), title)
    strips = figure.subplots(len(maps), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, moments) in zip(strips, maps.items(), strict=True):
        steps = [step for step, _ in moments]
        states = np.stack([snapshot for _, snapshot in moments], axis=1)  # [slots, moments]
        rows = np.linspace(0, len(states) - 1, min(DRAWN_ADDRESSES, len(states))).astype(int)
        top = len(states) * (gib_per_slot or 1)
        draw_states(axes, states[rows], (steps[0], steps[-1], 0, top))
        axes.set_title(name)
        axes.grid(False)
    figure.supylabel(f"address ({'GiB' if gib_per_slot else 'slots'})", fontsize=11)
    strips[-1].set_xlabel("time (decode steps)")
    shown = {State(int(state)) for moments in maps.values() for _, snapshot in moments for state in np.unique(snapshot)}
    state_legend(figure, shown)
    return figure


def draw_states(axes: Axes, states: Snapshot, extent: tuple[float, float, float, float]) -> None:
    """A picture of one pixel a slot and moment."""
    colours = ListedColormap([STATE_COLOURS[state] for state in State])
    norm = BoundaryNorm(np.arange(len(State) + 1) - 0.5, len(State))
    axes.imshow(states, cmap=colours, norm=norm, aspect="auto", origin="lower", interpolation="nearest", extent=extent)


def state_legend(figure: Figure, shown: set[State]) -> None:
    patches = [Patch(color=STATE_COLOURS[state], label=STATE_LABELS[state]) for state in State if state in shown]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(3, len(patches)))


def share_bars(bars: Mapping[str, Mapping[State, float]], title: str | None = None) -> Figure:
    """One stacked bar a name: which share of the memory was in each state. Parts of 5.5 % or more carry their number.

    Args:
        bars: name -> state -> share, 0 to 1; states left out are not drawn. A name of blanks leaves a gap.
    """
    names = list(bars)
    figure = new_figure(9, 1.3 + 0.36 * len(names), title)
    axes = figure.subplots()
    shown: set[State] = set()
    for place, shares in enumerate(bars.values()):
        left = 0.0
        for state in State:
            share = shares.get(state, 0.0)
            if share <= 0:
                continue
            shown.add(state)
            axes.barh(place, share * 100, left=left, color=STATE_COLOURS[state], edgecolor="white", height=0.82)
            if share >= LABELLED:
                colour = "white" if state in (State.TOKEN, State.EXTERNAL) else "black"
                middle = left + share * 50
                axes.text(middle, place, f"{share * 100:.1f}", ha="center", va="center", color=colour, fontsize=9)
            left += share * 100
    named = [place for place, name in enumerate(names) if name.strip()]
    axes.set_yticks(named, [names[place] for place in named])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the KV memory (%)")
    axes.grid(False)
    state_legend(figure, shown)
    return figure


def paired_bars(
    pairs: Mapping[str, tuple[float, float]], labels: tuple[str, str], xlabel: str, title: str | None = None
) -> Figure:
    """Two bars a name, with their numbers: a simulated value beside a published one."""
    if not any(max(pair) > 0 for pair in pairs.values()):
        raise CourseError("Paired bars need one name or more, and a number above 0.")
    figure = new_figure(8, 1.3 + 0.62 * len(pairs), title)
    axes = figure.subplots()
    for side, (label, colour) in enumerate(zip(labels, (PALETTE["blue"], PALETTE["grey"]), strict=True)):
        places = [place + 0.2 * (2 * side - 1) for place in range(len(pairs))]
        values = [pair[side] for pair in pairs.values()]
        bars = axes.barh(places, values, height=0.38, color=colour, label=label)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
    axes.set_yticks(range(len(pairs)), list(pairs))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(max(pair) for pair in pairs.values()))
    axes.set_xlabel(xlabel)
    axes.grid(False, axis="y")
    legend_beside(axes)
    return figure


def address_strips(
    rows: Mapping[str, Sequence[Segment]], capacity: float, unit: str, title: str | None = None
) -> Figure:
    """One bar of memory a row, cut into named segments: a small example, step by step."""
    figure = new_figure(9, 1.2 + 0.5 * len(rows), title)
    axes = figure.subplots()
    for place, segments in enumerate(rows.values()):
        for start, size, label, used in segments:
            colour = PALETTE["blue"] if used else PALETTE["light"]
            axes.barh(place, size, left=start, color=colour, edgecolor="white", linewidth=1.5, height=0.8)
            ink = "white" if used else "black"
            axes.text(start + size / 2, place, label, ha="center", va="center", color=ink, fontsize=10)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set_xlim(0, capacity)
    axes.set_xticks(np.linspace(0, capacity, 9))
    axes.set_xlabel(f"address ({unit})")
    axes.grid(False)
    return figure


def buddy_tree(
    leaves: Sequence[Leaf], capacity: int, wanted: int, smallest: int | None = None, title: str | None = None
) -> Figure:
    """The tree of halves: blocks in use, free blocks, and the blocks that were split to make them.

    Args:
        leaves: Buddy.leaves().
        wanted: size of the block that was refused; it is drawn above the tree, to scale.
        smallest: blocks below this size are drawn in the lowest row, without a row of their own.
    """
    smallest = smallest or max(1, capacity // 256)
    sizes = [1 << k for k in reversed(range(capacity.bit_length())) if smallest <= 1 << k]
    row_of = {size: row for row, size in enumerate(sizes)}
    figure = new_figure(9.5, 1.6 + 0.36 * len(sizes), title)
    axes = figure.subplots()
    split = {ancestor for leaf in leaves for ancestor in ancestors(leaf, capacity)}
    for start, size in sorted(split):
        if size in row_of:
            box(axes, start, size, row_of[size], {"facecolor": "white", "edgecolor": PALETTE["grey"]})
    for start, size, free in leaves:
        colour = PALETTE["green"] if free else PALETTE["blue"]
        row = row_of.get(size, len(sizes) - 1)
        box(axes, start, size, row, {"facecolor": colour, "edgecolor": "white"})
        if size >= capacity / 24:
            style: dict[str, Any] = {"color": "white", "ha": "center", "va": "center", "fontsize": 9}
            axes.text(start + size / 2, row, f"{size:,}", **style)
    box(axes, 0, wanted, -1.3, {"facecolor": "none", "edgecolor": PALETTE["vermillion"], "linestyle": "--"})
    axes.text(wanted + capacity * 0.01, -1.3, f"wanted: {wanted:,} in one block", va="center", fontsize=10)
    axes.set_yticks(range(len(sizes)), [f"{size:,}" for size in sizes])
    axes.set_ylim(len(sizes) - 0.4, -1.9)
    axes.set_xlim(0, capacity)
    axes.set_ylabel("block size (slots)")
    axes.set_xlabel("address (slots)")
    axes.grid(False)
    tree_legend(figure)
    return figure


def ancestors(leaf: Leaf, capacity: int) -> list[tuple[int, int]]:
    """(start, size) of the blocks that were split to make this one, as far as they lie inside the memory."""
    found, start, size = [], leaf.start, leaf.size * 2
    while size <= capacity:
        start &= ~(size - 1)
        if start + size > capacity:
            break
        found.append((start, size))
        size *= 2
    return found


def box(axes: Axes, start: float, size: float, row: float, style: dict[str, Any]) -> None:
    axes.add_patch(Rectangle((start, row - 0.38), size, 0.76, linewidth=1.0, **style))


def tree_legend(figure: Figure) -> None:
    patches = [
        Patch(color=PALETTE["blue"], label="in use"),
        Patch(color=PALETTE["green"], label="free"),
        Patch(facecolor="white", edgecolor=PALETTE["grey"], label="split into halves"),
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=3)


def waste_curve(
    block_sizes: Sequence[int], measured: Sequence[float], expected: Sequence[float], title: str | None = None
) -> Figure:
    """Slots given to requests but empty, in % of those given out, against the block size."""
    figure = new_figure(8, 4, title)
    axes = figure.subplots()
    axes.plot(block_sizes, expected, color=PALETTE["grey"], linestyle="--", label="(B - 1) / 2 a request")
    axes.plot(block_sizes, measured, "o", color=PALETTE["blue"], label="simulated")
    axes.set_xscale("log", base=2)
    axes.set_xticks(block_sizes, [str(size) for size in block_sizes])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("block size B (tokens)")
    axes.set_ylabel("empty part of the blocks\ngiven out (%)")
    axes.legend(loc="upper left")
    return figure
