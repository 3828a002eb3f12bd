"""Batching without a model: a workload under static, dynamic and continuous batching, on the clock of a cost model.

Continuous batching is the engine's own: its Scheduler and BlockManager decide every step, and only the forward pass is
replaced, by CostModel.seconds. Static and dynamic batching are the padded kind: a batch is a rectangle, prompts are
padded to the longest, and every row is computed until the longest answer is complete.

- static: waits for `batch_size` requests (the last batch takes what is left).
- dynamic: starts when `batch_size` requests wait or the oldest has waited `timeout` seconds, whichever is first (the
  "dynamic batcher" of model servers such as NVIDIA Triton, with its queue delay).
- continuous: Orca's iteration-level scheduling (Yu et al. 2022, OSDI), chunked prefill included.

Tokens are streamed as they are computed, by all three. Padded batches are given the memory that they need.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import numpy as np

from pagedlab.errors import SimulationError
from pagedlab.model_authoring.block_manager import BlockManager
from pagedlab.model_authoring.request import Request
from pagedlab.model_authoring.scheduler import Schedule, Scheduler
from pagedlab.runtime.batch import StepResult
from pagedlab.sampling_params import SamplingParams
from pagedlab.simulate.batching_run import BatchingRun
from pagedlab.simulate.cost_model import CostModel
from pagedlab.simulate.workloads import TraceRequest

SHORTEST_JUMP = 3
"""Steps: fewer are not worth the look ahead."""


# ---- padded batches ----------------------------------------------------------------------------------------------


def simulate_static(requests: Sequence[TraceRequest], cost: CostModel, batch_size: int) -> BatchingRun:
    """Full batches in order of arrival, each run to its longest answer.

    Raises:
        SimulationError: batch_size below 1, or the workload is empty or out of order.
    """
    return _simulate_padded("static", requests, cost, batch_size, float("inf"))


def simulate_dynamic(requests: Sequence[TraceRequest], cost: CostModel, batch_size: int, timeout: float) -> BatchingRun:
    """Batches of up to `batch_size`, closed at the latest when the oldest has waited `timeout` seconds.

    Raises:
        SimulationError: batch_size below 1, a negative timeout, or the workload is empty or out of order.
    """
    return _simulate_padded("dynamic", requests, cost, batch_size, timeout)


def _simulate_padded(
    method: str, requests: Sequence[TraceRequest], cost: CostModel, batch_size: int, timeout: float
) -> BatchingRun:
    if batch_size < 1 or timeout < 0:
        raise SimulationError(f"Give batch_size 1 or more and timeout 0 or more, got {batch_size} and {timeout}.")
    run = BatchingRun.empty(method, requests)
    now = requests[0].arrival
    first = 0
    while first < len(requests):
        full = first + batch_size - 1
        closes = requests[full].arrival if full < len(requests) else float("inf")
        if closes == float("inf") and timeout == float("inf"):
            closes = requests[-1].arrival  # the last batch: nobody else will come
        now = max(now, min(closes, requests[first].arrival + timeout))
        last = first + 1
        while last < len(requests) and last < first + batch_size and requests[last].arrival <= now:
            last += 1
        now = _run_padded(run, cost, range(first, last), now)
        first = last
    return run


def _run_padded(run: BatchingRun, cost: CostModel, members: range, start: float) -> float:
    """One rectangle: a prefill of the padded prompts, then decodes until the longest answer is complete."""
    batch = [run.requests[index] for index in members]
    size, width = len(batch), max(request.prompt_tokens for request in batch)
    outputs = np.array([request.output_tokens for request in batch])
    rows, pairs = size * width, size * width * (width + 1) // 2
    prefill = float(cost.seconds_of(rows, size, size, pairs, rows))
    run.steps.add(start, prefill, rows, size, size)
    passed = np.arange(1, outputs.max())  # in step i everybody's token number i is read, and number i + 1 made
    context = size * (width + passed)
    decodes = np.asarray(cost.seconds_of(size, size, size, context, context) + np.zeros(len(passed)))
    came = start + prefill + np.concatenate([[0.0], np.cumsum(decodes)])
    if len(passed):
        live = size - np.searchsorted(np.sort(outputs), passed, side="right")
        run.steps.extend(start + prefill, decodes, size, size, live.tolist(), [0] * len(passed))
    run.started[members] = start
    run.first_token[members] = came[0]
    run.finished[members] = came[outputs - 1]
    run.released[members] = came[-1]
    return float(came[-1])


# ---- continuous batching -----------------------------------------------------------------------------------------


def simulate_continuous(
    requests: Sequence[TraceRequest],
    cost: CostModel,
    *,
    max_num_seqs: int = 64,
    max_num_batched_tokens: int = 512,
    num_blocks: int = 100_000,
    block_size: int = 16,
    policy: str = "fcfs",
    scheduler_cls: type[Scheduler] = Scheduler,
    jump: bool = True,
) -> BatchingRun:
    """The engine's scheduler and block manager on the clock of a cost model.

    Args:
        requests: in order of arrival; the lengths of their outputs are hidden from a policy that does not look at
            max_tokens.
        max_num_seqs, max_num_batched_tokens, num_blocks, block_size, policy: as in EngineConfig. Prompts share
            nothing, so prefix caching is off.
        scheduler_cls: your own policy.
        jump: take steps in bulk while the scheduler's decision cannot change (see `_Simulation.steps_alike`). The
            result is the same, sooner. A scheduler of your own is asked at every step.

    Raises:
        SimulationError: a request can never fit the pool, or the workload is empty or out of order.
        ConfigError: the limits contradict each other.
    """
    run = BatchingRun.empty("continuous", requests)
    manager = BlockManager(num_blocks, block_size, enable_prefix_caching=False)
    longest = max(request.prompt_tokens + request.output_tokens for request in requests)
    if manager.blocks_for(longest) > manager.num_usable_blocks:
        raise SimulationError(
            f"A request of {longest} tokens needs {manager.blocks_for(longest)} blocks and {manager.num_usable_blocks} "
            "exist: raise num_blocks."
        )
    scheduler = scheduler_cls(manager, max_num_seqs, max_num_batched_tokens, policy)
    with _no_garbage_collection():
        _Simulation(run, cost, scheduler, jump and scheduler_cls is Scheduler).run_all()
    return run


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Millions of small objects are made, none in a cycle: looking for cycles would take a quarter of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@cache
def _params(max_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)


class _Simulation:
    """The loop of LLMEngine with the model left out."""

    def __init__(self, run: BatchingRun, cost: CostModel, scheduler: Scheduler, jump: bool) -> None:
        self.run = run
        self.cost = cost
        self.scheduler = scheduler
        self.manager = scheduler.block_manager
        self.jump = jump
        self.now = run.requests[0].arrival
        self.next = 0
        """Index of the next request that the scheduler has not been told of."""
        # First come, first served never looks past the head of its queue. As many as a step can admit are enough.
        self.deep_enough = scheduler.max_num_seqs + 1 if jump and scheduler.policy == "fcfs" else len(run.requests)

    def run_all(self) -> None:
        scheduler = self.scheduler
        while scheduler.has_unfinished or self.next < len(self.run.requests):
            self.feed()
            if not scheduler.has_unfinished:
                self.now = self.run.requests[self.next].arrival
                continue
            schedule = scheduler.schedule()
            if schedule.is_empty and not schedule.preempted:
                raise SimulationError("The scheduler chose nothing although requests wait: check scheduler_cls.")
            alike = self.step(schedule)
            if alike and self.jump:
                self.skip()
        self.run.num_preemptions = scheduler.num_preemptions

    def feed(self) -> None:
        """Tell the scheduler of everybody who has arrived."""
        requests = self.run.requests
        while (
            self.next < len(requests)
            and requests[self.next].arrival <= self.now
            and len(self.scheduler.waiting) < self.deep_enough
        ):
            wanted = requests[self.next]
            name, prompt = str(self.next), [0] * wanted.prompt_tokens
            self.scheduler.add(Request(name, prompt, _params(wanted.output_tokens), arrival=self.next))
            self.next += 1

    def step(self, schedule: Schedule) -> bool:
        """One step by the book. True if it only decoded, for all who run, and nobody came or went."""
        run, scheduler, items = self.run, self.scheduler, schedule.items
        rows = pairs = context = sampled = 0
        for item in items:
            new, end = item.num_tokens, item.start + item.num_tokens
            rows += new
            context += end
            pairs += end if new == 1 else new * item.start + new * (new + 1) // 2
            sampled += len(item.sampled)
        for request in schedule.admitted:
            if np.isnan(run.started[request.arrival]):
                run.started[request.arrival] = self.now
        seconds = float(self.cost.seconds_of(rows, len(items), sampled, pairs, context))
        used = self.manager.num_usable_blocks - self.manager.num_free_blocks
        run.steps.add(self.now, seconds, rows, len(items), len(items), used)
        self.now += seconds
        ended = False
        for request in scheduler.update(schedule, StepResult([0] * sampled)):
            if request.num_output_tokens == 1:
                run.first_token[request.arrival] = self.now
            if request.is_finished:
                ended = True
                run.finished[request.arrival] = run.released[request.arrival] = self.now
        changed = ended or bool(schedule.admitted or schedule.preempted)
        return not changed and rows == sampled == len(scheduler.running)

    def skip(self) -> None:
        """Take at once the steps that `steps_alike` promises; the requests and their blocks end up as if one by one."""
        count = self.steps_alike()
        if count < SHORTEST_JUMP:
            return
        running, manager = self.scheduler.running, self.manager
        size = len(running)
        before = sum(request.num_tokens for request in running)
        context = before + size * np.arange(count)
        seconds = np.asarray(self.cost.seconds_of(size, size, size, context, context))
        if self.arrivals_matter() and self.next < len(self.run.requests):
            begins = np.cumsum(np.concatenate([[self.now], seconds[:-1]]))
            count = int(np.searchsorted(begins, self.run.requests[self.next].arrival, side="left"))
            if count == 0:
                return
        # The block of a step's token is taken before the step.
        lengths = np.array([request.num_tokens for request in running])[:, None] + np.arange(count)
        used = (-(-lengths // manager.block_size)).sum(axis=0)
        used = used[:count]
        self.now = self.run.steps.extend(self.now, seconds[:count], size, size, [size] * count, used.tolist())
        for request in running:
            granted = manager.allocate(request, request.num_computed_tokens + count)
            assert granted, "steps_alike counted the blocks"
            request.num_computed_tokens += count
            request.token_ids.extend([0] * count)
            manager.mark_computed(request)

    def steps_alike(self) -> int:
        """Steps from now on that must be the last one again: a token for everybody who runs, and nothing else.

        The scheduler decides by what is known of the requests, by seats and budget, and by free blocks. After a step of
        pure decoding in which nobody was admitted, seats and budget stay as they are until somebody finishes, and free
        blocks only become fewer: who could not be admitted cannot be. So the decision changes only when a request
        reaches its last token, when blocks run out, or, where a seat is free and nobody waits, at the next arrival
        (`skip` looks at that, for it needs the times).
        """
        running = self.scheduler.running
        count = min(request.max_tokens - request.num_output_tokens for request in running) - 1
        free = self.manager.num_free_blocks
        while count >= SHORTEST_JUMP:
            grown = (self.manager.num_blocks_to_take(r, r.num_computed_tokens + count) for r in running)
            if sum(grown) <= free:
                break
            count //= 2
        return max(count, 0)

    def arrivals_matter(self) -> bool:
        """Could somebody who arrives now be admitted before somebody finishes?"""
        scheduler = self.scheduler
        if len(scheduler.running) >= scheduler.max_num_seqs:
            return False
        return not scheduler.waiting or scheduler.policy != "fcfs"
