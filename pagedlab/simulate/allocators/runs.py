"""Where in memory a run of slots goes: first fit and best fit, over the list of free runs.

A placement knows nothing of tokens: it hands out runs of addresses and takes them back (Knuth, The Art of Computer
Programming, volume 1, section 2.5). Its unit may be slots, MB or anything else.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple, Protocol

from pagedlab.errors import SimulationError


class Run(NamedTuple):
    """Addresses start .. start + size - 1."""

    start: int
    size: int

    @property
    def end(self) -> int:
        return self.start + self.size


class Placement(Protocol):
    """What every placement can do.

    Attributes:
        steps: runs looked at, split or merged so far; a count of work that no clock disturbs
    """

    capacity: int
    num_free: int
    steps: int

    def granted(self, size: int) -> int:
        """What a request for `size` is really given: the same, or more after rounding."""
        ...

    def take(self, size: int) -> Run | None:
        """A run of granted(size) addresses, or None if no free run is long enough."""
        ...

    def give(self, start: int) -> None:
        """Take back the run that starts there."""
        ...

    def free_runs(self) -> list[Run]:
        """In address order. Neighbours are runs of their own where they cannot be used as one."""
        ...

    @property
    def largest_free(self) -> int: ...


class FirstFit:
    """The lowest free run that is long enough; what is left of it stays free."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.num_free = capacity
        self.steps = 0
        self.used: dict[int, int] = {}
        """Start of each run in use -> its size."""
        self._starts = [0]
        self._sizes = [capacity]

    def granted(self, size: int) -> int:
        return size

    def take(self, size: int) -> Run | None:
        check_size(size)
        index = self._choose(size)
        if index is None:
            return None
        start, left = self._starts[index], self._sizes[index] - size
        if left:
            self._starts[index], self._sizes[index] = start + size, left
        else:
            del self._starts[index], self._sizes[index]
        self.used[start] = size
        self.num_free -= size
        return Run(start, size)

    def give(self, start: int) -> None:
        size = taken_size(self.used, start)
        self.num_free += size
        index = bisect_left(self._starts, start)
        if index < len(self._starts) and self._starts[index] == start + size:  # merge with the free run after it
            size += self._sizes[index]
            del self._starts[index], self._sizes[index]
        if index and self._starts[index - 1] + self._sizes[index - 1] == start:  # and with the one before it
            self._sizes[index - 1] += size
        else:
            self._starts.insert(index, start)
            self._sizes.insert(index, size)
        self.steps += 1

    def free_runs(self) -> list[Run]:
        return [Run(start, size) for start, size in zip(self._starts, self._sizes, strict=True)]

    @property
    def largest_free(self) -> int:
        return max(self._sizes, default=0)

    def compact(self) -> dict[int, int]:
        """Slide all runs in use down to the bottom, in order.

        Returns:
            old start -> new start, of the runs that moved: whoever holds them must copy their content.
        """
        moves, top, used = {}, 0, {}
        for start, size in sorted(self.used.items()):
            if start != top:
                moves[start] = top
            used[top] = size
            top += size
        self.used = used
        self._starts, self._sizes = ([top], [self.capacity - top]) if top < self.capacity else ([], [])
        return moves

    def _choose(self, size: int) -> int | None:
        """Index of the free run to cut from."""
        for index, available in enumerate(self._sizes):
            if available >= size:
                self.steps += index + 1
                return index
        self.steps += len(self._sizes)
        return None


class BestFit(FirstFit):
    """The shortest free run that is long enough: it leaves the smallest rest."""

    def _choose(self, size: int) -> int | None:
        self.steps += len(self._sizes)
        fitting = [(available, index) for index, available in enumerate(self._sizes) if available >= size]
        return min(fitting)[1] if fitting else None


def check_size(size: int) -> None:
    if size < 1:
        raise SimulationError(f"A run has at least 1 address, got size={size}.")


def taken_size(used: dict[int, int], start: int) -> int:
    """Size of the run in use that starts there, which is then no longer in use."""
    try:
        return used.pop(start)
    except KeyError:
        raise SimulationError(f"No run in use starts at {start}: give back what take() returned, once.") from None
