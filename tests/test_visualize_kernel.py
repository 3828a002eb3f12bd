"""Chapter 08's pictures show every count and every thread that they get, and refuse what cannot be."""

from __future__ import annotations

import numpy as np
import pytest

from pagedlab.errors import CourseError
from pagedlab.visualize.kernel import tile_of_threads, who_reads

READS = np.array([[16, 0, 3], [0, 16, 0]])


def numbers_in(axes) -> list[tuple[float, float, str]]:  # type: ignore[no-untyped-def]
    return [(*text.get_position(), text.get_text()) for text in axes.texts]


def test_each_count_stands_in_its_cell_and_nothing_in_an_empty_one() -> None:
    axes = who_reads({"two programs": (READS, ["a", "b"])}, 16, "title").axes[0]
    assert numbers_in(axes) == [(0, 0, "16"), (2, 0, "3"), (1, 1, "16")]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]


def test_panels_stand_below_or_beside_each_other() -> None:
    panels = {"first": (READS, ["a", "b"]), "second": (READS[:1], ["a"]), "third": (READS, ["a", "b"])}
    below, beside = who_reads(panels, 16), who_reads(panels, 16, columns=2)
    assert [axes.get_title(loc="left") for axes in below.axes] == list(panels)
    assert len(beside.axes) == 4 and not beside.axes[3].axison
    assert [axes.get_xlabel() for axes in below.axes] == ["", "", "physical block"]


def test_many_blocks_are_drawn_without_numbers() -> None:
    assert not who_reads({"wide": (np.full((1, 100), 5), ["a"])}, 16).axes[0].texts


@pytest.mark.parametrize(
    ("panel", "message"),
    [
        ((READS, ["a"]), "2 programs but 1 labels"),
        ((READS + 1, ["a", "b"]), "A block holds 16 positions"),
        ((-READS, ["a", "b"]), "A block holds 16 positions"),
        ((READS[0], ["a"]), "must be a matrix"),
    ],
)
def test_impossible_reads_are_refused(panel: tuple, message: str) -> None:
    with pytest.raises(CourseError, match=message):
        who_reads({"x": panel}, 16)


def test_a_thread_is_numbered_once_for_each_of_its_runs() -> None:
    figure = tile_of_threads(np.array([[0, 0, 33, 33], [1, 1, 0, 0]]), 32)
    assert numbers_in(figure.axes[0]) == [(1, 0.5, "0"), (3, 0.5, "33"), (1, 1.5, "1"), (3, 1.5, "0")]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["warp 0", "warp 1"]


def test_threads_are_whole_numbers() -> None:
    with pytest.raises(CourseError, match="whole numbers"):
        tile_of_threads(np.array([[0.5]]), 32)
