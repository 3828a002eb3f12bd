"""The one interface of all KV allocators, and the five states that a slot can be in.

A slot holds the keys and values of one token over all layers; an allocator owns `capacity` of them and decides which
request holds which. The states are those of Kwon et al. 2023 (arXiv 2309.06180), section 3.1 and figure 2.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from pagedlab.errors import SimulationError

Snapshot: TypeAlias = npt.NDArray[np.uint8]
"""[capacity]: the State of each slot, in address order."""


class State(IntEnum):
    """What a slot is doing now. Only TOKEN is worth its memory."""

    TOKEN = 0
    """Holds keys and values."""
    RESERVED = 1
    """Empty now; its request will write it before it ends."""
    INTERNAL = 2
    """Given to a request that will never write it."""
    EXTERNAL = 3
    """Of use to nobody: lost to rounding, or free in a run too short for what is wanted."""
    FREE = 4
    """Can be given away."""


class Counts(NamedTuple):
    """Slots in each state, in the order of State; they add up to the capacity."""

    token: int
    reserved: int
    internal: int
    external: int
    free: int


@dataclass(slots=True)
class Sequence:
    """A request in memory.

    Attributes:
        final: tokens that it will hold when it ends
        offset: tokens that it holds now, less the allocator's clock; so letting every request grow changes one number
    """

    final: int
    offset: int


class Allocator(ABC):
    """Who holds which slots. Requests are named by any hashable key.

    A request says at its start how long it will get. Only allocators that are meant to know use it for placing;
    everybody uses it to tell RESERVED from INTERNAL.

    Args:
        capacity: slots in all.
    """

    name: str

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise SimulationError(f"A memory needs at least 1 slot, got capacity={capacity}.")
        self.capacity = capacity
        self._sequences: dict[Hashable, Sequence] = {}
        self._clock = 0
        self._tokens = 0
        self._final = 0
        self._ends: list[tuple[int, int, Hashable]] = []
        """Heap of (clock at which a sequence is complete, tie-breaker, key); entries of sequences gone are stale."""
        self._pushes = 0

    # ---- the four things that one can do ------------------------------------------------------------------------

    def allocate(self, key: Hashable, prompt_tokens: int, output_tokens: int) -> bool:
        """Take in a request, its prompt written. False, and no change, if there is no place for it now.

        Raises:
            SimulationError: key is in memory already, a length is below 1, or it could not even be held alone.
        """
        final = prompt_tokens + output_tokens
        if key in self._sequences:
            raise SimulationError(f"Request {key!r} is in memory already: free it first, or use another key.")
        if prompt_tokens < 1 or output_tokens < 1:
            raise SimulationError(f"Request {key!r} needs at least 1 prompt token and 1 output token.")
        if not self.could_hold(prompt_tokens, output_tokens):
            raise SimulationError(
                f"Request {key!r} of {final} tokens does not fit {self.name} even alone: give the memory more than "
                f"{self.capacity} slots, or the request fewer tokens."
            )
        if not self._place(key, prompt_tokens, final):
            return False
        sequence = self._sequences[key] = Sequence(final, prompt_tokens - self._clock)
        self._tokens += prompt_tokens
        self._final += final
        self._track(key, sequence)
        return True

    def extend(self, key: Hashable, num_tokens: int = 1) -> bool:
        """Let one request write `num_tokens` more. False, and no change, if memory for them is missing.

        Raises:
            SimulationError: no such request, or it would get longer than it said.
        """
        sequence = self._sequence(key)
        if not 0 <= num_tokens <= sequence.final - self.num_tokens(key):
            raise SimulationError(f"Request {key!r} said it ends with {sequence.final} tokens: it cannot grow past.")
        if not self._grow(key, sequence, num_tokens):
            return False
        sequence.offset += num_tokens
        self._tokens += num_tokens
        self._track(key, sequence)
        return True

    def extend_all(self, num_tokens: int) -> int:
        """Let every request write `num_tokens` more, in step, as decoding does.

        Returns:
            how many each has written: fewer than asked if memory ran out on the way.

        Raises:
            SimulationError: a request would get longer than it said.
        """
        if num_tokens < 0 or self._clock + num_tokens > self._next_end():
            raise SimulationError("Some request ends before that: free it first, or extend by fewer tokens.")
        done = self._grow_all(num_tokens)
        self._clock += done
        self._tokens += done * len(self._sequences)
        return done

    def free(self, key: Hashable) -> None:
        """Take back all that a request holds.

        Raises:
            SimulationError: no such request.
        """
        sequence = self._sequence(key)
        self._release(key, sequence)
        self._tokens -= self.num_tokens(key)
        self._final -= sequence.final
        del self._sequences[key]

    # ---- what one can see ---------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Requests in memory."""
        return len(self._sequences)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._sequences

    def num_tokens(self, key: Hashable) -> int:
        return self._sequence(key).offset + self._clock

    @property
    @abstractmethod
    def num_free(self) -> int:
        """Slots that no request holds, wherever they lie."""

    @property
    @abstractmethod
    def largest_free(self) -> int:
        """Free slots that one request could be given together."""

    @abstractmethod
    def slots_wanted(self, prompt_tokens: int, output_tokens: int) -> int:
        """Slots that must be free, and for contiguous allocators free in one run, to take in such a request."""

    @abstractmethod
    def could_hold(self, prompt_tokens: int, output_tokens: int) -> bool:
        """Would an empty memory hold this request to its end?"""

    @abstractmethod
    def counts(self, wanted: int = 0) -> Counts:
        """Slots in each state, without looking at each.

        Args:
            wanted: slots_wanted of the request that waits. Free runs too short for it count as EXTERNAL.
        """

    @abstractmethod
    def snapshot(self, wanted: int = 0) -> Snapshot:
        """The state of every slot; `wanted` as in counts()."""

    # ---- what an allocator must say -----------------------------------------------------------------------------

    @abstractmethod
    def _place(self, key: Hashable, prompt_tokens: int, final: int) -> bool: ...

    @abstractmethod
    def _grow(self, key: Hashable, sequence: Sequence, num_tokens: int) -> bool: ...

    @abstractmethod
    def _grow_all(self, num_tokens: int) -> int: ...

    @abstractmethod
    def _release(self, key: Hashable, sequence: Sequence) -> None: ...

    # ---- bookkeeping --------------------------------------------------------------------------------------------

    def _sequence(self, key: Hashable) -> Sequence:
        try:
            return self._sequences[key]
        except KeyError:
            raise SimulationError(f"No request {key!r} is in memory: allocate it first.") from None

    def _track(self, key: Hashable, sequence: Sequence) -> None:
        """Note what follows from `sequence.offset`, which was set, or changed by other than the clock."""
        self._pushes += 1
        heapq.heappush(self._ends, (sequence.final - sequence.offset, self._pushes, key))

    def _next_end(self) -> float:
        """The clock at which the first sequence is complete; infinity if there is none."""
        while self._ends:
            end, _, key = self._ends[0]
            sequence = self._sequences.get(key)
            if sequence is not None and sequence.final - sequence.offset == end:
                return end
            heapq.heappop(self._ends)
        return float("inf")
