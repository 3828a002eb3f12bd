"""Pictures of masks and heat maps show the matrix that they were given, with the labels on the right sides."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from pagedlab.basics import masks
from pagedlab.errors import CourseError
from pagedlab.visualize.heatmap import HeatPanel, attention_maps, change_maps
from pagedlab.visualize.masks import HIDDEN, OWNERS, SEEN, MaskPanel, draw_masks
from pagedlab.visualize.matrix import readable

few = settings(max_examples=15, deadline=None, derandomize=True)
WORDS = ["<bos>", "I", "am", "sure"]


def squares(axes) -> np.ndarray:
    """The colour of each square, as the reader sees it."""
    (image,) = axes.images
    rgba = image.to_rgba(image.get_array())
    return np.array([[to_hex(colour) for colour in row] for row in rgba])


def panels_of(figure):
    return [axes for axes in figure.axes if axes.images]


@few
@given(n=st.integers(1, 9), m=st.integers(1, 9), seed=st.integers(0, 99))
def test_a_square_is_coloured_exactly_where_the_mask_is_true(n, m, seed):
    mask = torch.rand(n, m, generator=torch.Generator().manual_seed(seed)) < 0.5
    (axes,) = panels_of(draw_masks({"": mask}))
    assert np.array_equal(squares(axes) == to_hex(SEEN), mask.numpy())
    assert np.array_equal(squares(axes) == to_hex(HIDDEN), ~mask.numpy())
    assert axes.get_title(loc="left") == f"{int(mask.sum())} of {n * m} pairs"


def test_row_0_is_at_the_top_and_its_label_is_the_first_query():
    (axes,) = panels_of(draw_masks(MaskPanel(masks.causal(4), "causal", WORDS, ["a", "b", "c", "d"])))
    bottom, top = axes.get_ylim()
    assert top < 0 < bottom, "positions run downwards"
    assert [label.get_text() for label in axes.get_yticklabels()] == WORDS
    assert list(axes.get_yticks()) == [0, 1, 2, 3]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", "c", "d"]
    assert "query" in axes.get_ylabel() and "key" in axes.get_xlabel()
    assert squares(axes)[0, 1] == to_hex(HIDDEN) and squares(axes)[1, 0] == to_hex(SEEN)


def test_each_request_of_a_packed_batch_has_its_colour():
    lengths, owners = [2, 3, 1], [0, 0, 1, 1, 1, 2]
    mask = masks.block_diagonal(lengths) & masks.causal(6)
    (axes,) = panels_of(draw_masks(MaskPanel(mask, owners=owners, query_starts=[2, 5], key_starts=[2, 5])))
    expected = [[to_hex(OWNERS[owners[q]] if mask[q, k] else HIDDEN) for k in range(6)] for q in range(6)]
    assert squares(axes).tolist() == expected
    assert sum(line.get_linewidth() > 1 for line in axes.lines) == 4


@few
@given(n=st.integers(1, 7), seed=st.integers(0, 99))
def test_rows_that_see_nothing_are_struck_through_and_no_others(n, seed):
    mask = torch.rand(n, n, generator=torch.Generator().manual_seed(seed)) < 0.3
    figure = draw_masks({"": mask})
    (axes,) = panels_of(figure)
    struck = [patch for patch in axes.patches if isinstance(patch, Rectangle) and patch.get_hatch()]
    assert [round(patch.get_y() + 0.5) for patch in struck] == masks.empty_rows(mask)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert any("NaN" in text for text in legend) == bool(struck)


@few
@given(count=st.integers(1, 10))
def test_every_panel_of_several_is_drawn_and_titled(count):
    figure = draw_masks({f"mask {i}": masks.causal(i + 1) for i in range(count)})
    titles = [axes.get_title(loc="left").split("\n")[0] for axes in panels_of(figure)]
    assert titles == [f"mask {i}" for i in range(count)]
    figure.draw_without_rendering()


def test_panels_that_share_labels_write_them_once_and_others_each():
    shared = draw_masks([MaskPanel(masks.causal(4), "a", WORDS, WORDS), MaskPanel(~masks.causal(4), "b", WORDS, WORDS)])
    left, right = panels_of(shared)
    assert len(left.get_yticks()) == 4 and len(right.get_yticks()) == 0
    assert len(right.get_xticks()) == 4
    unlike = draw_masks([MaskPanel(masks.causal(4), "a", WORDS, WORDS), MaskPanel(masks.causal(3), "b")])
    assert [len(axes.get_yticks()) for axes in panels_of(unlike)] == [4, 3]


def test_long_titles_stay_above_their_own_panels():
    panels = {"heads that split the whole sequence in two": torch.eye(8), "rows and columns swapped": torch.eye(8)}
    figure = change_maps({**panels, "a": torch.eye(8), "b": torch.eye(8)})
    figure.draw_without_rendering()
    boxes = [axes._left_title.get_window_extent() for axes in panels_of(figure)[:2]]
    assert boxes[0].x1 < boxes[1].x0


def test_a_large_mask_has_positions_at_round_steps():
    (axes,) = panels_of(draw_masks(MaskPanel(masks.causal(100), queries=[str(i) for i in range(100)])))
    assert list(axes.get_yticks()) == list(range(0, 100, 16))


@few
@given(n=st.integers(1, 8), seed=st.integers(0, 99))
def test_change_maps_are_white_exactly_where_nothing_changed(n, seed):
    generator = torch.Generator().manual_seed(seed)
    changes = torch.rand(n, n, generator=generator) * (torch.rand(n, n, generator=generator) < 0.5)
    (axes,) = panels_of(change_maps({"": changes}))[:1]
    assert np.array_equal(squares(axes) == "#ffffff", (changes == 0).numpy())


def test_a_change_below_the_scale_is_not_taken_for_zero():
    (axes,) = panels_of(change_maps({"": [[1e-9, 0.0]]}))[:1]
    assert squares(axes)[0, 0] != "#ffffff" and squares(axes)[0, 1] == "#ffffff"


def test_attention_maps_darken_with_the_weight():
    weights = torch.linspace(0, 1, 6)[None]
    (axes,) = panels_of(attention_maps(HeatPanel(weights, "one row", keys=list("abcdef"))))[:1]
    brightness = [int(colour[1:3], 16) + int(colour[3:5], 16) + int(colour[5:7], 16) for colour in squares(axes)[0]]
    assert brightness == sorted(brightness, reverse=True) and len(set(brightness)) == 6


def test_nan_is_marked_and_does_not_spoil_the_rest():
    (axes,) = panels_of(attention_maps({"": [[1.0, 0.0], [float("nan"), float("nan")]]}))[:1]
    assert [text.get_position() for text in axes.texts] == [(0, 1), (1, 1)]


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: draw_masks([]), "at least one"),
        (lambda: draw_masks({"": torch.ones(2, 2)}), "True and False"),
        (lambda: draw_masks({"": torch.ones(1, 2, 2, dtype=torch.bool)}), "must be a matrix"),
        (lambda: draw_masks({"": torch.ones(2, 600, dtype=torch.bool)}), "at most"),
        (lambda: draw_masks(MaskPanel(masks.causal(3), queries=["a"])), "3 rows but 1 labels"),
        (lambda: draw_masks(MaskPanel(masks.causal(3), owners=[0])), "one for each query"),
        (lambda: attention_maps({"": [[3.0]]}), "softmax"),
        (lambda: attention_maps({"": [[0.5]]}, top=0), "darkest"),
        (lambda: change_maps({"": [[-1.0]]}), "negative"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_what_to_change(call, complaint):
    with pytest.raises(CourseError, match=complaint):
        call()


def test_tokens_become_labels_that_can_be_read():
    assert [readable(t) for t in (" cat", "\n", " ", "a$b$", "antidisestablishment")] == [
        "cat",
        "⏎",
        "␣",
        r"a\$b\$",
        "antidisestabl…",
    ]
