"""Runs a workload through an allocator and measures what each slot was doing, as in figure 2 of the vLLM paper.

Time is counted in steps. In each step every running request gets one token; requests join and leave between steps
(continuous batching), first come, first served. Nothing happens step by step here: from one event (a request ends, one
arrives) to the next all grow alike, so that a request costs a few operations whatever its length.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from pagedlab.errors import SimulationError
from pagedlab.simulate.allocators import Allocator, ContiguousAllocator, Counts, Snapshot, State
from pagedlab.simulate.workloads import TraceRequest


@dataclass(frozen=True)
class MemoryRun:
    """What a simulation found.

    Attributes:
        allocator: its name
        shares: State -> share of all slots that was in it, averaged over time; they add up to 1
        mean_batch: requests in memory, averaged over time
        steps: steps that the averages cover
        admitted: requests taken in, readmissions after a preemption not counted
        preemptions: times that a request gave its memory back and had to start over
        fragmented: share of the steps in which somebody waited for less than was free in all
        moved_tokens: tokens whose keys and values compaction copied
        written_tokens: tokens written over the same time, for comparison
        maps: (step, state of every slot) at the steps asked for
    """

    allocator: str
    shares: dict[State, float]
    mean_batch: float
    steps: int
    admitted: int
    preemptions: int
    fragmented: float
    moved_tokens: int
    written_tokens: int
    maps: list[tuple[int, Snapshot]] = field(repr=False)


@dataclass(frozen=True, slots=True)
class ExternalFailure:
    """A request that was refused although more was free than it asked for.

    Attributes:
        step: when
        request: index in the workload
        wanted: slots in one run that it needed, after rounding
        free: slots free in all
        largest: the longest free run
    """

    step: int
    request: int
    wanted: int
    free: int
    largest: int


@dataclass(slots=True)
class Waiting:
    """A request at the head of the queue, new or preempted: what it has written so far is its prompt."""

    key: int
    prompt_tokens: int
    output_tokens: int


class MemorySimulation:
    """The loop. Use simulate_memory or find_external_failure unless you want to look inside.

    Args:
        allocator: empty.
        requests: in order of arrival.
        seconds_per_step: turns arrival times into steps; a forward pass of a 13B model on an A100 takes near 0.03.
        warmup: share of the requests that are taken in before averaging starts, since an empty memory is not typical.
        map_steps: increasing steps at which to keep a snapshot.
        compact: slide everything together whenever somebody waits for less than is free in all.
    """

    def __init__(
        self,
        allocator: Allocator,
        requests: Sequence[TraceRequest],
        seconds_per_step: float = 0.03,
        warmup: float = 0.05,
        map_steps: Iterable[int] = (),
        compact: bool = False,
    ) -> None:
        check_arguments(allocator, requests, seconds_per_step, warmup, compact)
        self.allocator = allocator
        self.requests = requests
        self.step = 0
        self.preemptions = 0
        self.wanted = 0
        """Slots that the head of the queue was refused at the last admission; 0 if nobody waits."""
        self._seconds_per_step = seconds_per_step
        self._compact = compact
        self._next = 0
        """Index of the first request that has never been in memory."""
        self._preempted: deque[Waiting] = deque()
        self._running: dict[int, int] = {}
        """Key -> step at which it ends, in order of admission."""
        self._ends: list[tuple[int, int]] = []
        """Heap of (step, key); entries of preempted requests are stale."""
        self._map_steps = deque(map_steps)
        self._maps: list[tuple[int, Snapshot]] = []
        self._measure_from = int(warmup * len(requests))
        self._sums = [0.0] * len(State)
        self._batch_sum = 0.0
        self._measured_steps = 0
        self._fragmented_steps = 0
        self._moved = 0
        self._written = 0

    # ---- running ------------------------------------------------------------------------------------------------

    def run(self, stop: Callable[[MemorySimulation], bool] | None = None) -> MemoryRun:
        """Until the last request is in memory (what follows is only draining), or until `stop(self)` is true."""
        while True:
            self._finish_due()
            self._admit()
            if self._next == len(self.requests) and not self._preempted:
                break
            if stop is not None and stop(self):
                break
            self._advance(self._next_event())
        return self._result()

    @property
    def waiting(self) -> Waiting | None:
        """The head of the queue, if anybody waits now."""
        if self._preempted:
            return self._preempted[0]
        if self._next < len(self.requests) and self._arrival_step(self._next) <= self.step:
            _, prompt, output = self.requests[self._next]
            return Waiting(self._next, prompt, output)
        return None

    @property
    def is_fragmented(self) -> bool:
        """Was somebody refused although as much as it wants is free in all, only not in one run?"""
        return self.allocator.largest_free < self.wanted <= self.allocator.num_free

    # ---- the parts of the loop ----------------------------------------------------------------------------------

    def _finish_due(self) -> None:
        while self._ends and self._ends[0][0] <= self.step:
            end, key = heapq.heappop(self._ends)
            if self._running.get(key) == end:
                del self._running[key]
                self.allocator.free(key)

    def _admit(self) -> None:
        self.wanted = 0
        while (head := self.waiting) is not None:
            if self._take_in(head):
                if self._preempted:
                    self._preempted.popleft()
                else:
                    self._next += 1
                continue
            self.wanted = self.allocator.slots_wanted(head.prompt_tokens, head.output_tokens)
            if not (self._compact and self.is_fragmented and isinstance(self.allocator, ContiguousAllocator)):
                return
            moved = self.allocator.compact()  # and try again
            self._moved += moved if self._measuring else 0
            self.wanted = 0

    def _take_in(self, head: Waiting) -> bool:
        if not self.allocator.allocate(head.key, head.prompt_tokens, head.output_tokens):
            return False
        end = self._running[head.key] = self.step + head.output_tokens
        heapq.heappush(self._ends, (end, head.key))
        self._written += head.prompt_tokens if self._measuring else 0
        return True

    def _next_event(self) -> int:
        """The next step at which anything but growth happens."""
        events = [self._ends[0][0]] if self._ends else []
        if not self.wanted:
            events.append(self._arrival_step(self._next))
        if self._map_steps:
            events.append(max(self.step + 1, self._map_steps[0]))
        return min(events)

    def _advance(self, target: int) -> None:
        """Let everybody grow up to step `target`; who came last makes room if memory runs out on the way."""
        while self.step < target:
            before = self.allocator.counts(self.wanted)
            done = self.allocator.extend_all(target - self.step)
            if done and self._measuring:
                self._measure(done, before, self.allocator.counts(self.wanted))
            self.step += done
            if self.step < target:
                self._preempt_last()
        if self._map_steps and self._map_steps[0] <= self.step:
            self._map_steps.popleft()
            self._maps.append((self.step, self.allocator.snapshot(self.wanted)))

    def _preempt_last(self) -> None:
        """By recompute, as pagedlab's scheduler does: it comes back first, with all that it had written as prompt.

        It is not tried again before the next event; at once it would only be sent away again.
        """
        key, end = self._running.popitem()
        tokens = self.allocator.num_tokens(key)
        self.allocator.free(key)
        self._preempted.appendleft(Waiting(key, tokens, end - self.step))
        self.preemptions += 1

    def _arrival_step(self, index: int) -> int:
        return math.ceil(self.requests[index].arrival / self._seconds_per_step)

    # ---- measuring ----------------------------------------------------------------------------------------------

    @property
    def _measuring(self) -> bool:
        return self._next >= self._measure_from

    def _measure(self, steps: int, before: Counts, after: Counts) -> None:
        """Between two events all counts change in a straight line (within a block, for the paged allocator)."""
        for state, (first, last) in enumerate(zip(before, after, strict=True)):
            self._sums[state] += steps * (first + last) / 2
        self._batch_sum += steps * len(self._running)
        self._written += steps * len(self._running)
        self._measured_steps += steps
        self._fragmented_steps += steps * self.is_fragmented

    def _result(self) -> MemoryRun:
        steps = max(1, self._measured_steps)
        capacity = self.allocator.capacity
        return MemoryRun(
            allocator=self.allocator.name,
            shares={state: self._sums[state] / steps / capacity for state in State},
            mean_batch=self._batch_sum / steps,
            steps=self._measured_steps,
            admitted=self._next,
            preemptions=self.preemptions,
            fragmented=self._fragmented_steps / steps,
            moved_tokens=self._moved,
            written_tokens=self._written,
            maps=self._maps,
        )


def check_arguments(
    allocator: Allocator, requests: Sequence[TraceRequest], seconds_per_step: float, warmup: float, compact: bool
) -> None:
    if len(allocator):
        raise SimulationError("The simulation starts with an empty memory: make a new allocator for each run.")
    if not requests:
        raise SimulationError("There is nothing to simulate: give at least one request.")
    if any(a.arrival > b.arrival for a, b in pairwise(requests)):
        raise SimulationError("Requests must be in order of arrival: sort them by `arrival`.")
    if seconds_per_step <= 0 or not 0 <= warmup < 1:
        raise SimulationError(f"Need seconds_per_step > 0 and 0 <= warmup < 1, got {seconds_per_step} and {warmup}.")
    if compact and not isinstance(allocator, ContiguousAllocator):
        raise SimulationError("Blocks need no compaction: use compact=True with a contiguous allocator.")


def simulate_memory(
    allocator: Allocator,
    requests: Sequence[TraceRequest],
    seconds_per_step: float = 0.03,
    warmup: float = 0.05,
    map_steps: Iterable[int] = (),
    compact: bool = False,
) -> MemoryRun:
    """Run a workload through an empty allocator; arguments as of MemorySimulation.

    The averages run from the end of the warm-up to the moment when the last request is taken in.

    Raises:
        SimulationError: arguments that make no sense, or a request that would not fit even alone.
    """
    return MemorySimulation(allocator, requests, seconds_per_step, warmup, map_steps, compact).run()


def find_external_failure(
    allocator: ContiguousAllocator, requests: Sequence[TraceRequest], warmup: float = 0.0
) -> ExternalFailure | None:
    """Search a workload for the first request that is refused although more is free than it asks for.

    The allocator is left as it was at that moment. None if that never happens.

    Args:
        warmup: share of the requests to let pass before the search begins.
    """
    simulation = MemorySimulation(allocator, requests)
    passed = int(warmup * len(requests))
    simulation.run(stop=lambda loop: loop._next >= passed and loop.is_fragmented)
    head = simulation.waiting
    if head is None or not simulation.is_fragmented:
        return None
    largest = allocator.placement.largest_free
    return ExternalFailure(simulation.step, head.key, simulation.wanted, allocator.num_free, largest)
