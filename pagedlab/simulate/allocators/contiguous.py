"""One run a request, reserved at its start: how servers kept the KV cache before paging."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

import numpy as np

from pagedlab.errors import SimulationError
from pagedlab.simulate.allocators.base import Allocator, Counts, Sequence, Snapshot, State
from pagedlab.simulate.allocators.reservation import Reservation
from pagedlab.simulate.allocators.runs import FirstFit, Placement


class Holding(NamedTuple):
    """Where a request lies: `reserved` of the `granted` slots from `start` on are for it, the rest is rounding."""

    start: int
    reserved: int
    granted: int


class ContiguousAllocator(Allocator):
    """Two choices that do not depend on each other: how much to reserve, and where to put it.

    Args:
        placement: an empty FirstFit, BestFit or Buddy; its capacity is the memory.
        reservation: from reservation.py.
        window: the longest sequence that is served, prompt and output together.
    """

    def __init__(self, placement: Placement, reservation: Reservation, window: int, name: str = "contiguous") -> None:
        super().__init__(placement.capacity)
        self.name = name
        self.placement = placement
        self.window = window
        self._reservation = reservation
        self.holdings: dict[Hashable, Holding] = {}
        self._reserved = 0
        self._granted = 0

    def slots_wanted(self, prompt_tokens: int, output_tokens: int) -> int:
        if prompt_tokens + output_tokens > self.window:
            raise SimulationError(
                f"A request of {prompt_tokens + output_tokens} tokens is longer than the window of {self.window}: "
                "shorten it, or set a larger window."
            )
        return self.placement.granted(self._reservation(prompt_tokens, output_tokens, self.window))

    def could_hold(self, prompt_tokens: int, output_tokens: int) -> bool:
        wanted = self.slots_wanted(prompt_tokens, output_tokens)
        if isinstance(self.placement, FirstFit):
            return wanted <= self.capacity
        return wanted <= 1 << (self.capacity.bit_length() - 1)  # a buddy's largest block

    @property
    def num_free(self) -> int:
        return self.placement.num_free

    @property
    def largest_free(self) -> int:
        return self.placement.largest_free

    def counts(self, wanted: int = 0) -> Counts:
        free = self.num_free
        if self.placement.largest_free < wanted:
            stranded = free
        else:
            stranded = sum(size for _, size in self.placement.free_runs() if size < wanted) if wanted else 0
        return Counts(
            token=self._tokens,
            reserved=self._final - self._tokens,
            internal=self._reserved - self._final,
            external=self._granted - self._reserved + stranded,
            free=free - stranded,
        )

    def snapshot(self, wanted: int = 0) -> Snapshot:
        states = np.full(self.capacity, State.FREE, dtype=np.uint8)
        for start, size in self.placement.free_runs():
            if size < wanted:
                states[start : start + size] = State.EXTERNAL
        for key, (start, reserved, granted) in self.holdings.items():
            states[start : start + granted] = State.EXTERNAL
            states[start : start + reserved] = State.INTERNAL
            states[start : start + self._sequences[key].final] = State.RESERVED
            states[start : start + self.num_tokens(key)] = State.TOKEN
        return states

    def compact(self) -> int:
        """Slide all requests to the bottom of the memory, so that all that is free is one run.

        Returns:
            tokens whose keys and values had to be copied; slots that are reserved but empty need no copy.

        Raises:
            SimulationError: a buddy's blocks cannot slide: their places are fixed by their size.
        """
        if not isinstance(self.placement, FirstFit):
            raise SimulationError("Only first fit and best fit can be compacted: a buddy's blocks have fixed places.")
        moves = self.placement.compact()
        moved = 0
        for key, holding in self.holdings.items():
            if holding.start in moves:
                moved += self.num_tokens(key)
                self.holdings[key] = holding._replace(start=moves[holding.start])
        return moved

    def _place(self, key: Hashable, prompt_tokens: int, final: int) -> bool:
        reserved = self._reservation(prompt_tokens, final - prompt_tokens, self.window)
        run = self.placement.take(reserved)
        if run is None:
            return False
        self.holdings[key] = Holding(run.start, reserved, run.size)
        self._reserved += reserved
        self._granted += run.size
        return True

    def _grow(self, key: Hashable, sequence: Sequence, num_tokens: int) -> bool:
        return True  # into its own run

    def _grow_all(self, num_tokens: int) -> int:
        return num_tokens

    def _release(self, key: Hashable, sequence: Sequence) -> None:
        start, reserved, granted = self.holdings.pop(key)
        self.placement.give(start)
        self._reserved -= reserved
        self._granted -= granted
