"""Pictures of paging: what is drawn is the data, and a real block manager is turned into that data faithfully."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyArrowPatch, Rectangle

from pagedlab.errors import CourseError
from pagedlab.simulate.kv_memory import KVMemory
from pagedlab.simulate.reference_string import count_faults, replay
from pagedlab.visualize.block_map import OWNER_COLOURS, BlockView, block_map, block_maps, fill_of, view_blocks
from pagedlab.visualize.page_table import faults_by_frames, frames_over_time, page_table, pages_in_memory
from pagedlab.visualize.style import PALETTE
from pagedlab.visualize.widgets import png_bytes

BELADY = [1, 2, 3, 4, 1, 2, 5, 1, 2, 3, 4, 5]


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def width_in(axes: Axes, colour: str) -> float:
    """Summed width of the rectangles filled with a colour."""
    rectangles = [patch for patch in axes.patches if isinstance(patch, Rectangle) and patch.get_fill()]
    return sum(r.get_width() for r in rectangles if to_rgb(r.get_facecolor()[:3]) == to_rgb(colour))


# ---- a real block manager as data ----------------------------------------------------------------------------------


@given(
    prompts=st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=9), max_size=5),
    block_size=st.integers(1, 4),
    freed=st.sets(st.integers(0, 4)),
)
@settings(max_examples=60, deadline=None)
def test_view_blocks_says_what_tables_and_pool_say(prompts: list[list[int]], block_size: int, freed: set[int]) -> None:
    memory = KVMemory(24, block_size)
    for index, tokens in enumerate(prompts):
        hits = memory.create(str(index), tokens)
        if memory.allocate(str(index), len(tokens)):
            memory.write(str(index), hits, tokens[hits:])
    for index in freed & set(range(len(prompts))):
        memory.free(str(index))
    views = view_blocks(memory.manager)
    assert [view.block_id for view in views] == list(range(24))
    assert [view.block_id for view in views if view.is_null] == [0]
    for view, block in zip(views, memory.manager.pool.blocks, strict=True):
        assert len(view.owners) == block.ref_count
        assert view.is_cached == (block.block_hash is not None)
        for owner in view.owners:
            slots = [memory.translate(owner, p) for p in range(memory.requests[owner].num_computed_tokens)]
            assert sum(slot // block_size == view.block_id for slot in slots) == view.num_filled
        if not view.owners:
            assert view.num_filled == (block_size if view.is_cached else 0)


def test_a_free_block_whose_content_can_be_hit_is_seen_as_such() -> None:
    memory = KVMemory(6, block_size=4)
    memory.create("r", range(6))
    memory.allocate("r", 6)
    memory.write("r", 0, range(6))
    memory.free("r")
    assert [(view.is_cached, view.num_filled, view.owners) for view in view_blocks(memory.manager)][1:3] == [
        (True, 4, ()),
        (False, 0, ()),
    ]


# ---- block maps ----------------------------------------------------------------------------------------------------


def test_a_block_is_filled_as_far_as_its_tokens_reach() -> None:
    figure = block_map([BlockView(0, ("a",), 16), BlockView(1, ("a",), 4)], 16, columns=2)
    full, quarter = 0.86, 0.86 / 4
    assert width_in(figure.axes[0], OWNER_COLOURS[0]) == pytest.approx(full + quarter)


def test_a_shared_block_shows_all_owners_and_its_count() -> None:
    axes = block_map([BlockView(7, ("a", "b", "c"), 16, is_cached=True)], 16).axes[0]
    assert texts(axes) == ["7", "# ×3"]
    assert all(width_in(axes, colour) > 0 for colour in OWNER_COLOURS[:3])


def test_states_without_an_owner_look_different() -> None:
    blocks = [BlockView(0, is_null=True), BlockView(1), BlockView(2, num_filled=16, is_cached=True)]
    axes = block_map(blocks, 16).axes[0]
    assert width_in(axes, PALETTE["grey"]) == pytest.approx(0.86)
    assert width_in(axes, PALETTE["light"]) == pytest.approx(0.86)
    assert texts(axes) == ["0", "null", "1", "", "2", "#"]


def test_the_same_owner_has_the_same_colour_at_every_moment() -> None:
    figure = block_maps({"before": [BlockView(0, ("a",), 4)], "after": [BlockView(0, ("b",), 4)]}, 4)
    first, second = figure.axes
    assert width_in(first, OWNER_COLOURS[0]) > 0 == width_in(first, OWNER_COLOURS[1])
    assert width_in(second, OWNER_COLOURS[1]) > 0 == width_in(second, OWNER_COLOURS[0])
    fixed = block_map([BlockView(0, ("b",), 4)], 4, owners=["a", "b"])
    assert width_in(fixed.axes[0], OWNER_COLOURS[1]) > 0


def test_many_owners_are_told_apart_and_the_legend_stays_short() -> None:
    assert len({fill_of(index) for index in range(28)}) == 28
    figure = block_map([BlockView(i, (f"r{i}",), 8) for i in range(40)], 16)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "r0" in labels and "and 28 more" in labels and len(labels) < 20


@pytest.mark.parametrize("columns", [1, 8, 16])
def test_every_block_is_inside_the_picture(columns: int) -> None:
    axes = block_map([BlockView(i) for i in range(20)], 16, columns=columns).axes[0]
    low, high = sorted(axes.get_ylim())
    for patch in axes.patches:
        assert isinstance(patch, Rectangle)
        assert patch.get_x() >= 0 and patch.get_x() + patch.get_width() <= columns
        assert low <= patch.get_y() and patch.get_y() + patch.get_height() <= high


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(CourseError, match="at least one block"):
        block_map([], 16)


# ---- tables, frames over time, curves ------------------------------------------------------------------------------


@given(table=st.lists(st.none() | st.integers(0, 7), min_size=1, max_size=16))
@settings(max_examples=25, deadline=None)
def test_one_arrow_for_each_page_in_memory(table: list[int | None]) -> None:
    axes = page_table(table, 8).axes[0]
    arrows = [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]
    assert len(arrows) == sum(frame is not None for frame in table)
    assert texts(axes).count("on disk") == table.count(None)


def test_frames_name_their_page_or_their_other_owner() -> None:
    shown = texts(page_table([2, None], 4, others={1: "other"}, names=("page", "frame")).axes[0])
    assert {"page 0", "page 1", "frame 2: page 0", "frame 1: other", "frame 0"} <= set(shown)


def test_a_table_that_points_outside_the_memory_is_refused() -> None:
    with pytest.raises(CourseError, match="outside 4 frames"):
        page_table([4], 4)


def test_frames_over_time_writes_every_resident_page_and_marks_every_fault() -> None:
    steps = list(replay(BELADY, 3, "fifo"))
    axes = frames_over_time({"FIFO": steps}).axes[0]
    assert len(texts(axes)) == sum(page is not None for step in steps for page in step.resident)
    assert width_in(axes, PALETTE["vermillion"]) == pytest.approx(0.92 * count_faults(BELADY, 3, "fifo"))
    assert "9 faults in 12 accesses" in axes.get_title(loc="left")


def test_curves_are_the_counts() -> None:
    counts = {policy: {n: count_faults(BELADY, n, policy) for n in range(1, 6)} for policy in ("fifo", "lru")}
    axes = faults_by_frames(counts, num_accesses=12).axes[0]
    for line, policy in zip(axes.lines, counts, strict=True):
        assert dict(zip(line.get_xdata(), line.get_ydata(), strict=True)) == counts[policy]


def test_pages_in_memory_draws_the_grid_itself() -> None:
    grid = np.eye(4, 10, dtype=bool)
    figure = pages_in_memory({"lru": grid, "fifo": ~grid})
    assert np.array_equal(figure.axes[0].images[0].get_array(), grid)
    assert len(png_bytes(figure)) > 1000


@pytest.mark.parametrize("draw", [frames_over_time, pages_in_memory])
def test_nothing_to_draw_is_refused(draw: object) -> None:
    with pytest.raises(CourseError, match="nothing to draw"):
        draw({})  # type: ignore[operator]
