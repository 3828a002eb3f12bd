"""Streams of tokens over time, one tick a token: where a stream stands still, its ticks leave a gap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from pagedlab.errors import CourseError
from pagedlab.visualize.style import PALETTE, new_figure


@dataclass(frozen=True, slots=True)
class StreamRun:
    """What was watched on one engine. All times are seconds on one clock.

    Attributes:
        title: over the panel
        tokens: stream -> when each of its tokens came
        arrival: when the long prompt came
        chunks: start and end of each step that computed a part of it
        name: of the row with those chunks
    """

    title: str
    tokens: Mapping[str, Sequence[float]]
    arrival: float
    chunks: Sequence[tuple[float, float]] = field(default_factory=tuple)
    name: str = "long prompt"

    def worst_gap(self) -> tuple[str, float, float]:
        """Stream, start and end of the longest time without a token.

        Raises:
            CourseError: no stream has two tokens.
        """
        gaps = [(name, *pair) for name, times in self.tokens.items() for pair in pairwise(times)]
        if not gaps:
            raise CourseError("A gap lies between two tokens: record streams of two tokens or more.")
        return max(gaps, key=lambda gap: gap[2] - gap[1])


def token_streams(runs: Sequence[StreamRun], title: str | None = None) -> Figure:
    """A panel a run, one below the other on one axis of time that is 0 when the long prompt arrives.

    Each row is a stream and each tick a token of it. Bars are the chunks of the long prompt, its shades alternating so
    that neighbours can be told apart. The longest gap of each panel is measured out.

    Raises:
        CourseError: there is no run.
    """
    if not runs:
        raise CourseError("There is nothing to draw: pass at least one StreamRun.")
    rows = max(len(run.tokens) for run in runs) + 1
    figure = new_figure(9.5, min(20, 1.0 + len(runs) * (0.9 + 0.2 * rows)), title)
    panels = figure.subplots(len(runs), 1, sharex=True, squeeze=False)[:, 0]
    for axes, run in zip(panels, runs, strict=True):
        draw_run(axes, run)
    panels[-1].set_xlabel("time since the long prompt arrived (s)")
    handles = [
        Line2D([], [], color=PALETTE["blue"], marker="|", linestyle="none", markersize=10, label="a token"),
        Patch(color=PALETTE["orange"], label="a chunk of the long prompt"),
        Patch(color=PALETTE["vermillion"], alpha=0.25, label="longest gap"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def draw_run(axes: Axes, run: StreamRun) -> None:
    names = [*run.tokens, run.name]
    times = [[time - run.arrival for time in stream] for stream in run.tokens.values()]
    axes.eventplot(
        times, lineoffsets=range(len(times)), linelengths=0.75, linewidths=1.6, colors=PALETTE["blue"], zorder=3
    )
    for index, (start, end) in enumerate(run.chunks):
        axes.barh(
            len(times),
            end - start,
            left=start - run.arrival,
            height=0.8,
            color=PALETTE["orange"],
            alpha=1.0 if index % 2 == 0 else 0.55,
        )
    stream, start, end = run.worst_gap()
    row = list(run.tokens).index(stream)
    axes.axvspan(start - run.arrival, end - run.arrival, color=PALETTE["vermillion"], alpha=0.14, zorder=0)
    axes.annotate(
        f"{end - start:.2f} s",
        ((start + end) / 2 - run.arrival, (len(times) - 1) / 2 if end - start > 0 else row),
        ha="center",
        va="center",
        fontweight="bold",
        color=PALETTE["vermillion"],
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5},
        zorder=5,
    )
    axes.axvline(0, color=PALETTE["black"], linewidth=1, linestyle=":")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_title(run.title)
    axes.grid(False, axis="y")
