"""Pictures of a server under load: latencies with percentiles, load curves, and what each knob does to goodput."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from pagedlab.errors import CourseError
from pagedlab.visualize.style import CYCLE, PALETTE, legend_below, new_figure

MARKERS = {50: "o", 90: "s", 99: "^"}
"""Percentile -> marker: ranks are told apart without colour."""
OTHER_MARKER = "D"


@dataclass(frozen=True, slots=True)
class LoadPoint:
    """What users saw at one load.

    Attributes:
        load: requests offered a second, or clients
        ttft, tpot: percentile -> seconds
        completed, good: requests a second that were answered, and that kept the objectives
    """

    load: float
    ttft: Mapping[int, float]
    tpot: Mapping[int, float]
    completed: float
    good: float


@dataclass(frozen=True, slots=True)
class KnobPoint:
    """Shares of the requests, 0 to 1, with a knob at one value.

    Attributes:
        value: of the knob
        ttft_kept, tpot_kept, good: requests that kept the one objective, the other, and both
    """

    value: float
    ttft_kept: float
    tpot_kept: float
    good: float


def latencies(
    samples: Mapping[str, Sequence[float]],
    percentiles: Mapping[str, Mapping[int, float]],
    quantity: str = "time to first token",
    title: str | None = None,
) -> Figure:
    """Sorted latencies as steps: at each time, the share of requests that were at least as fast.

    Args:
        samples: group -> seconds of each request.
        percentiles: group -> percentile -> seconds; marked on the steps.

    Raises:
        CourseError: there is nothing to draw.
    """
    if not samples or not all(len(values) for values in samples.values()):
        raise CourseError("Latencies need one group or more, each with one value or more.")
    if not all(value > 0 for values in samples.values() for value in values):
        raise CourseError("Latencies stand on a logarithmic axis: give only seconds above 0.")
    figure = new_figure(9, 4.2, title)
    axes = figure.subplots()
    for index, (name, values) in enumerate(samples.items()):
        colour = CYCLE[index % len(CYCLE)]
        times = 1e3 * np.sort(np.asarray(values, float))
        shares = 100 * np.arange(1, len(times) + 1) / len(times)
        axes.step([times[0], *times], [0, *shares], where="post", color=colour, label=name)
        for rank, seconds in percentiles.get(name, {}).items():
            axes.plot(1e3 * seconds, rank, MARKERS.get(rank, OTHER_MARKER), color=colour, markeredgecolor="white")
    for rank in sorted({rank for marks in percentiles.values() for rank in marks}):
        axes.axhline(rank, color=PALETTE["grey"], linewidth=0.8, linestyle=":")
        axes.annotate(f"p{rank}", (1.005, rank), xycoords=("axes fraction", "data"), fontsize=9, va="center")
    axes.set_xscale("log")
    plain_numbers(axes)
    axes.set(xlabel=f"{quantity} (ms)", ylabel="requests at least as fast (%)", ylim=(0, 104))
    legend_below(axes, columns=5)
    return figure


def load_curve(
    points: Sequence[LoadPoint],
    xlabel: str = "offered load (requests/s)",
    objectives: tuple[float, float] | None = None,
    title: str | None = None,
    simulated: Sequence[LoadPoint] = (),
) -> Figure:
    """Three panels over the load: time to first token, time per token, and requests a second answered and good.

    Args:
        objectives: limits of TTFT and TPOT, seconds: drawn as lines.
        simulated: a second series, drawn thin, dashed and without markers.

    Raises:
        CourseError: there are no points.
    """
    if not points:
        raise CourseError("A load curve needs one LoadPoint or more.")
    figure = new_figure(11, 4.3, title)
    first, each, rate = figure.subplots(1, 3)
    limits = objectives or (None, None)
    latency_panel(first, points, simulated, "ttft", limits[0])
    latency_panel(each, points, simulated, "tpot", limits[1])
    first.set_title("time to first token (ms)", fontsize=11)
    each.set_title("time per token after it (ms)", fontsize=11)
    for name, colour, marker in (("completed", PALETTE["grey"], "o"), ("good", PALETTE["green"], "D")):
        axes_values = [getattr(point, name) for point in points]
        rate.plot([point.load for point in points], axes_values, marker=marker, color=colour, label=name)
        if simulated:
            values = [getattr(point, name) for point in simulated]
            rate.plot([point.load for point in simulated], values, color=colour, linewidth=1, linestyle="--")
    rate.set_title("requests a second", fontsize=11)
    rate.set_ylim(bottom=0)
    for axes in (first, each, rate):
        axes.set_xlabel(xlabel)
        axes.set_xlim(left=0)
    handles, labels = first.get_legend_handles_labels()
    more, names = rate.get_legend_handles_labels()
    figure.legend(handles + more, labels + names, loc="outside lower center", ncols=6)
    return figure


def latency_panel(
    axes: Axes, points: Sequence[LoadPoint], simulated: Sequence[LoadPoint], name: str, limit: float | None
) -> None:
    nothing = float("nan")  # where no request had such a time, the line has a gap
    for index, rank in enumerate(sorted({rank for point in points for rank in getattr(point, name)})):
        colour = CYCLE[index % len(CYCLE)]
        marker = MARKERS.get(rank, OTHER_MARKER)
        values = [1e3 * getattr(point, name).get(rank, nothing) for point in points]
        loads = [point.load for point in points]
        axes.plot(loads, values, marker=marker, color=colour, label=f"p{rank}")
        if simulated:
            values = [1e3 * getattr(point, name).get(rank, nothing) for point in simulated]
            axes.plot([point.load for point in simulated], values, color=colour, linewidth=1, linestyle="--")
    if limit is not None:
        axes.axhline(1e3 * limit, color=PALETTE["black"], linewidth=1.2, linestyle="-.", label="objective")
    axes.set_yscale("log")
    plain_numbers(axes, "y")


def knobs(
    panels: Mapping[str, Sequence[KnobPoint]], chosen: Mapping[str, float] | None = None, title: str | None = None
) -> Figure:
    """A panel for each knob: the share of requests that kept each objective, and both.

    Args:
        chosen: knob -> the value that the other panels hold it at; a line marks it.

    Raises:
        CourseError: there is nothing to draw.
    """
    if not panels or not all(panels.values()):
        raise CourseError("Give one knob or more, each with one KnobPoint or more.")
    if not all(point.value > 0 for points in panels.values() for point in points):
        raise CourseError("A knob's values stand on a logarithmic axis: give only values above 0.")
    figure = new_figure(11, 4.0, title)
    columns = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    lines = (
        ("ttft_kept", "TTFT kept", "blue", "--", "s"),
        ("tpot_kept", "TPOT kept", "orange", ":", "^"),
        ("good", "both: good", "green", "-", "D"),
    )
    for axes, (name, points) in zip(columns, panels.items(), strict=True):
        values = [point.value for point in points]
        for attribute, label, colour, line, marker in lines:
            shares = [100 * getattr(point, attribute) for point in points]
            axes.plot(values, shares, line, marker=marker, color=PALETTE[colour], label=label)
        if chosen is not None and name in chosen:
            axes.axvline(chosen[name], color=PALETTE["black"], linewidth=1, linestyle="-.", label="held at")
        axes.set_xscale("log", base=2)
        axes.set_xticks(values, [f"{value:g}" for value in values], rotation=45 if len(values) > 6 else 0)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(name)
        axes.set_ylim(-3, 104)
    columns[0].set_ylabel("requests (%)")
    legend_below(columns[0], columns=4)
    return figure


def plain_numbers(axes: Axes, which: str = "x") -> None:
    """20, 50, 100 in place of powers of ten, on a logarithmic axis."""
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    digits = (1, 2, 5) if high / max(low, 1e-12) < 300 else (1,)
    ticks = [digit * 10.0**power for power in range(-3, 8) for digit in digits]
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks([tick for tick in ticks if low <= tick <= high])
    axis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:,.10g}"))
    axis.set_minor_locator(NullLocator())
