"""Pictures of batches: cells of a padded rectangle, who sits in which seat, tokens of each step, methods compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pagedlab.errors import CourseError
from pagedlab.simulate.batching_run import BatchingRun, Summary
from pagedlab.visualize.style import CYCLE, PALETTE, legend_below, legend_beside, new_figure
from pagedlab.visualize.timeline import Span, timeline

CELLS = {
    "padding before the prompt": PALETTE["grey"],
    "prompt": PALETTE["orange"],
    "answer": PALETTE["blue"],
    "computed after its answer was complete": PALETTE["light"],
}
PREFILL, DECODE = PALETTE["orange"], PALETTE["blue"]


def padded_cells(batch: Mapping[str, tuple[int, int]], title: str | None = None) -> Figure:
    """The rectangle of one padded batch: a row for each request, a column for each position, coloured by its use.

    Args:
        batch: name -> (prompt tokens, output tokens). The last output token is never read on: it has no cell.
    """
    if not batch:
        raise CourseError("A batch has one request or more.")
    width = max(prompt for prompt, _ in batch.values())
    longest = max(output for _, output in batch.values()) - 1
    table = np.full((len(batch), width + longest), 3)
    for row, (prompt, output) in zip(table, batch.values(), strict=True):
        row[: width - prompt] = 0
        row[width - prompt : width] = 1
        row[width : width + output - 1] = 2
    figure = new_figure(10, 1.7 + 0.36 * len(batch), title)
    axes = figure.subplots()
    edges = np.arange(table.shape[1] + 1) - 0.5, np.arange(len(batch) + 1) - 0.5
    lines: Any = {"edgecolors": "white", "linewidth": 0.5} if table.shape[1] <= 150 else {}
    axes.pcolormesh(*edges, table, cmap=ListedColormap(list(CELLS.values())), vmin=-0.5, vmax=3.5, **lines)
    axes.invert_yaxis()
    axes.set_yticks(range(len(batch)), list(batch))
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_xlabel("position in the padded row (tokens)")
    axes.grid(False)
    if longest:
        axes.axvline(width - 0.5, color=PALETTE["black"], linewidth=1.4)
    present = set(table.flat)
    handles = [Patch(color=colour, label=name) for code, (name, colour) in enumerate(CELLS.items()) if code in present]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def padding_surface(lengths: Sequence[int], sizes: Sequence[int], pads: np.ndarray, title: str | None = None) -> Figure:
    """Pads over prompt length and batch size: as a map, and as one line for each of a few batch sizes.

    Args:
        pads: [len(sizes), len(lengths)] cells of padding.
    """
    if pads.shape != (len(sizes), len(lengths)) or min(pads.shape) < 2:
        raise CourseError(f"pads must be [batch sizes, lengths], two of each or more, got {list(pads.shape)}.")
    figure = new_figure(11, 4, title)
    surface, lines = figure.subplots(1, 2)
    image = surface.pcolormesh(lengths, sizes, pads, shading="nearest")
    if pads.max() > pads.min():  # a flat map has no contours
        levels = pads.max() * np.arange(1, 5) / 5
        contours = surface.contour(lengths, sizes, pads, colors="white", linewidths=1.2, levels=levels)
        surface.clabel(contours, fmt=lambda level: f"{level:,.0f}", fontsize=9)
    figure.colorbar(image, ax=surface, label="pads (cells)", format=FuncFormatter(lambda value, _: f"{value:,.0f}"))
    surface.set(xlabel="length n of the new prompt (tokens)", ylabel="rows B of the batch")
    surface.set_title("pads of a batch", fontsize=11)
    surface.grid(False)
    for index, place in enumerate(np.linspace(1, len(sizes) - 1, min(4, len(sizes) - 1)).astype(int)):
        lines.plot(lengths, pads[place], color=CYCLE[index], label=f"B = {sizes[place]}")
    lines.set(xlabel="length n of the new prompt (tokens)", ylabel="pads (cells)")
    lines.set_title("cuts through the map: straight lines", fontsize=11)
    lines.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    legend_beside(lines)
    return figure


# ---- seats -------------------------------------------------------------------------------------------------------


def seat_spans(run: BatchingRun, until: float = float("inf")) -> list[Span]:
    """A run as the seats of its batch: who sat where, from the first step to the release of the seat.

    A request takes the lowest seat that is free when it starts. "padding": its answer is complete, its row goes on.

    Args:
        until: leave out requests that start later, seconds.
    """
    free: list[int] = []
    occupied: list[tuple[float, int]] = []
    spans: list[tuple[int, Span]] = []
    count = 0
    for index in np.argsort(run.started, kind="stable").tolist():
        start, first, end = float(run.started[index]), float(run.first_token[index]), float(run.finished[index])
        release = float(run.released[index])
        if start > until:
            break
        while occupied and occupied[0][0] <= start:
            heappush(free, heappop(occupied)[1])
        seat = heappop(free) if free else count
        count = max(count, seat + 1)
        heappush(occupied, (release, seat))
        row = f"seat {seat + 1}"
        spans.append((seat, Span(row, start, first, "prefill")))
        if end > first:
            spans.append((seat, Span(row, first, end, "decode", f"{index + 1}")))
        if release > end:
            spans.append((seat, Span(row, end, release, "padding")))
    return [span for _, span in sorted(spans, key=lambda pair: pair[0])]


def seats(run: BatchingRun, title: str | None = None, until: float = float("inf")) -> Figure:
    """Gantt chart of a batch's seats; numbers are requests in order of arrival."""
    return timeline(seat_spans(run, until), title or f"Seats under {run.method} batching")


# ---- steps -------------------------------------------------------------------------------------------------------


def step_table(steps: Sequence[Mapping[str, int]], title: str | None = None, budget: int | None = None) -> Figure:
    """Requests by steps, in each cell the tokens computed: more than one is a prompt or a chunk, one is a decode.

    Args:
        steps: for each step request -> tokens; requests stand in order of appearance.
        budget: tokens that a step may have; written under the totals.
    """
    names = list(dict.fromkeys(name for step in steps for name in step))
    if not names or len(steps) > 40:
        raise CourseError("A step table shows 1 to 40 steps with a request in one of them.")
    figure = new_figure(min(11, 2.6 + 0.55 * len(steps)), 1.9 + 0.4 * len(names), title)
    axes = figure.subplots()
    table = np.array([[step.get(name, 0) for step in steps] for name in names])
    axes.pcolormesh(
        np.arange(len(steps) + 1) - 0.5,
        np.arange(len(names) + 1) - 0.5,
        np.minimum(table, 2),
        cmap=ListedColormap(["white", DECODE, PREFILL]),
        vmin=0,
        vmax=2,
        edgecolors=PALETTE["light"],
        linewidth=0.6,
    )
    for (row, column), tokens in np.ndenumerate(table):
        if tokens:
            colour = "white" if tokens == 1 else "black"
            axes.text(column, row, str(tokens), ha="center", va="center", color=colour, fontsize=9)
    axes.invert_yaxis()
    axes.set_yticks(range(len(names)), names)
    totals = table.sum(axis=0)
    axes.set_xticks(range(len(steps)), [f"{number}\nΣ {total}" for number, total in enumerate(totals, start=1)])
    axes.set_xlabel("step, and its tokens in all" + (f" (budget {budget})" if budget else ""))
    axes.grid(False)
    handles = [Patch(color=PREFILL, label="prompt or chunk"), Patch(color=DECODE, label="decode: one token")]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


# ---- methods compared --------------------------------------------------------------------------------------------

PANELS: tuple[tuple[str, Callable[[Summary], float]], ...] = (
    ("output tokens a second", lambda summary: summary.output_tokens_per_second),
    ("median TTFT (s)", lambda summary: summary.ttft_median),
    ("median TPOT (ms)", lambda summary: 1e3 * summary.tpot_median),
    ("rows nobody needed (%)", lambda summary: 100 * summary.waste),
    ("FLOPs utilisation (%)", lambda summary: 100 * summary.utilisation),
)


def _three_digits(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def compare_methods(summaries: Sequence[Summary], title: str | None = None) -> Figure:
    """One panel a measure, one bar a method."""
    if not summaries:
        raise CourseError("There is nothing to compare: pass one summary or more.")
    figure = new_figure(11, 3.4, title)
    for axes, (name, value) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        values = [value(summary) for summary in summaries]
        colours = [CYCLE[index % len(CYCLE)] for index in range(len(values))]
        bars = axes.bar([summary.method for summary in summaries], values, color=colours, width=0.7)
        axes.bar_label(bars, [_three_digits(number) for number in values], padding=2, fontsize=9)
        axes.set_title(name, fontsize=10)
        axes.set_ylim(0, max(*values, 1e-9) * 1.18)
        axes.set_yticks([])
        axes.grid(False)
        axes.set_xticks(range(len(values)), [summary.method for summary in summaries], rotation=40, ha="right")
    return figure


def saturation(
    curves: Mapping[str, Sequence[tuple[float, Summary]]],
    measured: Mapping[str, Sequence[tuple[float, Summary]]] | None = None,
    title: str | None = None,
) -> Figure:
    """Throughput and latency over the rate of arrivals: lines are simulated, large open markers were measured.

    Args:
        curves, measured: method -> (arrivals a second, summary) pairs.
    """
    if not curves:
        raise CourseError("There is no curve to draw: pass one method or more.")
    figure = new_figure(11, 4, title)
    rates, latencies = figure.subplots(1, 2)
    panels: tuple[tuple[Axes, str, str], ...] = (
        (rates, "output_tokens_per_second", "output tokens a second"),
        (latencies, "latency_median", "median latency of a request (s)"),
    )
    for axes, field, label in panels:
        for index, (name, points) in enumerate(curves.items()):
            colour = CYCLE[index % len(CYCLE)]
            axes.plot(*_series(points, field), marker=".", color=colour, label=f"{name}, simulated")
            taken = (measured or {}).get(name, ())
            if taken:
                style: Any = {"linestyle": "none", "marker": "o", "markersize": 11, "markerfacecolor": "none"}
                axes.plot(*_series(taken, field), color=colour, label=f"{name}, measured", markeredgewidth=2, **style)
        axes.set(xlabel="arrivals (requests a second)", ylabel=label)
    rates.set_ylim(bottom=0)
    latencies.set_yscale("log")
    latencies.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    legend_below(rates, columns=4)
    return figure


def _series(points: Sequence[tuple[float, Summary]], field: str) -> tuple[list[float], list[float]]:
    return [rate for rate, _ in points], [getattr(summary, field) for _, summary in points]
