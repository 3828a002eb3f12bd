"""Sharing within a family: the block manager's count against the sets of different contents, and against a formula."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from pagedlab.errors import SimulationError
from pagedlab.simulate.sharing import (
    Family,
    Sharing,
    decisive_beams,
    keep_all,
    neutral_beams,
    run_family,
    simulate_sharing,
)
from pagedlab.simulate.workloads import TraceRequest

few = settings(max_examples=80, deadline=None)


def content_counts(prompt: int, steps: list[list[int]], width: int, block_size: int) -> Sharing:
    """The same without reference counts: every token written is unlike any other, so two sequences can share a block
    exactly if they hold the same tokens in it."""
    histories = [[("prompt", i) for i in range(prompt)] for _ in range(width)]
    held = unshared = 0
    for step, parents in enumerate(steps):
        histories = [[*histories[parent], (step, child)] for child, parent in enumerate(parents)]
        blocks = [tuple(h[i : i + block_size]) for h in histories for i in range(0, len(h), block_size)]
        held, unshared = held + len(set(blocks)), unshared + len(blocks)
    return Sharing(held, unshared)


@st.composite
def trees(draw: st.DrawFn) -> tuple[int, list[list[int]]]:
    width = draw(st.integers(1, 5))
    parents = st.lists(st.integers(0, width - 1), min_size=width, max_size=width)
    return width, draw(st.lists(parents, min_size=1, max_size=14))


@few
@given(prompt=st.integers(1, 11), tree=trees(), block_size=st.integers(1, 5))
def test_a_family_holds_exactly_the_different_contents(
    prompt: int, tree: tuple[int, list[list[int]]], block_size: int
) -> None:
    width, steps = tree
    found = run_family(prompt, steps, width, len(steps), block_size)
    expected = content_counts(prompt, steps, width, block_size)
    assert (found.held, found.unshared) == (expected.held, expected.unshared)


@few
@given(tree=trees(), block_size=st.integers(1, 5))
def test_the_books_balance_after_every_step(tree: tuple[int, list[list[int]]], block_size: int) -> None:
    width, steps = tree
    family = Family(7, width, len(steps), block_size)
    for parents in steps:
        family.continue_from(parents)
        family.write_token()
        family.manager.check_integrity()
        assert len(family.sequences) == len(family.manager.tables) == width
    for sequence in family.sequences:
        family.manager.free(sequence)
    assert family.manager.num_free_blocks == family.manager.num_usable_blocks


@few
@given(prompt=st.integers(1, 60), output=st.integers(1, 40), width=st.integers(1, 6), block_size=st.integers(1, 20))
def test_parallel_sampling_saves_the_whole_blocks_of_the_prompt(
    prompt: int, output: int, width: int, block_size: int
) -> None:
    found = simulate_sharing([TraceRequest(0.0, prompt, output)], width, keep_all, block_size)
    tables = sum(width * -(-(prompt + step) // block_size) for step in range(1, output + 1))
    assert found.unshared == tables
    assert found.unshared - found.held == output * (width - 1) * (prompt // block_size)
    assert found.copies == (width - 1 if prompt % block_size else 0)


def test_figures_by_hand() -> None:
    """Prompt of 5 in blocks of 4: one whole block is shared, the second is copied by the first of two to write."""
    found = run_family(5, [[0, 1], [0, 1]], width=2, max_tokens=2, block_size=4)
    assert (found.held, found.unshared, found.copies) == (6, 8, 1)
    assert found.saving == pytest.approx(0.25)
    # Both heirs of sequence 1: sequence 0 leaves, and one copy is made of the block that they both go on in.
    found = run_family(5, [[0, 1], [1, 1]], width=2, max_tokens=2, block_size=4)
    assert (found.held, found.unshared, found.copies) == (6, 8, 2)


def test_one_sequence_shares_nothing_and_an_empty_count_saves_nothing() -> None:
    assert simulate_sharing([TraceRequest(0.0, 40, 20)], 1).saving == 0
    assert Sharing().saving == 0


def test_beams_share_more_than_samples_and_less_if_each_keeps_to_itself() -> None:
    requests = [TraceRequest(0.0, 19, 58)] * 6
    by_stay = [simulate_sharing(requests, 4, decisive_beams(stay)).saving for stay in (0.0, 0.9, 1.0)]
    assert by_stay == sorted(by_stay, reverse=True)
    assert by_stay[-1] == simulate_sharing(requests, 4, keep_all).saving
    assert simulate_sharing(requests, 4, neutral_beams, seed=3) == simulate_sharing(requests, 4, neutral_beams, seed=3)


def test_neutral_beams_choose_evenly() -> None:
    rng = np.random.default_rng(0)
    counts = np.bincount(np.concatenate([neutral_beams(4, rng) for _ in range(2000)]), minlength=4)
    assert abs(counts / 8000 - 0.25).max() < 0.03


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: simulate_sharing([], 2), "at least one request"),
        (lambda: simulate_sharing([TraceRequest(0.0, 3, 3)], 0), "at least 1"),
        (lambda: Family(3, 2, 2).continue_from([0]), "2 sequences need 2 parents"),
        (lambda: Family(3, 2, 2).continue_from([0, 2]), "each 0 to 1"),
        (lambda: decisive_beams(1.5), "probability"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(call, message: str) -> None:
    with pytest.raises(SimulationError, match=message):
        call()
