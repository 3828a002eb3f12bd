"""The CPU's allocator, watched: sizes that are known beforehand."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pagedlab.runtime.memory_profile import MemoryProfile, profile_memory


@settings(max_examples=10, deadline=None)
@given(sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=6))
def test_peak_of_tensors_held_together_is_their_sum(sizes: list[int]) -> None:
    kept, profile = profile_memory(lambda: [torch.empty(size, dtype=torch.uint8) for size in sizes])
    assert profile.peak_bytes == sum(tensor.nbytes for tensor in kept) == profile.live_bytes[-1]


@settings(max_examples=10, deadline=None)
@given(sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=6))
def test_peak_of_tensors_held_one_at_a_time_is_the_largest(sizes: list[int]) -> None:
    def one_after_another() -> None:
        for size in sizes:
            tensor = torch.empty(size, dtype=torch.uint8)
            del tensor

    _, profile = profile_memory(one_after_another)
    assert profile.peak_bytes == max(sizes)
    assert profile.live_bytes[-1] == 0


def test_memory_from_before_does_not_count_even_when_it_is_let_go() -> None:
    old = [torch.zeros(1000, dtype=torch.uint8)]

    def replace() -> torch.Tensor:
        old.clear()
        return torch.empty(10, dtype=torch.uint8)

    _, profile = profile_memory(replace)
    assert profile.peak_bytes == profile.live_bytes[-1] == 10


def test_memory_of_an_earlier_profile_does_not_count_when_it_is_let_go() -> None:
    """A garbage collection in the middle of a run must not make its peak look lower."""
    old = [profile_memory(lambda: torch.zeros(1000, dtype=torch.uint8))[0]]
    old_clear = old.clear
    _, profile = profile_memory(lambda: (old_clear(), torch.empty(10, dtype=torch.uint8))[1])
    assert profile.peak_bytes == profile.live_bytes[-1] == 10


def test_scratch_inside_a_kernel_is_seen() -> None:
    """A dispatcher hook sees the results of operators alone; the fused attention kernel's own buffers are here too."""
    query = torch.randn(1, 4, 512, 64)
    output, profile = profile_memory(lambda: torch.nn.functional.scaled_dot_product_attention(query, query, query))
    assert profile.peak_bytes > output.nbytes


def test_times_run_forward_from_zero() -> None:
    _, profile = profile_memory(lambda: [torch.empty(10) + 1 for _ in range(5)])
    assert profile.seconds[0] == 0
    assert profile.seconds == sorted(profile.seconds)
    assert len(profile.seconds) == len(profile.live_bytes)


def test_nothing_allocated_is_a_peak_of_zero() -> None:
    result, profile = profile_memory(lambda: 7)
    assert result == 7
    assert profile.peak_bytes == 0
    assert MemoryProfile([], []).peak_bytes == 0
