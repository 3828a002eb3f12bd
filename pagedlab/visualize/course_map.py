"""The course as a map: chapters from left to right, files of the package from top to bottom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from pagedlab.errors import CourseError
from pagedlab.visualize.style import PALETTE, new_figure

LAYER_COLOURS = {
    "interfaces": PALETTE["blue"],
    "model_authoring": PALETTE["green"],
    "runtime": PALETTE["vermillion"],
    "basics": PALETTE["black"],
    "simulate": PALETTE["grey"],
}
"""One colour a folder of the package; the folder's name stands in each row too."""


def course_map(
    explains: Mapping[str, Sequence[str]], way: Sequence[str], beside: Sequence[str] = (), highlight: str | None = None
) -> Figure:
    """A dot where a chapter explains a file.

    Args:
        explains: chapter -> files of the package ("runtime/worker.py"), in course order.
        way: files in the order a token meets them: the upper rows, numbered and joined by a line.
        beside: files that no token meets: the lower rows.
        highlight: a chapter to stand out; the others turn pale.

    Raises:
        CourseError: a chapter explains a file that is in neither list, or `highlight` is no chapter.
    """
    rows = [*way, *beside]
    chapters = list(explains)
    unknown = {file for files in explains.values() for file in files} - set(rows)
    if unknown or (highlight is not None and highlight not in explains):
        raise CourseError(f"The map has no row or column for {', '.join(unknown) or highlight}: add it.")
    figure = new_figure(10, 1.9 + 0.27 * len(rows), title="What each chapter explains, in the order a token travels")
    axes = figure.subplots()
    axes.axhspan(len(way) - 0.5, len(rows) - 0.5, color="#F5F5F5", linewidth=0)
    for column, (chapter, files) in enumerate(explains.items()):
        places = sorted(rows.index(file) for file in files)
        pale = highlight not in (None, chapter)
        if places:
            axes.plot([column] * 2, [places[0], places[-1]], color=PALETTE["light"], linewidth=1.5, zorder=1)
        colours = [PALETTE["light"] if pale else LAYER_COLOURS[rows[place].split("/")[0]] for place in places]
        axes.scatter([column] * len(places), places, s=95, c=colours, zorder=2, edgecolors="white")
    axes.set_xticks(range(len(chapters)), chapters, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), [row_label(row, place, len(way)) for place, row in enumerate(rows)])
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_color(LAYER_COLOURS[row.split("/")[0]])
    for label, chapter in zip(axes.get_xticklabels(), chapters, strict=True):
        label.set_fontweight("bold" if chapter == highlight else "normal")
    axes.set_ylim(len(rows) - 0.5, -1.5)
    axes.set_xlim(-0.6, len(chapters) - 0.4)
    axes.set_xlabel("chapter")
    notes = ((-0.9, "a token's way, from the question (top) to the answer"), (len(way), "no token passes here"))
    for place, note in notes:
        axes.text(len(chapters) - 0.5, place, note, ha="right", va="center", fontsize=10, style="italic")
    return figure


def row_label(row: str, place: int, on_the_way: int) -> str:
    """The file with its folder, and its number on the token's way."""
    number = f"{place + 1:2d}".replace(" ", "\u2007")  # a space as wide as a digit
    return f"{row}   {number}" if place < on_the_way else row
