"""What the pictures of chapter 12 put on the page: every latency, load and share that was handed in."""

from __future__ import annotations

import pytest

from pagedlab.errors import CourseError
from pagedlab.visualize.serving import KnobPoint, LoadPoint, knobs, latencies, load_curve

POINTS = [
    LoadPoint(1.0, {50: 0.05, 99: 0.06}, {50: 0.02, 99: 0.03}, completed=1.0, good=1.0),
    LoadPoint(4.0, {50: 0.5, 99: 2.0}, {50: 0.03, 99: 0.05}, completed=2.5, good=0.5),
]


def test_latencies_are_steps_that_reach_100_percent_with_their_percentiles_marked() -> None:
    figure = latencies({"1 client": [0.03, 0.01, 0.02, 0.04]}, {"1 client": {50: 0.02, 99: 0.04}})
    (axes,) = figure.axes
    steps = axes.lines[0]
    assert list(steps.get_xdata()) == pytest.approx([10, 10, 20, 30, 40])
    assert list(steps.get_ydata()) == [0, 25, 50, 75, 100]
    marks = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines[1:3]]
    assert marks == [pytest.approx((20, 50)), pytest.approx((40, 99))]
    assert {text.get_text() for text in axes.texts} == {"p50", "p99"}


@pytest.mark.parametrize("samples", [{}, {"a": []}])
def test_latencies_of_nothing_are_refused(samples: dict) -> None:
    with pytest.raises(CourseError, match="one group or more"):
        latencies(samples, {})


def test_load_curve_draws_every_percentile_in_milliseconds_and_both_rates() -> None:
    first, each, rate = load_curve(POINTS, objectives=(0.2, 0.04)).axes
    assert [list(line.get_ydata()) for line in first.lines[:2]] == [
        pytest.approx([50, 500]),
        pytest.approx([60, 2000]),
    ]
    assert list(each.lines[1].get_ydata()) == pytest.approx([30, 50])
    assert [list(line.get_ydata()) for line in rate.lines] == [[1.0, 2.5], [1.0, 0.5]]
    assert first.lines[2].get_ydata()[0] == pytest.approx(200) and each.lines[2].get_ydata()[0] == pytest.approx(40)


def test_a_simulated_series_stands_beside_the_measured_one() -> None:
    figure = load_curve(POINTS, simulated=POINTS[:1])
    assert [len(axes.lines) for axes in figure.axes] == [4, 4, 4]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["p50", "p99", "completed", "good"]


def test_load_curve_of_nothing_is_refused() -> None:
    with pytest.raises(CourseError, match="one LoadPoint"):
        load_curve([])


def test_knobs_have_a_panel_each_with_three_shares_in_percent() -> None:
    points = [KnobPoint(8, 0.5, 1.0, 0.5), KnobPoint(64, 1.0, 0.25, 0.25)]
    figure = knobs({"budget": points, "seats": points[:1]}, chosen={"budget": 64})
    left, right = figure.axes
    assert [list(line.get_ydata()) for line in left.lines[:3]] == [[50, 100], [100, 25], [50, 25]]
    assert left.lines[3].get_xdata()[0] == 64 and len(right.lines) == 3
    assert [label.get_text() for label in left.get_xticklabels()] == ["8", "64"]
    assert left.get_xlabel() == "budget"


@pytest.mark.parametrize("panels", [{}, {"budget": []}])
def test_knobs_of_nothing_are_refused(panels: dict) -> None:
    with pytest.raises(CourseError, match="one knob or more"):
        knobs(panels)
