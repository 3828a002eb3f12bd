"""KV allocators without tensors: the ways to place requests in memory that the vLLM paper compares, and classic ones.

All have the interface of base.Allocator. A contiguous one is a choice of how much to reserve (reservation.py) and of
where to put it (runs.py, buddy.py); the paged one needs neither.
"""

from __future__ import annotations

from collections.abc import Callable

from pagedlab.errors import SimulationError
from pagedlab.simulate.allocators.base import Allocator, Counts, Snapshot, State
from pagedlab.simulate.allocators.buddy import Buddy, Leaf
from pagedlab.simulate.allocators.contiguous import ContiguousAllocator
from pagedlab.simulate.allocators.paged import PagedAllocator
from pagedlab.simulate.allocators.reservation import reserve_max, reserve_oracle, reserve_power_of_two
from pagedlab.simulate.allocators.runs import BestFit, FirstFit, Placement, Run

__all__ = [
    "KINDS",
    "Allocator",
    "BestFit",
    "Buddy",
    "ContiguousAllocator",
    "Counts",
    "FirstFit",
    "Leaf",
    "PagedAllocator",
    "Placement",
    "Run",
    "Snapshot",
    "State",
    "make_allocator",
    "reserve_max",
    "reserve_oracle",
    "reserve_power_of_two",
]

CONTIGUOUS: dict[str, tuple[Callable[[int], Placement], Callable[[int, int, int], int]]] = {
    "reserve-max": (Buddy, reserve_max),
    "power-of-two": (Buddy, reserve_power_of_two),
    "oracle": (Buddy, reserve_oracle),
    "first-fit": (FirstFit, reserve_oracle),
    "best-fit": (BestFit, reserve_oracle),
}
"""Name -> where and how much. The first three are the paper's Orca (Max), Orca (Pow2) and Orca (Oracle)."""

KINDS = (*CONTIGUOUS, "paged")
"""Names that make_allocator knows."""


def make_allocator(kind: str, capacity: int, window: int = 2048, block_size: int = 16) -> Allocator:
    """An empty allocator.

    Args:
        kind: one of KINDS. "first-fit" and "best-fit" know the output length as "oracle" does, so that these three
            differ in the placement only.
        capacity: slots.
        window: longest sequence, of the contiguous ones.
        block_size: slots in a block, of the paged one.
    """
    if kind == "paged":
        return PagedAllocator(capacity, block_size)
    if kind not in CONTIGUOUS:
        raise SimulationError(f"There is no allocator {kind!r}: choose one of {', '.join(KINDS)}.")
    if capacity < 1:
        raise SimulationError(f"A memory needs at least 1 slot, got capacity={capacity}.")
    placement, reservation = CONTIGUOUS[kind]
    return ContiguousAllocator(placement(capacity), reservation, window, kind)
