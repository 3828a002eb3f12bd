"""Pictures of growth: what is drawn is what was given."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagedlab.basics.counters import Count, Pass, cached_passes, naive_passes
from pagedlab.errors import CourseError
from pagedlab.visualize import growth
from pagedlab.visualize.widgets import png_bytes

few = settings(max_examples=30, deadline=None, derandomize=True)


@few
@given(prompt=st.integers(1, 12), new=st.integers(1, 12))
def test_every_row_of_every_pass_is_one_cell(prompt, new):
    naive, cached = naive_passes(prompt, new), cached_passes(prompt, new)
    width = prompt + new - 1
    cells = growth.work_cells(naive, width)
    assert (cells < 2).sum() == Count.of(naive).rows
    assert (cells == 0).sum() == width, "each token is computed for the first time once"
    assert not (cells == 2).any()
    cells = growth.work_cells(cached, width)
    assert not (cells == 1).any()
    assert (cells == 0).sum() == Count.of(cached).rows
    assert (cells == 2).sum() == sum(one.past for one in cached)


def test_cells_by_hand():
    assert growth.work_cells([Pass(2), Pass(3)], 4).tolist() == [[0, 0, 3, 3], [1, 1, 0, 3]]
    assert growth.work_cells([Pass(2), Pass(1, past=2)], 3).tolist() == [[0, 0, 3], [2, 2, 0]]


def test_the_triangle_counts_in_its_titles():
    figure = growth.work_triangle({"naive": naive_passes(1, 10), "cached": cached_passes(1, 10)})
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["naive: 45 of 55 computed again", "cached: 0 of 10 computed again"]
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {growth.FIRST, growth.AGAIN, growth.READ}
    assert png_bytes(figure)[:4] == b"\x89PNG"


@pytest.mark.parametrize("log", [False, True])
def test_curves_are_drawn_as_given_with_units_on_the_axes(log):
    series = {"naive": ([1, 10, 100], [1.0, 5.0, 70.0]), "cached": ([1, 100], [1.0, 2.0])}
    figure = growth.curves(series, "tokens so far", "milliseconds", log=log)
    (axes,) = figure.axes
    for line, (name, (x, y)) in zip(axes.lines, series.items(), strict=True):
        assert line.get_label() == name
        np.testing.assert_array_equal(line.get_xdata(), x)
        np.testing.assert_array_equal(line.get_ydata(), y)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("tokens so far", "milliseconds")
    assert axes.get_yscale() == ("log" if log else "linear")
    assert len({line.get_marker() for line in axes.lines}) == 2, "told apart without colour"
    png_bytes(figure)


def test_bars_carry_their_numbers():
    figure = growth.bytes_bars([("Llama-2-7B", "MHA", 524_288), ("Llama-3-8B", "GQA", 131_072)])
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [524_288, 131_072]
    assert [text.get_text() for text in axes.texts] == ["512 KiB  MHA", "128 KiB  GQA"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Llama-2-7B", "Llama-3-8B"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["MHA", "GQA"]
    png_bytes(figure)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: growth.curves({}, "x", "y"),
        lambda: growth.curves({"a": ([1, 2], [1])}, "x", "y"),
        lambda: growth.curves({"a": ([1, 2], [0, 1])}, "x", "y", log=True),
        lambda: growth.work_triangle({"naive": []}),
        lambda: growth.bytes_bars([]),
        lambda: growth.bytes_bars([("a", "MHA", 0)]),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_a_sentence(draw):
    with pytest.raises(CourseError, match=r"\.$"):
        draw()
