"""What the pictures of chapter 06 put on the page: every point, tick and limit that was handed in."""

from __future__ import annotations

import pytest

from pagedlab.errors import CourseError
from pagedlab.runtime.memory_profile import MemoryProfile
from pagedlab.simulate.chunking import TradeOff
from pagedlab.visualize.streams import StreamRun, token_streams
from pagedlab.visualize.tradeoff import live_memory, peak_memory, short, trade_off

POINTS = [TradeOff(64, 4.0, 0.2, 300.0), TradeOff(256, 3.0, 0.5, 400.0), TradeOff(1024, 2.0, 2.0, 500.0)]
RUN = StreamRun("whole", {"chat 1": [0.0, 1.0, 4.0], "chat 2": [0.1, 1.1, 3.9]}, 1.2, [(1.2, 3.8)])


def test_trade_off_draws_every_point_in_each_panel() -> None:
    figure = trade_off(POINTS)
    for axes, values in zip(figure.axes, ([200, 500, 2000], [4.0, 3.0, 2.0], [300.0, 400.0, 500.0]), strict=True):
        drawn = axes.lines[0]
        assert list(drawn.get_xdata()) == [64, 256, 1024]
        assert list(drawn.get_ydata()) == pytest.approx(values)


def test_trade_off_rings_the_size_that_fits_the_objective_and_hollows_those_that_do_not() -> None:
    figure = trade_off(POINTS, objective=0.6)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "chosen: 256 tokens" in labels
    assert "objective: 600 ms" in labels
    filled = figure.axes[0].collections[0].get_facecolors()
    assert [tuple(colour[:3]) == (1, 1, 1) for colour in filled] == [False, False, True]


def test_trade_off_without_a_size_that_fits_chooses_none() -> None:
    figure = trade_off({"a": POINTS, "b": POINTS[:1]}, objective=0.01)
    assert not any("chosen" in text.get_text() for text in figure.legends[0].get_texts())


@pytest.mark.parametrize("series", [[], {}, {"a": []}])
def test_trade_off_of_nothing_is_refused(series: object) -> None:
    with pytest.raises(CourseError, match="one point or more"):
        trade_off(series)  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "label"), [(96, "96"), (1024, "1k"), (32768, "32k"), (100_000, "100k")])
def test_ticks_are_short(size: int, label: str) -> None:
    assert short(size) == label


def test_streams_measure_out_the_longest_gap_of_any_stream() -> None:
    assert RUN.worst_gap() == ("chat 1", 1.0, 4.0)
    figure = token_streams([RUN, StreamRun("chunked", {"chat 1": [0.0, 0.5]}, 0.1)])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["whole", "chunked"]
    first, second = ([text.get_text() for text in axes.texts] for axes in figure.axes)
    assert first == ["3.00 s"]
    assert second == ["0.50 s"]


def test_streams_show_a_tick_for_each_token_counted_from_the_arrival() -> None:
    axes = token_streams([RUN]).axes[0]
    ticks = [events.get_positions() for events in axes.collections if hasattr(events, "get_positions")]
    assert ticks[0] == pytest.approx([-1.2, -0.2, 2.8])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["chat 1", "chat 2", "long prompt"]


def test_streams_of_nothing_are_refused() -> None:
    with pytest.raises(CourseError, match="at least one"):
        token_streams([])
    with pytest.raises(CourseError, match="two tokens"):
        token_streams([StreamRun("empty", {"chat": [1.0]}, 0.0)])


def test_live_memory_draws_each_profile_and_its_peak() -> None:
    figure = live_memory({"whole": MemoryProfile([0.0, 1.0, 2.0], [5_000_000, 9_000_000, 0])})
    line, peak = figure.axes[0].lines
    assert list(line.get_ydata()) == [5.0, 9.0, 0.0]
    assert list(line.get_xdata()) == [0.0, 50.0, 100.0]
    assert list(peak.get_ydata()) == [9.0, 9.0]


def test_live_memory_of_nothing_is_refused() -> None:
    with pytest.raises(CourseError, match="one profile or more"):
        live_memory({"none": MemoryProfile([], [])})


def test_peak_memory_draws_megabytes_against_every_size() -> None:
    axes = peak_memory([64, 256], {"stored": [2e6, 8e6], "fused": [1e6, 2e6]}).axes[0]
    assert [list(line.get_ydata()) for line in axes.lines] == [[2.0, 8.0], [1.0, 2.0]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["64", "256"]


@pytest.mark.parametrize(("sizes", "peaks"), [([], {}), ([64], {}), ([64], {"a": [1.0, 2.0]})])
def test_peak_memory_needs_one_peak_a_size(sizes: list[int], peaks: dict[str, list[float]]) -> None:
    with pytest.raises(CourseError, match="one peak for each"):
        peak_memory(sizes, peaks)
