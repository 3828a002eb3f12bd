"""The picture of the running maximum: what is drawn is what was given."""

from __future__ import annotations

import numpy as np
import pytest

from pagedlab.errors import CourseError
from pagedlab.visualize.online_softmax import online_softmax
from pagedlab.visualize.widgets import png_bytes


@pytest.mark.parametrize(("num_scores", "block_size"), [(1, 1), (7, 3), (8, 4), (40, 16)])
def test_scores_maxima_and_factors_are_drawn_where_their_blocks_are(num_scores: int, block_size: int) -> None:
    scores = np.random.default_rng(0).normal(size=num_scores)
    starts = range(0, num_scores, block_size)
    maxima = [scores[: start + block_size].max() for start in starts]
    factors = [0.0, *np.exp(np.subtract(maxima[:-1], maxima[1:]))]
    figure = online_softmax(scores.tolist(), block_size, maxima, factors, "t")
    above, below = figure.axes
    dots, line = above.lines
    assert np.array_equal(dots.get_ydata(), scores)
    x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    for start, maximum in zip(starts, maxima, strict=True):
        inside = (x >= start - 0.5) & (x <= min(num_scores, start + block_size) - 0.5)
        assert maximum in y[inside]
    assert [bar.get_height() for bar in below.patches if hasattr(bar, "get_height")][-len(factors) :] == factors
    assert png_bytes(figure).startswith(b"\x89PNG")


@pytest.mark.parametrize("arguments", [([], 4, [], []), ([1.0], 0, [], []), ([1.0, 2.0], 1, [1.0], [0.0, 1.0])])
def test_numbers_of_blocks_that_differ_are_refused(arguments: tuple) -> None:
    with pytest.raises(CourseError, match="blocks"):
        online_softmax(*arguments)
