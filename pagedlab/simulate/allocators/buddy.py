"""The buddy allocator: blocks of powers of two that split in halves and merge with their buddy (Knowlton 1965).

The vLLM paper places Orca's runs with one (arXiv 2309.06180, section 6.1). It finds and merges blocks fast, and pays
with memory: a request for 80 is given 128, and two free neighbours that are not buddies never become one block.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import NamedTuple

from pagedlab.simulate.allocators.reservation import round_up_to_power_of_two
from pagedlab.simulate.allocators.runs import Run, check_size, taken_size


class Leaf(NamedTuple):
    """A block that is not split: free, or in use."""

    start: int
    size: int
    free: bool


class Buddy:
    """Powers of two only. A block of size s starts at a multiple of s, and its buddy is at `start XOR s`.

    A capacity that is no power of two is cut, once, into the largest aligned blocks that it holds (15,728 = 8,192 +
    4,096 + 2,048 + ...); these never merge with each other, since the buddy of each lies partly outside.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.num_free = capacity
        self.steps = 0
        self.used: dict[int, int] = {}
        """Start of each block in use -> its size, a power of two."""
        self._free: list[list[int]] = [[] for _ in range(capacity.bit_length())]
        """Order k -> starts of the free blocks of size 2**k, lowest first."""
        start = 0
        for order in reversed(range(len(self._free))):
            if capacity >> order & 1:
                self._free[order].append(start)
                start += 1 << order

    def granted(self, size: int) -> int:
        return round_up_to_power_of_two(size)

    def take(self, size: int) -> Run | None:
        """The lowest block of the smallest order that is large enough, halved until it is just large enough."""
        check_size(size)
        wanted = (size - 1).bit_length()
        order = next((k for k in range(wanted, len(self._free)) if self._free[k]), None)
        if order is None:
            self.steps += 1
            return None
        start = self._free[order].pop(0)
        self.steps += 1 + order - wanted
        while order > wanted:
            order -= 1
            insort(self._free[order], start + (1 << order))  # keep the lower half, free the upper one
        self.used[start] = 1 << order
        self.num_free -= 1 << order
        return Run(start, 1 << order)

    def give(self, start: int) -> None:
        """Free a block, and merge it with its buddy for as long as that is free and whole."""
        size = taken_size(self.used, start)
        self.num_free += size
        order = size.bit_length() - 1
        self.steps += 1
        while remove(self._free[order], start ^ (1 << order)):
            start &= ~(1 << order)
            order += 1
            self.steps += 1
        insort(self._free[order], start)

    def free_runs(self) -> list[Run]:
        """The free blocks. Two that touch count as two: one request cannot have both."""
        return sorted(Run(start, 1 << order) for order, starts in enumerate(self._free) for start in starts)

    def leaves(self) -> list[Leaf]:
        """All blocks that are not split, in address order: the leaves of the tree of halves."""
        free = [Leaf(start, size, True) for start, size in self.free_runs()]
        return sorted(free + [Leaf(start, size, False) for start, size in self.used.items()])

    @property
    def largest_free(self) -> int:
        return next((1 << k for k in reversed(range(len(self._free))) if self._free[k]), 0)


def remove(ordered: list[int], value: int) -> bool:
    """Take `value` out of a sorted list; False if it is not in it."""
    index = bisect_left(ordered, value)
    if index == len(ordered) or ordered[index] != value:
        return False
    del ordered[index]
    return True
