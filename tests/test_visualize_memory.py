"""Pictures of memory: what is drawn is what was passed in, nothing overlaps or is cut off, wrong data are refused."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pagedlab.errors import CourseError
from pagedlab.simulate.allocators import Buddy, Leaf, State
from pagedlab.visualize.memory import (
    STATE_COLOURS,
    Segment,
    address_strips,
    ancestors,
    buddy_tree,
    memory_maps,
    paired_bars,
    share_bars,
    waste_curve,
)
from pagedlab.visualize.style import PALETTE
from pagedlab.visualize.widgets import png_bytes


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def rectangles(figure: Figure, colour: str) -> list[tuple[float, float]]:
    """(x, width) of the rectangles with this face colour."""
    found = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    return [(p.get_x(), p.get_width()) for p in found if to_hex(p.get_facecolor()) == colour.lower()]


def legend_labels(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_every_state_has_a_colour_of_its_own() -> None:
    assert set(STATE_COLOURS) == set(State) and len(set(STATE_COLOURS.values())) == len(State)


def test_a_map_shows_each_slot_at_each_moment_in_its_colour() -> None:
    moments = [(step, np.array([0, 1, 4 - step % 2], dtype=np.uint8)) for step in range(10, 14)]
    figure = memory_maps({"one": moments, "two": moments})
    assert [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes] == ["one", "two"]
    image = figure.axes[0].images[0]
    assert image.get_array().tolist() == [[0] * 4, [1] * 4, [4, 3, 4, 3]]
    assert image.get_extent() == [10, 13, 0, 3] or tuple(image.get_extent()) == (10, 13, 0, 3)
    for state in State:
        assert to_hex(image.cmap(image.norm(int(state)))) == STATE_COLOURS[state].lower()
    assert len(legend_labels(figure)) == 4, "INTERNAL is nowhere in the map"
    assert png_bytes(figure)


def test_a_large_map_is_sampled_and_keeps_its_scale() -> None:
    moments = [(step, np.repeat(np.array([0, 4], dtype=np.uint8), 5000)) for step in (0, 1)]
    image = memory_maps({"one": moments}, gib_per_slot=0.001).axes[0].images[0]
    assert image.get_array().shape == (400, 2)
    assert image.get_array().mean() == pytest.approx(2.0)
    assert image.get_extent()[3] == pytest.approx(10)


@pytest.mark.parametrize("maps", [{}, {"one": [(0, np.zeros(4, dtype=np.uint8))]}])
def test_maps_without_time_are_refused(maps: dict) -> None:
    with pytest.raises(CourseError, match="two moments"):
        memory_maps(maps)


def test_shares_are_stacked_without_gaps_and_carry_their_numbers() -> None:
    bars = {"a": {State.TOKEN: 0.2, State.INTERNAL: 0.77, State.FREE: 0.03}, " ": {}, "b": {State.TOKEN: 0.963}}
    figure = share_bars(bars)
    pieces = sorted((p.get_y(), p.get_x(), p.get_width()) for p in figure.axes[0].patches)
    assert [(x, width) for _, x, width in pieces] == [
        pytest.approx(pair) for pair in [(0, 20), (20, 77), (97, 3), (0, 96.3)]
    ]
    assert texts(figure) == ["20.0", "77.0", "96.3"], "3 % is too narrow for a number"
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b"]
    assert png_bytes(figure)


def test_pairs_show_both_values() -> None:
    figure = paired_bars({"x": (7.0, 7.5), "y": (33.4, 30.42)}, ("simulated", "paper"), "requests")
    assert sorted(patch.get_width() for patch in figure.axes[0].patches) == [7.0, 7.5, 30.42, 33.4]
    assert sorted(texts(figure)) == ["30.42", "33.40", "7.00", "7.50"]
    assert png_bytes(figure)


def test_strips_colour_what_is_used() -> None:
    rows = {"now": [Segment(0, 32, "free: 32", False), Segment(32, 16, "B: 16", True)]}
    figure = address_strips(rows, 128, "MB")
    assert rectangles(figure, PALETTE["blue"]) == [(32, 16)]
    assert rectangles(figure, PALETTE["light"]) == [(0, 32)]
    assert texts(figure) == ["free: 32", "B: 16"]
    assert png_bytes(figure)


@pytest.mark.parametrize("capacity", [64, 100, 15728])
def test_the_tree_shows_all_blocks_of_a_buddy(capacity: int) -> None:
    buddy = Buddy(capacity)
    runs = [run for run in (buddy.take(size) for size in (1, 9, 3, 20, 5)) if run]
    buddy.give(runs[1].start)
    figure = buddy_tree(buddy.leaves(), capacity, wanted=64, smallest=1)
    assert sorted(rectangles(figure, PALETTE["blue"])) == sorted(buddy.used.items())
    assert sorted(rectangles(figure, PALETTE["green"])) == sorted((run.start, run.size) for run in buddy.free_runs())
    assert "wanted: 64 in one block" in texts(figure)
    assert png_bytes(figure)


def test_ancestors_are_the_blocks_that_were_split() -> None:
    assert ancestors(Leaf(12, 4, True), 32) == [(8, 8), (0, 16), (0, 32)]
    assert ancestors(Leaf(8, 4, True), 12) == [], "8..15 does not lie inside 12"
    assert ancestors(Leaf(4, 4, True), 12) == [(0, 8)]


def test_waste_curve_draws_both_series() -> None:
    figure = waste_curve([1, 16, 256], [0.0, 1.6, 22.0], [0.0, 1.6, 22.3])
    lines = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines}
    assert lines["simulated"] == [0.0, 1.6, 22.0] and len(lines) == 2
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["1", "16", "256"]
    assert png_bytes(figure)
