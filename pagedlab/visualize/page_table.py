"""Pictures of paging: a table between pages and frames, who was in memory when, and faults against frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle
from matplotlib.ticker import MaxNLocator

from pagedlab.errors import CourseError
from pagedlab.visualize.style import CYCLE, PALETTE, legend_beside, new_figure

MARKERS = "osD^vPX"
ROW_HEIGHT = 0.3
"""Inches of one page or frame."""


class Access(Protocol):
    """One access of a replay (simulate.reference_string.Step)."""

    @property
    def page(self) -> int: ...
    @property
    def fault(self) -> bool: ...
    @property
    def resident(self) -> tuple[int | None, ...]: ...


def page_table(
    table: Sequence[int | None],
    num_frames: int,
    title: str = "Page table",
    names: tuple[str, str] = ("page", "frame"),
    others: Mapping[int, str] | None = None,
    highlight: int | None = None,
    absent: str = "on disk",
) -> Figure:
    """Arrows from each page to the frame that holds it.

    Args:
        table: for each page its frame, or None.
        num_frames: frames of the memory.
        title: above the picture.
        names: what the two sides are made of.
        others: frames that belong to somebody else, with the label to write into them.
        highlight: a page to draw in another colour.
        absent: what to write at a page without a frame.

    Raises:
        CourseError: an entry points outside the memory.
    """
    if any(frame is not None and not 0 <= frame < num_frames for frame in table):
        raise CourseError(f"A table entry points outside {num_frames} {names[1]}s: {list(table)}.")
    figure = new_figure(width=8, height=max(2.4, ROW_HEIGHT * max(len(table), num_frames) + 1.0))
    axes = figure.subplots()
    rows = max(len(table), num_frames)
    shift = [(rows - len(table)) / 2, (rows - num_frames) / 2]
    holders = {frame: page for page, frame in enumerate(table) if frame is not None}
    for page, frame in enumerate(table):
        colour = PALETTE["vermillion"] if page == highlight else PALETTE["blue"]
        y = shift[0] + page
        draw_box(axes, 0.0, y, f"{names[0]} {page}", colour if frame is not None else "white")
        if frame is None:
            axes.text(2.12, y + 0.5, absent, va="center", color="#555555", fontsize=10)
            continue
        ends = (2.05, y + 0.5), (5.95, shift[1] + frame + 0.5)
        arrow = ConnectionPatch(*ends, "data", "data", arrowstyle="-|>", color=colour, linewidth=1.8, mutation_scale=14)
        axes.add_patch(arrow)
    for frame in range(num_frames):
        owner = (others or {}).get(frame)
        held = holders.get(frame)
        colour = PALETTE["vermillion"] if held is not None and held == highlight else PALETTE["blue"]
        fill = colour if held is not None else PALETTE["light"] if owner else "white"
        label = f"{names[1]} {frame}" + (f": {names[0]} {held}" if held is not None else f": {owner}" if owner else "")
        draw_box(axes, 6.0, shift[1] + frame, label, fill)
    axes.set_xlim(-0.1, 8.1)
    axes.set_ylim(rows + 0.1, -0.1)
    axes.axis("off")
    axes.set_title(title)
    return figure


def draw_box(axes: Axes, x: float, y: float, label: str, fill: str) -> None:
    dark = fill in (PALETTE["blue"], PALETTE["vermillion"])
    axes.add_patch(Rectangle((x, y + 0.06), 2.0, 0.88, facecolor=fill, edgecolor="black", linewidth=1))
    axes.text(x + 1.0, y + 0.5, label, ha="center", va="center", color="white" if dark else "black", fontsize=10)


def frames_over_time(replays: Mapping[str, Sequence[Access]], title: str | None = None) -> Figure:
    """What each frame held after each access, one panel a replay; a column with a fault has its page number in red.

    Args:
        replays: caption -> the accesses of one replay (up to about 30 stay legible).

    Raises:
        CourseError: a replay is empty.
    """
    if not replays or not all(replays.values()):
        raise CourseError("There is nothing to draw: pass a replay of at least one access.")
    heights = [len(steps[0].resident) + 1.2 for steps in replays.values()]
    figure = new_figure(width=8, height=0.36 * sum(heights) + 0.75 * len(replays) + 0.3, title=title)
    panels = figure.subplots(len(replays), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (caption, steps) in zip(panels, replays.items(), strict=True):
        draw_replay(axes, steps)
        axes.set_title(f"{caption}: {sum(step.fault for step in steps)} faults in {len(steps)} accesses")
    panels[-1].set_xlabel("access to page (vermillion: a fault)")
    return figure


def draw_replay(axes: Axes, steps: Sequence[Access]) -> None:
    num_frames = len(steps[0].resident)
    for x, step in enumerate(steps):
        for frame, page in enumerate(step.resident):
            loaded = step.fault and page == step.page
            fill = PALETTE["vermillion"] if loaded else "#DCEBF5" if page is not None else "white"
            axes.add_patch(Rectangle((x - 0.46, frame - 0.42), 0.92, 0.84, facecolor=fill, edgecolor="#777777"))
            if page is not None:
                colour = "white" if loaded else "black"
                axes.text(x, frame, str(page), ha="center", va="center", fontsize=10, color=colour)
    axes.set_xlim(-0.6, len(steps) - 0.4)
    axes.set_ylim(num_frames - 0.4, -0.6)
    axes.set_xticks(range(len(steps)), [str(step.page) for step in steps])
    for label, step in zip(axes.get_xticklabels(), steps, strict=True):
        label.set_color(PALETTE["vermillion"] if step.fault else "black")
        label.set_fontweight("bold" if step.fault else "normal")
    axes.set_yticks(range(num_frames), [f"frame {frame}" for frame in range(num_frames)])
    axes.grid(False)
    axes.tick_params(length=0)


def pages_in_memory(residency: Mapping[str, np.ndarray], title: str | None = None) -> Figure:
    """Which pages were in memory at each access: one panel a run.

    Args:
        residency: caption -> bool [num_pages, num_accesses].

    Raises:
        CourseError: there is no run.
    """
    if not residency:
        raise CourseError("There is nothing to draw: pass at least one run.")
    figure = new_figure(width=8, height=1.9 * len(residency) + 0.7, title=title)
    panels = figure.subplots(len(residency), 1, squeeze=False, sharex=True)[:, 0]
    colours = ListedColormap(["white", PALETTE["blue"]])
    for axes, (caption, grid) in zip(panels, residency.items(), strict=True):
        axes.imshow(grid, aspect="auto", cmap=colours, vmin=0, vmax=1, interpolation="nearest", origin="lower")
        axes.set_title(caption)
        axes.set_ylabel("page")
        axes.set_yticks(range(0, len(grid), 4))
        axes.grid(False)
    panels[-1].set_xlabel("accesses so far (blue: the page is in memory)")
    return figure


def faults_by_frames(
    counts: Mapping[str, Mapping[int, int]], title: str = "Page faults", num_accesses: int | None = None
) -> Figure:
    """Faults against the number of frames, one line a policy.

    Args:
        counts: policy -> frames -> faults.
        title: above the axes.
        num_accesses: if given, a second axis shows faults as a share of them.
    """
    figure = new_figure(width=8, height=3.8)
    axes = figure.subplots()
    for index, (policy, line) in enumerate(counts.items()):
        # Lines often lie on each other: earlier ones are wider and have larger markers, so that they show.
        beneath = len(counts) - 1 - index
        axes.plot(
            list(line),
            list(line.values()),
            marker=MARKERS[index % len(MARKERS)],
            color=CYCLE[index % len(CYCLE)],
            label=policy,
            linewidth=1.8 + 1.6 * beneath,
            markersize=6 + 2.5 * beneath,
        )
    axes.set_xlabel("frames of physical memory")
    axes.set_ylabel("page faults")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(title)
    if num_accesses:
        per_cent = 100 / num_accesses
        share = axes.secondary_yaxis("right", functions=(scaled_by(per_cent), scaled_by(1 / per_cent)))
        share.set_ylabel("% of accesses")
        axes.legend()
    else:
        legend_beside(axes)
    return figure


def scaled_by(factor: float) -> Callable[[Any], Any]:
    return lambda value: value * factor
