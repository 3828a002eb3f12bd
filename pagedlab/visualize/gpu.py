"""Measurements on a GPU against their floors: kernels against a ceiling, decode steps against their least time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pagedlab.errors import CourseError
from pagedlab.visualize.style import CYCLE, PALETTE, legend_below, new_figure

BATCH_TICKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


def kernel_rates(
    rates: Mapping[str, Mapping[str, float]], limit: float, unit: str, title: str, limit_name: str = "measured ceiling"
) -> Figure:
    """Horizontal bars, a group a case and a bar an implementation, against the ceiling.

    Args:
        rates: case -> implementation -> rate, in `unit`; a case may lack some implementations.
        limit: the device's own rate, in the same unit.

    Raises:
        CourseError: there is nothing to draw, or the ceiling is not above 0.
    """
    names = list(dict.fromkeys(name for case in rates.values() for name in case))
    if not names or not limit > 0:
        raise CourseError("Kernel rates need one case with one implementation or more, and a ceiling above 0.")
    figure = new_figure(9.5, 1.5 + 0.19 * len(rates) * (len(names) + 0.6), title)
    axes = figure.subplots()
    grouped_bars(axes, rates, names)
    axes.axvline(limit, color=PALETTE["black"], linestyle="--", linewidth=1.5, label=f"{limit_name}: {limit:,.0f}")
    for row, case in enumerate(rates.values()):
        first = case.get(names[0])
        if first is not None:
            place = row - 0.4 + 0.4 / len(names)
            axes.text(
                first - 0.01 * limit, place, f"{first / limit:.0%}", ha="right", va="center", fontsize=8, color="w"
            )
    axes.set_xlabel(unit)
    axes.set_xlim(0, 1.08 * max(limit, *(rate for case in rates.values() for rate in case.values())))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    legend_below(axes, columns=5)
    return figure


def grouped_bars(axes: Axes, values: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> None:
    """A group of bars for each row from top to bottom; a colour a name."""
    height = 0.8 / len(names)
    for index, name in enumerate(names):
        rows = [row for row, case in enumerate(values.values()) if name in case]
        lengths = [case[name] for case in values.values() if name in case]
        places = np.array(rows) - 0.4 + (index + 0.5) * height
        axes.barh(places, lengths, 0.92 * height, color=CYCLE[index % len(CYCLE)], label=name)
    axes.set_yticks(range(len(values)), list(values))
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.grid(False, axis="y")


def decode_steps(
    steps: Mapping[str, Mapping[str, float]], floors: Mapping[str, float], title: str = "One decode step"
) -> Figure:
    """Milliseconds of a step, a group a model and batch and a bar a version; the black marks are the floors.

    Raises:
        CourseError: there is nothing to draw, or a group has no floor.
    """
    names = list(dict.fromkeys(name for group in steps.values() for name in group))
    if not names or set(steps) - set(floors):
        raise CourseError("Decode steps need one group or more, each with at least one version and its floor.")
    figure = new_figure(9.5, 1.5 + 0.22 * len(steps) * (len(names) + 0.6), title)
    axes = figure.subplots()
    grouped_bars(axes, steps, names)
    for row, group in enumerate(steps):
        label = "floor: bytes / bandwidth" if row == 0 else ""
        axes.vlines(floors[group], row - 0.44, row + 0.44, color=PALETTE["black"], linewidth=2.5, label=label)
        for index, name in enumerate(names):
            if name in steps[group]:
                place = row - 0.4 + (index + 0.5) * 0.8 / len(names)
                value = steps[group][name]
                axes.text(max(value, floors[group]), place, f"  {value:.3g}", va="center", fontsize=8)
    axes.set_xlabel("time of one step (ms)")
    axes.set_xlim(0, 1.1 * max(value for group in steps.values() for value in group.values()))
    legend_below(axes, columns=5)
    return figure


def roofline_share(
    measured: Mapping[str, Mapping[int, float]],
    curves: Mapping[str, Mapping[int, float]],
    title: str = "Share of the floor",
) -> Figure:
    """Floor / time (%) against the batch, the batch logarithmic: points as measured, lines as computed.

    Args:
        measured, curves: name -> batch -> share, 1 is the floor itself. Points and curve of a name share a colour.

    Raises:
        CourseError: there is nothing to draw.
    """
    names = list(dict.fromkeys([*curves, *measured]))
    if not names or not all([*measured.values(), *curves.values()]):
        raise CourseError("Shares of the floor need one series or more, and none of them empty.")
    figure = new_figure(8.5, 4.4)
    axes = figure.subplots()
    for index, name in enumerate(names):
        colour = CYCLE[index % len(CYCLE)]
        if name in curves:
            shares = [100 * share for share in curves[name].values()]
            axes.plot(list(curves[name]), shares, color=colour, label=f"{name}, computed")
        if name in measured:
            shares = [100 * share for share in measured[name].values()]
            marker = "osD^v"[index % 5]
            axes.plot(list(measured[name]), shares, marker, color=colour, markersize=8, label=f"{name}, measured")
    batches = [batch for series in [*measured.values(), *curves.values()] for batch in series]
    highest = 100 * max(share for series in [*measured.values(), *curves.values()] for share in series.values())
    axes.axhline(100, color=PALETTE["black"], linestyle="--", linewidth=1.2)
    axes.set_xscale("log", base=2)
    ticks = [tick for tick in BATCH_TICKS if min(batches) <= tick <= max(batches)]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel="sequences in the batch", ylabel="floor / time of a step (%)", title=title)
    axes.set_ylim(0, max(106, 1.04 * highest))  # above 100 % the floor was not one: that must be seen
    legend_below(axes, columns=2)
    return figure
