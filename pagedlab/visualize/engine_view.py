"""Engine view: a recorded run of the engine, one step as a picture of blocks and requests, or all steps at a glance."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from pagedlab.errors import CourseError
from pagedlab.model_authoring.recording import EngineRecording
from pagedlab.visualize.batching import DECODE, PREFILL
from pagedlab.visualize.block_map import MARGIN, MAX_NAMED, Fill, draw_grid, fill_of, mixed
from pagedlab.visualize.engine_frames import EVENT_KINDS, Frame, RequestRow, make_frames, shown_blocks
from pagedlab.visualize.style import PALETTE, new_figure
from pagedlab.visualize.widgets import explore

MAX_BLOCKS = 160
"""In the picture of one step."""
MAX_ROWS = 32
"""Sequences."""
MAX_EVENTS = 8
"""Sentences under the picture of a step; the rest is counted."""
NUMBERED_STEPS = 32
"""Up to so many steps the overview writes numbers into its cells."""
MARKS = {"hit": ("D", "green"), "copy": ("s", "sky"), "preempt": ("v", "vermillion"), "end": ("X", "black")}
"""Event -> marker and colour in the overview; an admission needs none."""
STATES = {"to come": "white", "waiting": PALETTE["light"], "idle": "#F3EBDD", "prompt": PREFILL, "decode": DECODE}
"""Cells of the overview. idle: it holds blocks and got nothing in this step."""


def engine_step(recording: EngineRecording, step: int = 1) -> Figure:
    """One step: the pool of blocks, how far each sequence is, and what happened.

    Args:
        step: 1 is the first; len(recording) + 1 shows what is left after the last.

    Raises:
        CourseError: there is no such step, or more blocks or sequences than can be seen.
    """
    frames = frames_of(recording)
    if not 1 <= step <= len(frames):
        raise CourseError(f"The recording has steps 1 to {len(recording)}, and {len(frames)} is after the last.")
    frame = frames[step - 1]
    ids = set(shown_blocks(frames, MAX_BLOCKS))
    blocks = [block for block in frame.blocks if block.block_id in ids]
    columns = 8 if len(blocks) <= 48 else 12
    sentences = _sentences(frame)
    num_rows = -(-len(blocks) // columns)
    height = max(num_rows * (0.68 if columns == 8 else 0.5), 0.36 * len(frame.rows) + 0.7)
    room = 0.23 * max(len(sentences), 2)  # so that the picture keeps its size from step to step, mostly
    figure = new_figure(11, min(1.5 + height + room, 20), _headline(recording, frame, step))
    grid, bars, below = _three_axes(figure, height, room)
    fills = _fills(recording)
    draw_grid(grid, blocks, recording.block_size, columns, fills, small=columns > 8)
    places = {block.block_id: divmod(index, columns) for index, block in enumerate(blocks)}
    _mark_written(grid, frame, places, recording.block_size)
    for copy in frame.record.copies:
        _arrow(grid, places[copy.source], places[copy.target])
    _progress(bars, frame.rows, fills, max(row.num_tokens for each in frames for row in each.rows))
    below.axis("off")
    below.text(
        0, 1, "\n".join(sentences), va="top", ha="left", fontsize=10, transform=below.transAxes, linespacing=1.35
    )
    _step_legend(figure, recording, fills)
    return figure


def engine_overview(recording: EngineRecording, title: str = "The engine, step by step") -> Figure:
    """All steps: who computed how much, with hits, copies, preemptions and ends; whose each block was; budget used.

    Raises:
        CourseError: more sequences than can be read.
    """
    frames = frames_of(recording)[:-1]
    names = _names(recording)
    ids = shown_blocks(frames, 100_000)
    figure = new_figure(11, 3.4 + 0.32 * len(names) + min(0.075 * len(ids), 3.0) + 0.4, title)
    heights = [0.32 * len(names) + 0.2, 0.9, max(1.2, min(0.075 * len(ids), 3.0))]
    cells, budget, pool = figure.subplots(3, 1, sharex=True, height_ratios=heights)
    fills = _fills(recording)
    _schedule_cells(cells, frames, names)
    for label, name in zip(cells.get_yticklabels(), names, strict=True):
        colour, _ = fills[name]
        # A hatch would hide the letters; names are legible on every owner's colour at this strength.
        label.set_bbox({"facecolor": mixed(colour, 0.55), "edgecolor": colour, "linewidth": 1.5, "pad": 1.5})
    _budget_bars(budget, frames, recording.token_budget)
    _block_image(pool, frames, ids, fills)
    pool.set_xlim(0.5, len(frames) + 0.5)
    pool.xaxis.set_major_locator(MaxNLocator(16, integer=True, min_n_ticks=1))
    pool.set_xlabel("step")
    _overview_legend(figure, frames)
    return figure


def explore_engine(recording: EngineRecording) -> None:
    """A slider over the steps of a recording; see pagedlab.visualize.explore."""

    def at(step: int = 1) -> Figure:
        return engine_step(recording, step)

    explore(at, step=(1, len(recording) + 1))


@lru_cache(maxsize=4)
def frames_of(recording: EngineRecording) -> list[Frame]:
    """Made once: a slider asks for them at each move."""
    return make_frames(recording)


def plain(text: str, width: int = 18) -> str:
    """A name that matplotlib draws as it is: one line, shortened, with no formula in it."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return (text if len(text) <= width else text[: width - 1] + "…").replace("$", r"\$")


def _names(recording: EngineRecording) -> list[str]:
    names = [info.request_id for info in recording.requests]
    if len(names) > MAX_ROWS:
        raise CourseError(f"{len(names)} sequences are more than can be read: record a run of {MAX_ROWS} at most.")
    return names


def _fills(recording: EngineRecording) -> dict[str, Fill]:
    return {name: fill_of(index) for index, name in enumerate(_names(recording))}


# ---- one step ----------------------------------------------------------------------------------------------------


def _three_axes(figure: Figure, height: float, below: float) -> tuple[Axes, Axes, Axes]:
    layout = figure.add_gridspec(2, 2, width_ratios=[1.25, 1], height_ratios=[height, max(below, 0.05)])
    return figure.add_subplot(layout[0, 0]), figure.add_subplot(layout[0, 1]), figure.add_subplot(layout[1, :])


def _headline(recording: EngineRecording, frame: Frame, step: int) -> str:
    free = f"{frame.num_free} of {recording.num_usable_blocks} blocks free"
    if frame.is_after:
        return f"After the last step: {free}"
    tokens = f"{frame.record.num_tokens} of {recording.token_budget} tokens"
    count = len(frame.record.computed)
    return f"Step {step} of {len(recording)}: {tokens} in {count} sequence{'s' * (count != 1)}, {free}"


def _sentences(frame: Frame) -> list[str]:
    lines = []
    for event in frame.events[:MAX_EVENTS]:
        lines += textwrap.wrap(f"{plain(event.request_id)} {event.text}", 125)
    if len(frame.events) > MAX_EVENTS:
        lines.append(f"and {len(frame.events) - MAX_EVENTS} events more.")
    return lines


def _mark_written(axes: Axes, frame: Frame, places: dict[int, tuple[int, int]], block_size: int) -> None:
    width = 1 - 2 * MARGIN
    for block_id, (first, last) in frame.written.items():
        row, column = places[block_id]
        left = column + MARGIN + width * first / block_size
        size = width * (last - first) / block_size
        axes.add_patch(Rectangle((left, row + 0.89), size, 0.075, facecolor="black", edgecolor="none", gid="written"))


def _arrow(axes: Axes, source: tuple[int, int], target: tuple[int, int]) -> None:
    """From block to block, for a copy."""
    (row, column), (to_row, to_column) = source, target
    ends = (column + 0.5, row + 0.6), (to_column + 0.5, to_row + 0.6)
    style: Any = {"arrowstyle": "-|>", "mutation_scale": 14, "linewidth": 1.8, "color": PALETTE["black"]}
    axes.add_patch(FancyArrowPatch(*ends, connectionstyle="arc3,rad=-0.25", shrinkA=2, shrinkB=2, zorder=5, **style))


def _progress(axes: Axes, rows: Sequence[RequestRow], fills: dict[str, Fill], longest: int) -> None:
    """Tokens of each sequence: hit, computed before, computed now, still to compute; the axis ends beyond `longest`."""
    for place, row in enumerate(rows):
        colour, hatch = fills[row.request_id]
        label = {"to come": "", "ended": f"ended ({row.reason})"}.get(row.status, row.status)
        if row.num_tokens:
            parts = (
                (0, row.num_tokens, "white", ""),
                (0, row.start, mixed(colour, 0.4), ""),
                (0, min(row.num_cached, row.start), mixed(colour, 0.4), "||||"),
                (row.start, row.end, colour, hatch),
            )
            for left, right, face, pattern in parts:
                if right > left:
                    bar = axes.barh(place, right - left, left=left, height=0.62, color=face, edgecolor="black", lw=0.7)
                    bar[0].set_hatch(pattern)
            label = f"+{row.end - row.start}" if row.end > row.start else label if row.status != "running" else "idle"
        axes.text(
            row.num_tokens + 0.015 * longest,
            place,
            label,
            va="center",
            fontsize=10,
            fontweight="bold" if row.end > row.start else "normal",
            color="black" if row.status == "running" else "#5A5A5A",
        )
    axes.set_yticks(range(len(rows)), [plain(row.request_id) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, longest * 1.32)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("tokens of the sequence")
    axes.grid(False, axis="y")


def _step_legend(figure: Figure, recording: EngineRecording, fills: dict[str, Fill]) -> None:
    handles = [
        Patch(facecolor=colour, hatch=hatch, edgecolor="black", label=plain(name))
        for name, (colour, hatch) in list(fills.items())[:MAX_NAMED]
    ]
    if len(fills) > MAX_NAMED:
        handles.append(Patch(facecolor="none", edgecolor="none", label=f"and {len(fills) - MAX_NAMED} more"))
    handles += [
        Patch(facecolor=PALETTE["light"], edgecolor="black", label="free, can be hit (#)"),
        Patch(facecolor="white", edgecolor="black", label="free, or not computed"),
        Patch(facecolor="black", label="written in this step"),
        Patch(facecolor="#CCCCCC", hatch="||||", edgecolor="black", label="from the prefix cache"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6))


# ---- all steps ---------------------------------------------------------------------------------------------------


def _schedule_cells(axes: Axes, frames: Sequence[Frame], names: Sequence[str]) -> None:
    codes = {name: index for index, name in enumerate(STATES)}
    table = np.array([[codes[_state(row)] for row in frame.rows] for frame in frames]).T
    edges = np.arange(len(frames) + 1) + 0.5, np.arange(len(names) + 1) - 0.5
    lines: Any = {"edgecolors": "white", "linewidth": 0.6} if len(frames) <= 120 else {}
    colours = ListedColormap(list(STATES.values()))
    axes.pcolormesh(*edges, table, cmap=colours, vmin=-0.5, vmax=len(STATES) - 0.5, **lines)
    if len(frames) <= NUMBERED_STEPS:
        for step, frame in enumerate(frames, start=1):
            for place, row in enumerate(frame.rows):
                if row.kind:
                    colour = "white" if row.kind == "decode" else "black"
                    axes.text(step, place, str(row.end - row.start), ha="center", va="center", fontsize=9, color=colour)
    for kind, (marker, colour) in MARKS.items():
        points = [
            (step, names.index(event.request_id))
            for step, frame in enumerate(frames, start=1)
            for event in frame.events
            if event.kind == kind
        ]
        if points:
            # Ends on the right edge of their step, all else on the left: a cell's number stays legible.
            x, y = np.array(points, float).T
            x += 0.34 if kind == "end" else -0.34
            look: Any = {"color": PALETTE[colour], "edgecolor": "white", "linewidth": 0.6, "zorder": 4}
            axes.scatter(x, y - 0.24, marker=marker, s=40, **look)
    axes.set_yticks(range(len(names)), [plain(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_title("tokens computed", fontsize=11)
    axes.grid(False)


def _state(row: RequestRow) -> str:
    if row.kind or row.status not in ("running", "swapped"):
        return row.kind or row.status.replace("ended", "to come")
    return "idle" if row.status == "running" else "waiting"


def _budget_bars(axes: Axes, frames: Sequence[Frame], budget: int) -> None:
    steps = np.arange(1, len(frames) + 1)
    bottom = np.zeros(len(frames))
    for kind, colour in (("decode", DECODE), ("prompt", PREFILL)):
        tokens = np.array([sum(row.end - row.start for row in frame.rows if row.kind == kind) for frame in frames])
        axes.bar(steps, tokens, bottom=bottom, width=0.85, color=colour)
        bottom += tokens
    axes.axhline(budget, color="black", linewidth=1, linestyle="--")
    axes.set_ylim(0, budget * 1.12)
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.set_title(f"tokens of the step (budget {budget})", fontsize=11)
    axes.grid(False, axis="x")


def _block_image(axes: Axes, frames: Sequence[Frame], ids: Sequence[int], fills: dict[str, Fill]) -> None:
    """A column a step, a line a block, in the colour of its holder; black where several hold it."""
    place = {block_id: index for index, block_id in enumerate(ids)}
    image = np.ones((len(ids), len(frames), 3))
    for column, frame in enumerate(frames):
        for block in frame.blocks:
            if block.block_id not in place:
                continue
            if len(block.owners) > 1:
                colour = PALETTE["black"]
            elif block.owners:
                colour = fills[block.owners[0]][0]
            else:
                colour = PALETTE["grey"] if block.is_null else PALETTE["light"] if block.is_cached else "#FFFFFF"
            image[place[block.block_id], column] = to_rgb(colour)
    extent = (0.5, len(frames) + 0.5, len(ids) - 0.5, -0.5)
    axes.imshow(image, aspect="auto", interpolation="nearest", extent=extent)
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    if list(ids) != list(range(len(ids))):
        axes.set_yticks([])
    axes.set_ylabel("block")
    axes.set_title("whose each block is (in the colours of the names)", fontsize=11)
    axes.grid(False)
    axes.set_ylim(len(ids) - 0.5, -0.5)


def _overview_legend(figure: Figure, frames: Sequence[Frame]) -> None:
    names = {"prompt": "prompt or chunk", "decode": "decode", "waiting": "waits", "idle": "runs, got no token"}
    present = {_state(row) for frame in frames for row in frame.rows}
    handles: list[Patch | Line2D] = [Patch(color=STATES[k], label=v) for k, v in names.items() if k in present]
    happened = {event.kind for frame in frames for event in frame.events}
    for kind, (marker, colour) in MARKS.items():
        if kind in happened:
            look: Any = {"marker": marker, "linestyle": "none", "markersize": 7, "color": PALETTE[colour]}
            handles.append(Line2D([], [], label=EVENT_KINDS[kind], **look))
    handles += [
        Patch(color=PALETTE["black"], label="block shared"),
        Patch(facecolor=PALETTE["light"], edgecolor="black", label="block free, can be hit"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6))
