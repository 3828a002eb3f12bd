"""A softmax that sees its scores block by block: the running maximum, and what earlier sums are multiplied with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from pagedlab.errors import CourseError
from pagedlab.visualize.style import PALETTE, legend_beside, new_figure


def online_softmax(
    scores: Sequence[float],
    block_size: int,
    maxima: Sequence[float],
    rescales: Sequence[float],
    title: str | None = None,
) -> Figure:
    """Scores of one query against the position of their keys, and below the factor at each block.

    Args:
        scores: one a key, in the order in which they are read.
        block_size: keys read at a time.
        maxima: the running maximum after each block.
        rescales: what the sums so far were multiplied with when each block came (0 for the first: there were none).

    Raises:
        CourseError: the numbers of blocks do not agree.
    """
    blocks = -(-len(scores) // block_size) if block_size > 0 else 0
    if not blocks or not len(maxima) == len(rescales) == blocks:
        raise CourseError(
            f"{len(scores)} scores in blocks of {block_size} make {blocks} blocks: give one maximum and one factor "
            f"for each, got {len(maxima)} and {len(rescales)}."
        )
    figure = new_figure(9, 4.6, title)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    ends = [min(len(scores), (index + 1) * block_size) for index in range(blocks)]
    for index, end in enumerate(ends):
        if index % 2 == 0:
            for axes in (above, below):
                axes.axvspan(index * block_size - 0.5, end - 0.5, color=PALETTE["light"], alpha=0.45, linewidth=0)
    above.plot(range(len(scores)), scores, ".", color=PALETTE["blue"], label="score of a key")
    edges = np.repeat([index * block_size - 0.5 for index in range(blocks)] + [ends[-1] - 0.5], 2)[1:-1]
    above.plot(edges, np.repeat(maxima, 2), color=PALETTE["vermillion"], label="running maximum")
    above.set_ylabel("score")
    legend_beside(above)
    widths = [0.7 * (end - index * block_size) for index, end in enumerate(ends)]
    centres = [(index * block_size + end - 1) / 2 for index, end in enumerate(ends)]
    below.bar(centres, rescales, width=widths, color=PALETTE["orange"], label="factor on the\nsums so far")
    below.set_ylim(0, 1.08)
    below.set_ylabel("factor")
    below.set_xlabel("position of the key (each band is a block)")
    legend_beside(below)
    return figure
