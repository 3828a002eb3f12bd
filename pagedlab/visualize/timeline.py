"""Timelines: spans of time in rows, as a Gantt chart. What was running when, and what waited."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pagedlab.errors import CourseError
from pagedlab.visualize.style import PALETTE, legend_below, new_figure

COLOURS = {
    "prefill": PALETTE["orange"],
    "decode": PALETTE["blue"],
    "waiting": PALETTE["light"],
    "preempted": PALETTE["purple"],
    "sample": PALETTE["green"],
    "padding": PALETTE["grey"],
}
"""Kinds that look the same in every chapter; others take the colours that are left, in order of appearance."""
OTHERS = ("sky", "vermillion", "yellow", "green", "purple", "grey", "black")

MAX_ROWS = 40
UNITS = ((1.0, 1.0, "s"), (1e-3, 1e3, "ms"), (0.0, 1e6, "µs"))
"""Longest time at least so many seconds -> factor and name of the unit."""


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took from `start` to `end`, in seconds on one clock.

    Attributes:
        row: the line of the chart that it stands in: a request, a layer, a worker
        kind: decides the colour: prefill, decode, waiting ...
        label: written into the bar where it fits
    """

    row: str
    start: float
    end: float
    kind: str
    label: str = ""

    def __post_init__(self) -> None:
        if not self.end >= self.start:
            raise CourseError(f"A span ends before it starts ({self.start} to {self.end} s): swap start and end.")


def timeline(spans: Sequence[Span], title: str = "Timeline", marks: Sequence[tuple[float, str]] = ()) -> Figure:
    """Bars in rows over time, the earliest start at 0; rows from top to bottom in order of appearance.

    Args:
        spans: in any order of time; those of one row must not overlap to be legible.
        marks: moments to name, (seconds on the spans' clock, text): a thin line through all rows.

    Raises:
        CourseError: there are no spans, or too many rows to read.
    """
    if not spans:
        raise CourseError("A timeline needs at least one Span.")
    rows = list(dict.fromkeys(span.row for span in spans))
    if len(rows) > MAX_ROWS:
        raise CourseError(f"{len(rows)} rows are more than can be read: pass the spans of {MAX_ROWS} rows at most.")
    origin = min(span.start for span in spans)
    length = max(span.end for span in spans) - origin
    factor, unit = next((factor, unit) for least, factor, unit in UNITS if length >= least)
    # Shortest that fits the rows, the title above and the axis, marks and legend below.
    figure = new_figure(9, 1.9 + 0.42 * len(rows))
    axes = figure.subplots()
    colours = colours_of(span.kind for span in spans)
    for kind, colour in colours.items():
        chosen = [span for span in spans if span.kind == kind]
        axes.barh(
            [rows.index(span.row) for span in chosen],
            [(span.end - span.start) * factor for span in chosen],
            left=[(span.start - origin) * factor for span in chosen],
            height=0.66,
            color=colour,
            edgecolor="white",
            linewidth=0.6,
            label=kind,
        )
    write_labels(axes, spans, rows, origin, factor, length, colours)
    for moment, name in marks:
        place = (moment - origin) * factor
        axes.axvline(place, color=PALETTE["black"], linewidth=1)
        at: dict[str, Any] = {"xytext": (4, 1), "textcoords": "offset points", "xycoords": ("data", "axes fraction")}
        axes.annotate(name, (place, 1.0), fontsize=9, va="bottom", annotation_clip=False, **at)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, length * factor or 1)
    axes.set_xlabel(f"time ({unit})")
    axes.set_title(title, pad=22 if marks else None)
    axes.grid(False, axis="y")
    legend_below(axes, columns=6)
    return figure


def colours_of(kinds: Iterable[str]) -> dict[str, str]:
    """A colour for each kind, in order of appearance."""
    kinds = list(dict.fromkeys(kinds))
    taken = {COLOURS[kind] for kind in kinds if kind in COLOURS}
    free = [PALETTE[name] for name in OTHERS if PALETTE[name] not in taken] or [PALETTE["black"]]
    unknown = [kind for kind in kinds if kind not in COLOURS]
    return {kind: COLOURS.get(kind) or free[unknown.index(kind) % len(free)] for kind in kinds}


def write_labels(
    axes: Axes,
    spans: Sequence[Span],
    rows: list[str],
    origin: float,
    factor: float,
    length: float,
    colours: dict[str, str],
) -> None:
    """Each label into its bar, if the bar is wide enough for it at notebook width."""
    for span in spans:
        width = (span.end - span.start) / length if length else 0
        if span.label and width > 0.011 * len(span.label) + 0.006:
            middle = ((span.start + span.end) / 2 - origin) * factor
            light = colours[span.kind] in (PALETTE["light"], PALETTE["orange"], PALETTE["yellow"], PALETTE["sky"])
            colour = "black" if light else "white"
            axes.text(middle, rows.index(span.row), span.label, ha="center", va="center", fontsize=9, color=colour)
