"""Recorded measurements are found with device and date, and chapter 13's pictures show every number that they get."""

from __future__ import annotations

import pytest

from pagedlab.bench.recorded import everything, recorded
from pagedlab.errors import CourseError, PagedlabError
from pagedlab.visualize.gpu import decode_steps, kernel_rates, roofline_share

RATES = {"d64": {"pagedlab": 80.0, "sdpa": 90.0}, "d128": {"pagedlab": 50.0}}
STEPS = {"small, batch 1": {"all on": 1.5, "no graphs": 12.0}, "small, batch 8": {"all on": 3.0}}


def legend_of(figure) -> list[str]:  # type: ignore[no-untyped-def]
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_every_recorded_file_says_what_where_and_when() -> None:
    assert {one.kind for one in everything()} >= {"decode", "kernels", "offline", "chunked-prefill"}
    for one in everything():
        assert one.about["date"] in one.file
        assert one.caption == f"{one.about['device']}, {one.about['date']}"
        assert one.about["torch"] and one.about["triton"]
        assert one.place.startswith("cpu") or one.place.upper() in one.about["device"]


def test_the_newest_of_a_kind_is_taken_and_a_missing_one_is_named() -> None:
    assert recorded("decode", "h100") == max(
        (one for one in everything() if (one.kind, one.place) == ("decode", "h100")), key=lambda one: one.file
    )
    with pytest.raises(PagedlabError, match=r"'decode' on 'abacus' is recorded yet; recorded are: .*offline on h200"):
        recorded("decode", "abacus")


def test_kernel_rates_draw_each_bar_the_ceiling_and_the_share_of_the_first() -> None:
    axes = kernel_rates(RATES, 100.0, "GB/s", "kernels").axes[0]
    assert sorted(bar.get_width() for bar in axes.patches) == [50, 80, 90]
    assert [text.get_text() for text in axes.texts] == ["80%", "50%"]
    assert list(axes.lines[0].get_xdata()) == [100, 100]
    assert legend_of(axes.figure) == ["measured ceiling: 100", "pagedlab", "sdpa"]
    assert axes.get_xlim()[1] > 100


def test_decode_steps_mark_the_floor_of_each_group_and_write_each_time() -> None:
    axes = decode_steps(STEPS, {"small, batch 1": 0.5, "small, batch 8": 2.0}).axes[0]
    assert sorted(bar.get_width() for bar in axes.patches) == [1.5, 3.0, 12.0]
    marks = [lines.get_segments()[0][0][0] for lines in axes.collections]
    assert marks == [0.5, 2.0]
    assert sorted(text.get_text().strip() for text in axes.texts) == ["1.5", "12", "3"]


def test_shares_are_percent_of_the_floor_points_measured_and_lines_computed() -> None:
    axes = roofline_share({"small": {1: 0.3, 32: 0.9}}, {"small": {1: 0.25, 4: 0.5, 32: 0.8}}).axes[0]
    computed, measured = axes.lines[:2]
    assert list(computed.get_ydata()) == [25, 50, 80] and list(measured.get_ydata()) == [30, 90]
    assert computed.get_color() == measured.get_color()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "4", "8", "16", "32"]


def test_pictures_of_nothing_are_refused() -> None:
    for broken in (
        lambda: kernel_rates({}, 1.0, "GB/s", "none"),
        lambda: kernel_rates(RATES, 0.0, "GB/s", "no ceiling"),
        lambda: decode_steps({}, {}),
        lambda: decode_steps(STEPS, {"small, batch 1": 0.5}),
        lambda: roofline_share({}, {}),
        lambda: roofline_share({"small": {}}, {}),
    ):
        with pytest.raises(CourseError):
            broken()
