"""What the pictures of chapters 09 and 10 put on the page."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from pagedlab.basics.published_configs import PUBLISHED
from pagedlab.errors import CourseError
from pagedlab.simulate.batching import simulate_continuous, simulate_static
from pagedlab.simulate.batching_run import summarise
from pagedlab.simulate.cost_model import CostModel
from pagedlab.simulate.devices import device
from pagedlab.simulate.roofline import ModelShape
from pagedlab.simulate.workloads import Lengths, make_workload
from pagedlab.visualize import batching as pictures

COST = CostModel.from_device(ModelShape.from_config(PUBLISHED["SmolLM2-135M"]), device("A100 80GB"))
REQUESTS = make_workload(12, Lengths(20, 10), seed=1, rate=400)


def test_padded_cells_count_as_the_simulation_counts() -> None:
    batch = {str(i): (r.prompt_tokens, r.output_tokens) for i, r in enumerate(REQUESTS)}
    cells = pictures.padded_cells(batch).axes[0].collections[0].get_array()
    saturated = [request._replace(arrival=0.0) for request in REQUESTS]
    run = simulate_static(saturated, COST, len(saturated))
    assert cells.size == run.computed_rows
    assert np.isin(cells, (1, 2)).sum() == run.needed_rows


@pytest.mark.parametrize("method", ["static", "continuous"])
def test_nobody_sits_on_a_seat_that_is_taken(method: str) -> None:
    run = (
        simulate_static(REQUESTS, COST, 4)
        if method == "static"
        else simulate_continuous(REQUESTS, COST, max_num_seqs=4)
    )
    spans = pictures.seat_spans(run)
    rows = {span.row for span in spans}
    assert len(rows) <= 4
    for row in rows:
        here = sorted((span for span in spans if span.row == row), key=lambda span: span.start)
        assert all(before.end <= after.start for before, after in pairwise(here))
    assert sum(span.kind == "prefill" for span in spans) == len(REQUESTS)
    assert any(span.kind == "padding" for span in spans) == (method == "static")
    assert pictures.seats(run).axes


def test_step_table_writes_every_number() -> None:
    figure = pictures.step_table([{"a": 7, "b": 1}, {"b": 1}], budget=8)
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["1", "1", "7"]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["1\nΣ 8", "2\nΣ 1"]


def test_surface_has_straight_cuts() -> None:
    lengths, sizes = [1, 11, 21, 31], [1, 2, 3, 4, 5]
    pads = np.outer(np.array(sizes) - 1, np.array(lengths) - 1)
    lines = pictures.padding_surface(lengths, sizes, pads).axes[1].lines
    assert all(len(set(np.diff(line.get_ydata()))) == 1 for line in lines)


def test_methods_and_curves_are_drawn() -> None:
    runs = [simulate_static(REQUESTS, COST, 4), simulate_continuous(REQUESTS, COST)]
    summaries = [summarise(run, COST) for run in runs]
    figure = pictures.compare_methods(summaries)
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == [summary.output_tokens_per_second for summary in summaries]
    curve = {"static": [(1.0, summaries[0]), (2.0, summaries[0])]}
    assert len(pictures.saturation(curve, {"static": [(1.5, summaries[0])]}).axes[0].lines) == 2


def test_pictures_of_nothing_are_refused() -> None:
    for draw in (
        lambda: pictures.padded_cells({}),
        lambda: pictures.step_table([]),
        lambda: pictures.compare_methods([]),
        lambda: pictures.saturation({}),
        lambda: pictures.padding_surface([1, 2], [1, 2], np.zeros((3, 2))),
    ):
        with pytest.raises(CourseError):
            draw()
