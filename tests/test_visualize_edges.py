"""Pictures at the edge of what they can show: nothing, one, too many, numbers without a logarithm. Each draws all that
it was given, or says in a sentence why it cannot."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from pagedlab.errors import CourseError
from pagedlab.simulate.batching_run import Summary
from pagedlab.simulate.devices import device
from pagedlab.visualize import batching, gpu, growth, kernel, memory, roofline, serving
from pagedlab.visualize.timeline import Span
from pagedlab.visualize.widgets import png_bytes

A100 = device("A100 80GB")
NOT_A_NUMBER = float("nan")


@pytest.mark.parametrize(
    "draw",
    [
        lambda: growth.work_triangle({}),
        lambda: growth.curves({"a": ([1, 2], [NOT_A_NUMBER, -1])}, "x", "y", log=True),
        lambda: growth.bytes_bars([("a", "MHB", 3)]),
        lambda: memory.paired_bars({}, ("a", "b"), "x"),
        lambda: memory.paired_bars({"a": (0.0, 0.0)}, ("a", "b"), "x"),
        lambda: roofline.roofline([], []),
        lambda: roofline.roofline([A100], [roofline.Point("a", 0.0)]),
        lambda: roofline.time_against_rows([], [], 1.0, 1.0),
        lambda: roofline.time_against_rows([0, 1], [1.0, 1.0], 1.0, 1.0),
        lambda: batching.padding_surface([1, 2, 3, 4], [1], np.ones((1, 4))),
        lambda: serving.latencies({"a": [0.0, 1.0]}, {}),
        lambda: serving.knobs({"a": [serving.KnobPoint(0, 1, 1, 1)]}),
        lambda: kernel.who_reads({}, 16),
        lambda: Span("a", 0.0, NOT_A_NUMBER, "decode"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_a_sentence(draw):
    with pytest.raises(CourseError):
        draw()


def test_a_bar_of_many_parts_is_as_long_as_their_sum():
    figure = roofline.memory_bars({"a": {str(part): 1e9 for part in range(9)}})
    assert sum(bar.get_width() for bar in figure.axes[0].patches) == pytest.approx(9)


def test_numbers_below_zero_and_shares_above_the_floor_are_in_view():
    low, high = growth.curves({"a": ([1, 2], [-3, 5])}, "x", "y").axes[0].get_ylim()
    assert low <= -3 and high >= 5
    assert gpu.roofline_share({"a": {4: 1.25}}, {}).axes[0].get_ylim()[1] > 125


def test_more_series_than_colours_are_all_drawn():
    summary = Summary("x", *[0.1] * 10)
    figure = batching.saturation({str(index): [(1.0, summary)] for index in range(9)})
    assert len(figure.axes[0].lines) == 9
    ranks = {rank: 0.1 for rank in range(9)}
    figure = serving.load_curve([serving.LoadPoint(load, ranks, ranks, 1, 1) for load in (1, 2)])
    assert len(figure.axes[0].lines) == 9


def test_a_load_at_which_nobody_got_a_second_token_leaves_a_gap():
    points = [serving.LoadPoint(1, {50: 0.1}, {}, 1, 1), serving.LoadPoint(2, {50: 0.1}, {50: 0.2}, 1, 1)]
    line = serving.load_curve(points).axes[1].lines[0]
    assert math.isnan(line.get_ydata()[0]) and line.get_ydata()[1] == pytest.approx(200)


def test_a_workload_without_padding_has_a_map_without_contours():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        png_bytes(batching.padding_surface([1, 2], [1, 2], np.zeros((2, 2))))
