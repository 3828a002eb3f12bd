"""Timelines and rooflines: what is drawn is the data, and it stays legible."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pagedlab.errors import CourseError
from pagedlab.simulate.devices import DEVICES
from pagedlab.visualize.roofline import Point, memory_bars, roofline, time_against_rows
from pagedlab.visualize.timeline import COLOURS, MAX_ROWS, Span, colours_of, timeline

few = settings(max_examples=20, deadline=None, derandomize=True)


def drawn_bars(figure: Figure) -> list[tuple[float, float, float]]:
    """(left, width, row) of every bar."""
    axes = figure.axes[0]
    return [(bar.get_x(), bar.get_width(), bar.get_y() + bar.get_height() / 2) for bar in axes.patches]


def assert_no_text_is_cut_off(figure: Figure) -> None:
    """Every label, title, tick and annotation lies inside the picture."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    width, height = figure.canvas.get_width_height()
    for axes in figure.axes:
        texts = [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        for one in texts:
            if one.get_text():
                box = one.get_window_extent(renderer)
                inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
                assert inside, f"{one.get_text()!r} is cut off"


spans = st.lists(
    st.builds(
        lambda row, start, length, kind: Span(f"request {row}", start, start + length, kind, "x"),
        st.integers(0, 5),
        st.floats(0, 10),
        st.floats(0.001, 5),
        st.sampled_from(["prefill", "decode", "waiting", "something else"]),
    ),
    min_size=1,
    max_size=12,
)


@few
@given(spans=spans)
def test_every_span_is_a_bar_in_its_row_from_start_to_end(spans):
    figure = timeline(spans)
    rows = list(dict.fromkeys(span.row for span in spans))
    origin = min(span.start for span in spans)
    length = max(span.end for span in spans) - origin
    factor = 1 if length >= 1 else 1e3 if length >= 1e-3 else 1e6
    want = sorted(((s.start - origin) * factor, (s.end - s.start) * factor, rows.index(s.row)) for s in spans)
    for (left, width, row), (want_left, want_width, want_row) in zip(sorted(drawn_bars(figure)), want, strict=True):
        assert left == pytest.approx(want_left, abs=1e-6 * factor)
        assert width == pytest.approx(want_width, abs=1e-6 * factor)
        assert round(row, 6) == want_row
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == rows


def test_rows_stand_from_top_to_bottom_and_time_has_a_unit():
    figure = timeline([Span("a", 5.0, 5.1, "prefill"), Span("b", 5.1, 5.2, "decode")], title="Two requests")
    axes = figure.axes[0]
    bottom, top = axes.get_ylim()
    assert bottom > top  # row 0 on top
    assert axes.get_xlabel() == "time (ms)"
    assert axes.get_xlim()[0] == 0
    assert timeline([Span("a", 0, 20, "prefill")]).axes[0].get_xlabel() == "time (s)"
    assert timeline([Span("a", 0, 2e-5, "prefill")]).axes[0].get_xlabel() == "time (µs)"


def test_a_kind_has_one_colour_and_kinds_differ():
    colours = colours_of(["decode", "prefill", "decode", "odd", "other"])
    assert colours["prefill"] == COLOURS["prefill"] and colours["decode"] == COLOURS["decode"]
    assert len(set(colours.values())) == 4


def test_a_label_is_written_only_where_it_fits():
    narrow = [Span("a", i, i + 1, "decode", "a long label") for i in range(60)]
    assert not timeline(narrow).axes[0].texts
    assert [t.get_text() for t in timeline([Span("a", 0, 1, "decode", "fits")]).axes[0].texts] == ["fits"]


def test_marks_are_named():
    figure = timeline([Span("a", 0, 1, "prefill"), Span("a", 1, 2, "decode")], "t", marks=[(1, "first token")])
    assert "first token" in [text.get_text() for text in figure.axes[0].texts]
    assert_no_text_is_cut_off(figure)


def test_one_row_and_many_are_legible():
    for count in (1, 8, MAX_ROWS):
        assert_no_text_is_cut_off(timeline([Span(f"request {i}", i, i + 2, "decode", str(i)) for i in range(count)]))


def test_bad_spans_are_refused():
    with pytest.raises(CourseError, match="ends before it starts"):
        Span("a", 1, 0, "decode")
    with pytest.raises(CourseError, match="at least one"):
        timeline([])
    with pytest.raises(CourseError, match="40 rows at most"):
        timeline([Span(f"{i}", 0, 1, "decode") for i in range(MAX_ROWS + 1)])


# ---- rooflines ---------------------------------------------------------------------------------------------------


def test_the_roof_bends_at_the_ridge_and_points_without_a_rate_lie_on_it():
    card = DEVICES["RTX 4090"]
    figure = roofline([card], [Point("decode", 1.0, kind="decode"), Point("prefill", 1000.0, kind="prefill")])
    axes = figure.axes[0]
    roof, ridge, low, high = (line.get_xydata().tolist() for line in axes.lines)
    assert roof[1] == [card.ridge, card.flops_per_second] == ridge[0]
    assert low == [[1.0, card.bytes_per_second]] and high == [[1000.0, card.flops_per_second]]
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert_no_text_is_cut_off(figure)


def test_a_measured_point_stands_where_it_was_measured():
    figure = roofline([DEVICES["H100"]], [Point("run", 2.0, 1e12, kind="run")])
    assert figure.axes[0].lines[-1].get_xydata().tolist() == [[2.0, 1e12]]


def test_time_against_rows_shows_the_measurement_and_the_ridge():
    figure = time_against_rows([1, 8, 64], [0.01, 0.012, 0.04], read_seconds=0.01, seconds_per_row=0.0005)
    axes = figure.axes[0]
    measured = next(line for line in axes.lines if line.get_label() == "measured")
    assert measured.get_ydata().tolist() == [10.0, 12.0, 40.0]
    assert [t.get_text() for t in axes.texts] == ["ridge: 20 rows"]
    assert_no_text_is_cut_off(figure)


def test_memory_bars_add_up():
    bars = {"training": {"weights": 2e9, "optimizer": 12e9}, "inference": {"weights": 2e9, "KV cache": 1e9}}
    figure = memory_bars(bars, limit=80e9)
    assert sorted(t.get_text() for t in figure.axes[0].texts) == ["14.0 GB", "3.0 GB"]
    assert sum(bar.get_width() for bar in figure.axes[0].patches) == pytest.approx(17)
    assert_no_text_is_cut_off(figure)
