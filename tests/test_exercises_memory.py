"""Chapters 04 to 06: what the exercises try answers on is what readers see, and is right where it says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagedlab.course.drivers import ch04, ch05, ch06
from pagedlab.course.questions.ch06_step_mistakes import FAULTS, prefill_by
from pagedlab.simulate import allocators
from pagedlab.simulate.reference_string import count_faults

SOLUTIONS = Path(__file__).parents[1] / "solutions"
STRINGS = st.lists(st.integers(0, 5), max_size=30)


def given_code(name: str, question: str) -> dict[str, Any]:
    """What the given cell of a question defines."""
    cells = nbformat.read(SOLUTIONS / f"{name}.ipynb", 4).cells
    names: dict[str, Any] = {}
    exec(next(cell.source for cell in cells if cell.id == f"{question}-given"), names)
    return names


SHOWN = given_code("05_virtual_memory", "ch05-q4")
PREFILL = given_code("06_chunked_prefill", "ch06-q4")["prefill_as_found"]


@pytest.mark.parametrize("policy", ch05.POLICIES)
@given(pages=STRINGS, num_frames=st.integers(1, 5))
@settings(deadline=None, max_examples=60)
def test_policies_are_tried_as_they_are_shown_and_beside_right_ones(
    policy: str, pages: list[int], num_frames: int
) -> None:
    as_found, right = ch05.POLICIES[policy]
    assert as_found(pages, num_frames) == SHOWN[f"{policy}_as_found"](pages, num_frames)
    assert right(pages, num_frames) == count_faults(pages, num_frames, policy)


@given(actions=st.lists(st.one_of(st.sampled_from([1, 2, 4, 8]), st.integers(-5, -1)), max_size=30))
@settings(deadline=None)
def test_histories_are_replayed_as_pagedlab_places_them(actions: list[int]) -> None:
    """A positive number is a size to take, a negative one says which of the runs in memory is given back."""
    for memory, oracle in (
        (ch04.FirstFit(), allocators.FirstFit(ch04.CAPACITY)),
        (ch04.Buddy(), allocators.Buddy(ch04.CAPACITY)),
    ):
        starts: list[int] = []
        for action in actions:
            if action > 0:
                run = oracle.take(action)
                assert memory.take(action) == (run.start if run else None)
                starts += [run.start] if run else []
            elif starts:
                start = starts.pop(action % len(starts))
                memory.give(start)
                oracle.give(start)


@given(prompt=st.lists(st.integers(1, 999), min_size=1, max_size=80), chunk_size=st.integers(1, 70))
@settings(deadline=None)
def test_the_prefill_that_is_shown_has_the_four_faults_that_are_named(prompt: list[int], chunk_size: int) -> None:
    def named_faults(*arguments: Any) -> Any:
        return prefill_by(*arguments, faults=tuple(FAULTS))

    assert ch06.replay_prefill(PREFILL, prompt, chunk_size) == ch06.replay_prefill(named_faults, prompt, chunk_size)
    in_chunks = ch06.replay_prefill(prefill_by, prompt, chunk_size)
    in_one_pass = ch06.replay_prefill(prefill_by, prompt, len(prompt))
    assert in_chunks[-1] == in_one_pass[-1]
