"""Rooflines, and time against rows: where the bandwidth's slope meets the arithmetic's ceiling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from pagedlab.errors import CourseError
from pagedlab.simulate.devices import Device
from pagedlab.visualize.style import PALETTE, legend_below, new_figure

MARKERS = "osD^vPX"
ROOFS = ("-", "--", "-.", ":")


@dataclass(frozen=True, slots=True)
class Point:
    """One piece of work on a roofline.

    Attributes:
        label: of the point itself, short; empty for none
        intensity: FLOP for each byte
        flops_per_second: as measured; None puts the point on the roof of the first device
        kind: points of one kind share colour, marker and a line of the legend
    """

    label: str
    intensity: float
    flops_per_second: float | None = None
    kind: str = ""


def roofline(devices: Sequence[Device], points: Sequence[Point], title: str = "Roofline") -> Figure:
    """Attainable FLOP/s against FLOP per byte, both axes logarithmic: a roof a device, its ridge marked, the points."""
    if not devices or not all(point.intensity > 0 for point in points):
        raise CourseError("A roofline needs one device or more, and points of an intensity above 0.")
    figure = new_figure(8.5, 5)
    axes = figure.subplots()
    ridges = [device.ridge for device in devices]
    intensities = [point.intensity for point in points]
    low, high = min(intensities + ridges) / 3, max(intensities + ridges) * 6
    roofs = [draw_roof(axes, one, low, high, ROOFS[index % len(ROOFS)]) for index, one in enumerate(devices)]
    draw_points(axes, points, devices[0])
    axes.set(xscale="log", yscale="log", xlim=(low, high), title=title)
    axes.set_xlabel("arithmetic intensity (FLOP per byte moved)")
    axes.set_ylabel("attainable FLOP/s")
    axes.set_ylim(min(roofs) / 1.5, max(device.flops_per_second for device in devices) * 3)
    legend_below(axes, columns=3)
    return figure


def draw_roof(axes: Axes, device: Device, low: float, high: float, style: str) -> float:
    """One device's roof; returns its lowest point in view."""
    xs = [low, device.ridge, high]
    ys = [device.attainable(x) for x in xs]
    label = f"{device.name}: ridge at {device.ridge:.0f} FLOP/byte"
    axes.plot(xs, ys, style, color=PALETTE["black"], linewidth=1.6, label=label, zorder=2)
    axes.plot(device.ridge, device.flops_per_second, "o", color=PALETTE["black"], markersize=5, zorder=3)
    return ys[0]


def draw_points(axes: Axes, points: Sequence[Point], device: Device) -> None:
    colours = [PALETTE[name] for name in ("blue", "orange", "green", "vermillion", "purple", "sky")]
    for index, kind in enumerate(dict.fromkeys(point.kind for point in points)):
        chosen = [point for point in points if point.kind == kind]
        heights = [p.flops_per_second or device.attainable(p.intensity) for p in chosen]
        style: dict[str, Any] = {"color": colours[index % len(colours)], "marker": MARKERS[index % len(MARKERS)]}
        xs = [point.intensity for point in chosen]
        axes.plot(xs, heights, linestyle="none", markersize=9, markeredgecolor="white", label=kind, zorder=4, **style)
        below = index % 2 == 0  # labels of neighbouring kinds stand on different sides of the roof
        for point, height in zip(chosen, heights, strict=True):
            axes.annotate(
                point.label,
                (point.intensity, height),
                xytext=(6, -13) if below else (-6, 8),
                textcoords="offset points",
                ha="left" if below else "right",
                fontsize=9,
                color="#333333",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
            )


def time_against_rows(
    rows: Sequence[int],
    seconds: Sequence[float],
    read_seconds: float,
    seconds_per_row: float,
    title: str = "One linear layer",
) -> Figure:
    """Measured time of a layer for each number of rows, over the two floors that meet at the ridge.

    A third line is what the first measurement would come to if every row read the weights for itself.

    Args:
        rows, seconds: as measured.
        read_seconds: to read the weights once.
        seconds_per_row: of a row's arithmetic at the device's best rate.
    """
    if not len(rows) or not min(*rows, *seconds, read_seconds, seconds_per_row) > 0:
        raise CourseError(
            "Time against rows needs one measurement or more, and only numbers above 0: its axes are log."
        )
    figure = new_figure(8, 4.4)
    axes = figure.subplots()
    xs = np.geomspace(min(rows), max(rows), 200)
    ridge = read_seconds / seconds_per_row
    axes.plot(xs, xs * seconds_per_row * 1e3, ":", color=PALETTE["vermillion"], label="arithmetic of the rows")
    axes.axhline(read_seconds * 1e3, linestyle="--", color=PALETTE["orange"], label="reading the weights once")
    one_by_one = xs * seconds[0] / rows[0] * 1e3
    axes.plot(xs, one_by_one, "-.", color=PALETTE["grey"], linewidth=1.4, label="one row at a time")
    axes.plot(rows, np.array(seconds) * 1e3, "o-", color=PALETTE["blue"], label="measured", zorder=4)
    axes.axvline(ridge, color=PALETTE["grey"], linewidth=1.2)
    place: dict[str, Any] = {"xytext": (5, 4), "textcoords": "offset points", "xycoords": ("data", "axes fraction")}
    axes.annotate(f"ridge: {ridge:.0f} rows", (ridge, 0.0), fontsize=10, color="#555555", **place)
    axes.set(xscale="log", yscale="log", xlabel="rows in one multiplication", ylabel="time (ms)", title=title)
    axes.set_xticks(list(rows), [str(row) for row in rows])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylim(bottom=read_seconds * 1e3 / 3)
    legend_below(axes, columns=4)
    return figure


def memory_bars(bars: Mapping[str, Mapping[str, float]], limit: float | None = None, title: str = "Memory") -> Figure:
    """A stacked horizontal bar for each use of memory.

    Args:
        bars: name of the bar -> part -> bytes.
        limit: bytes that the device has, drawn as a line.
    """
    figure = new_figure(8.5, 1.6 + 0.62 * len(bars))
    axes = figure.subplots()
    parts = list(dict.fromkeys(part for bar in bars.values() for part in bar))
    colours = cycle(PALETTE[n] for n in ("blue", "sky", "orange", "green", "purple", "vermillion", "yellow", "black"))
    left = np.zeros(len(bars))
    for part, colour in zip(parts, colours, strict=False):
        widths = np.array([bar.get(part, 0) for bar in bars.values()]) / 1e9
        axes.barh(list(bars), widths, left=left, color=colour, label=part, edgecolor="white")
        left += widths
    for index, total in enumerate(left):
        axes.annotate(f"{total:,.1f} GB", (total, index), xytext=(5, 0), textcoords="offset points", va="center")
    if limit is not None:
        axes.axvline(limit / 1e9, color=PALETTE["black"], linestyle="--", label=f"one card: {limit / 1e9:.0f} GB")
    axes.set(xlabel="memory (GB, 10⁹ bytes)", title=title)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.grid(False, axis="y")
    legend_below(axes, columns=len(parts) + 1)
    return figure
