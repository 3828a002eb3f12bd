"""Scheduler: which tokens are computed in the next step.

There is no prefill step and no decode step. Each request has tokens that are known and tokens that are computed; a step
lets requests catch up within one token budget, those that run first, then those that wait, the last one cut into a
chunk. A decode is a request that lags by one token. (vLLM V1's unified scheduler; chunked prefill: Agrawal et al. 2023,
arXiv 2308.16369; iteration-level scheduling: Yu et al., OSDI 2022.)
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pagedlab.errors import ConfigError
from pagedlab.model_authoring.block_manager import BlockManager
from pagedlab.model_authoring.request import Request, RequestStatus
from pagedlab.runtime.batch import BlockOps, StepResult
from pagedlab.trace import Tracer

INVALID_STATES = (
    "The model returned hidden states that are no numbers: check its weights, and try dtype='float32' if it ran in "
    "16 bits."
)


@dataclass(slots=True)
class ScheduledRequest:
    """Compute tokens `start .. start + num_tokens - 1` of `request` in this step.

    `sampled` are the sequences that get a token from it: none for a chunk that is not the last, the request itself
    otherwise, and with it the forks that wait for the prompt (n completions are sampled from one row of logits).
    """

    request: Request
    start: int
    num_tokens: int
    sampled: list[Request]

    @property
    def end(self) -> int:
        return self.start + self.num_tokens


@dataclass(slots=True)
class Schedule:
    """One step: what to compute, the block moves to make first, who began to run and who lost its blocks."""

    items: list[ScheduledRequest]
    ops: BlockOps
    admitted: list[Request] = field(default_factory=list)
    preempted: list[Request] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(item.num_tokens for item in self.items)

    @property
    def is_empty(self) -> bool:
        return not self.items


class Scheduler:
    """Keeps the waiting and the running requests, and decides each step.

    A policy is a sort key: subclass and override `sort_key` to make your own (`LLM(scheduler_cls=...)`).

    Args:
        block_manager: grants and takes back KV blocks.
        max_num_seqs: most sequences that run at once.
        max_num_batched_tokens: token budget of a step.
        policy: fcfs, priority or sjf.
        preemption_mode: recompute or swap.
        long_prefill_token_threshold: most tokens of one request in a step; 0 sets no limit.
        tracer: receives preempt events.
    """

    def __init__(
        self,
        block_manager: BlockManager,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        policy: str = "fcfs",
        preemption_mode: str = "recompute",
        long_prefill_token_threshold: int = 0,
        tracer: Tracer | None = None,
    ) -> None:
        if max_num_batched_tokens < max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens ({max_num_batched_tokens}) must be at least max_num_seqs ({max_num_seqs}), "
                "so that every running sequence can get its next token in a step: raise the first or lower the second."
            )
        self.block_manager = block_manager
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.policy = policy
        self.preemption_mode = preemption_mode
        self.max_tokens_per_request = long_prefill_token_threshold or max_num_batched_tokens
        self.tracer = tracer or Tracer()
        self.waiting: list[Request] = []
        """Ordered by `sort_key`."""
        self.running: list[Request] = []
        """In order of admission."""
        self.num_preemptions = 0

    # ---- policy -------------------------------------------------------------------------------------------------

    def sort_key(self, request: Request) -> Any:
        """Smaller is sooner. The waiting request with the smallest key is admitted next, and when blocks run out the
        running request with the largest key is preempted. The key of a request must not change while it waits."""
        if self.policy == "priority":
            return (request.priority, request.arrival, request.index)
        if self.policy == "sjf":
            return (request.max_total_tokens, request.arrival, request.index)
        return (request.arrival, request.index)

    # ---- requests come and go -----------------------------------------------------------------------------------

    @property
    def has_unfinished(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, request: Request) -> None:
        insort(self.waiting, request, key=self.sort_key)

    def finish(self, request: Request, reason: str, stop_reason: int | str | None = None) -> None:
        """End a request at any moment between steps and free all it holds; its unborn forks end with it."""
        if request.is_finished:
            return
        request.finish(reason, stop_reason)
        self._remove(request)

    def fork(self, parent: Request, child: Request) -> None:
        """Let `child`, whose tokens start with `parent`'s computed ones, go on from parent's blocks.

        A parent that runs shares its blocks at once, and the child runs beside it. A parent that lost its blocks has
        nothing to share, and where every seat is taken nobody can sit down: then the child waits, and computes its
        tokens (or hits them in the prefix cache).
        """
        has_seat = parent.num_reserved_seats > 0 or self._num_free_seats() > 0
        parent.num_reserved_seats = max(0, parent.num_reserved_seats - 1)
        if parent.status is RequestStatus.RUNNING and has_seat:
            self.block_manager.fork(parent, child)
            child.num_computed_tokens = parent.num_computed_tokens
            child.status = RequestStatus.RUNNING
            self.running.insert(self.running.index(parent) + 1, child)
        else:
            self.add(child)

    # ---- one step -----------------------------------------------------------------------------------------------

    def schedule(self) -> Schedule:
        """Decide one step. Requests in it own all the slots they will write."""
        items: dict[Request, ScheduledRequest] = {}
        admitted: list[Request] = []
        preempted: list[Request] = []
        allocate = self.block_manager.allocate
        budget = self.max_num_batched_tokens
        index = 0
        while index < len(self.running) and budget > 0:
            request = self.running[index]
            num_new = min(request.num_uncomputed_tokens, self.max_tokens_per_request, budget)
            while num_new and not allocate(request, request.num_computed_tokens + num_new):
                victim = max(self.running, key=self.sort_key)
                if victim in items:
                    budget += items.pop(victim).num_tokens
                if self.running.index(victim) < index:
                    index -= 1
                self._preempt(victim)
                preempted.append(victim)
                if victim is request:
                    break
            else:
                if num_new:
                    items[request] = self._item(request, num_new)
                    budget -= num_new
                index += 1
        if not (preempted and items):
            # A step that takes blocks away admits nobody, if one runs on: those blocks are for the ones that run.
            admitted = self._admit_waiting(items, budget)
        while not items and not self._awaits_tokens() and self._preempt_paused(preempted):
            admitted += self._admit_waiting(items, budget)
        return Schedule(list(items.values()), self.block_manager.take_ops(), admitted, preempted)

    @staticmethod
    def _item(request: Request, num_new: int) -> ScheduledRequest:
        start = request.num_computed_tokens
        catches_up = num_new == request.num_uncomputed_tokens
        sampled = [request, *request.pending_forks] if catches_up and not request.pooling else []
        return ScheduledRequest(request, start, num_new, sampled)

    def _admit_waiting(self, items: dict[Request, ScheduledRequest], budget: int) -> list[Request]:
        """Let waiting requests run while budget, seats and blocks last; the last one may get a chunk only."""
        admitted: list[Request] = []
        if not self.waiting:
            return admitted
        seats = self._num_free_seats()
        while budget > 0:
            request = next((waiting for waiting in self.waiting if not waiting.is_paused), None)
            if request is None:
                break
            seats -= 1 + request.num_reserved_seats
            if seats < 0 or not self._take_blocks(request):
                break
            num_new = min(request.num_uncomputed_tokens, self.max_tokens_per_request, budget)
            if num_new:
                granted = self.block_manager.allocate(request, request.num_computed_tokens + num_new)
                assert granted, "can_hold promised the blocks of all known tokens"
                items[request] = self._item(request, num_new)
                budget -= num_new
            self.waiting.remove(request)
            self.running.append(request)
            request.status = RequestStatus.RUNNING
            admitted.append(request)
        return admitted

    def _num_free_seats(self) -> int:
        """Sequences that may still begin to run."""
        return self.max_num_seqs - sum(1 + request.num_reserved_seats for request in self.running)

    def _awaits_tokens(self) -> bool:
        """Is a step in flight whose tokens will let somebody go on, or end and free its blocks?"""
        return any(request.num_in_flight for request in self.running)

    def _preempt_paused(self, preempted: list[Request]) -> bool:
        """Nothing can run, for beams that wait for their siblings hold the blocks: take them from one of those."""
        paused = [request for request in self.running if request.is_paused]
        if not paused:
            return False
        victim = max(paused, key=self.sort_key)
        self._preempt(victim)
        preempted.append(victim)
        return True

    def _take_blocks(self, request: Request) -> bool:
        """Get a waiting request its cached or swapped blocks, if all its known tokens would then fit."""
        manager = self.block_manager
        if request.status is RequestStatus.SWAPPED:
            if manager.blocks_for(request.num_tokens) > manager.num_free_blocks:
                return False
            return manager.swap_in(request)
        num_hits = manager.attach_prefix(request)
        if not manager.can_hold(request, request.num_tokens):
            manager.free(request)
            return False
        manager.record_lookup(request.num_tokens, num_hits)
        request.num_computed_tokens = num_hits
        if not request.num_preemptions:
            request.num_cached_tokens = num_hits
        return True

    def update(self, schedule: Schedule, result: StepResult) -> list[Request]:
        """Book the outcome of a step: computed tokens, new tokens, forks, ends.

        Returns:
            the sequences that got a token, ended or failed, in the order of the schedule.
        """
        advanced: list[Request] = []
        row = 0
        for item in schedule.items:
            request = item.request
            sampled = item.sampled
            if request.is_finished:
                row += len(sampled)
                continue
            request.num_computed_tokens = item.end  # no news, if `advance` has booked it
            if result.errors:
                error = next((result.errors[i] for i in range(row, row + len(sampled)) if i in result.errors), None)
                if error is not None:
                    self._fail(request, error, advanced)
                    row += len(sampled)
                    continue
            if request.is_pooled_invalid:
                self._fail(request, INVALID_STATES, advanced)
                continue
            self.block_manager.mark_computed(request)
            if request.pooling and not request.num_uncomputed_tokens:
                self.finish(request, "stop")
                advanced.append(request)
            if not sampled:
                continue
            if request.pending_forks:
                self._fork_pending(request)
            for sequence in sampled:
                logprobs = result.logprobs[row] if result.logprobs is not None else None
                if sequence.num_candidates:
                    sequence.candidates = logprobs
                else:
                    sequence.append(result.token_ids[row], logprobs)
                    if sequence.is_finished:
                        self._remove(sequence)
                advanced.append(sequence)
                row += 1
        return advanced

    # ---- running ahead ------------------------------------------------------------------------------------------

    def advance(self, schedule: Schedule) -> bool:
        """Book a step as launched, ahead of its tokens. True if the step after it can be decided now.

        Its tokens count as computed, for what is launched next runs behind it on the device and may read what it
        writes; what it samples is in flight until `update`. A decode needs to know that there is a token, not which
        one: the device has it. Not so a fork (n > 1), a beam, or a sampler that looks back at the output (penalties).
        And nobody may be preempted with a token in flight, so the pool must have what the next step can ask for.
        """
        for request in (item.request for item in schedule.items):
            if request.pending_forks or request.num_candidates or request.params.changes_logits:
                return False
        index = 0
        for item in schedule.items:
            if not item.request.is_finished:
                item.request.num_computed_tokens = item.end
                for sequence in item.sampled:
                    sequence.num_in_flight, sequence.sampled_index = 1, index
            index += len(item.sampled)
        return self._needs_no_preemption()

    def _needs_no_preemption(self) -> bool:
        """Are the blocks there that the running requests ask for in the next step?"""
        manager = self.block_manager
        at_most = 2 * len(self.running) + self.max_num_batched_tokens // manager.block_size
        if at_most <= manager.num_free_blocks:
            return True  # the common case of a large pool: no need to look at every request
        needed = 0
        for request in self.running:
            num_new = min(request.num_uncomputed_tokens, self.max_tokens_per_request)
            needed += manager.num_blocks_to_take(request, request.num_computed_tokens + num_new)
        return needed <= manager.num_free_blocks

    def _fork_pending(self, request: Request) -> None:
        """The prompt of n completions is computed: from here on they are n requests."""
        for child in request.pending_forks:
            self.fork(request, child)
        request.pending_forks = []
        request.num_reserved_seats = 0

    def recover(self, schedule: Schedule, error: str) -> list[Request]:
        """Put the books right after a step that raised: nobody knows which of its moves and writes were made.

        The requests that the step computed end with `error`. Those that it swapped out compute their tokens again.

        Returns:
            the sequences that ended.
        """
        failed: list[Request] = []
        for item in schedule.items:
            if not item.request.is_finished:
                self._fail(item.request, error, failed)
        for request in schedule.preempted:
            if request.status is RequestStatus.SWAPPED:
                self.block_manager.free(request)
                request.num_computed_tokens = 0
                request.status = RequestStatus.WAITING
        return failed

    def _fail(self, request: Request, error: str, advanced: list[Request]) -> None:
        """End a request whose numbers are invalid; they must not be hit by others."""
        self.block_manager.forget_content(request)
        for sequence in (request, *request.pending_forks):
            sequence.finish("error", error)
            advanced.append(sequence)
        self._remove(request)

    def _preempt(self, request: Request) -> None:
        """Take a running request's blocks; it waits, and loses no token."""
        assert not request.num_in_flight, "advance said that nobody would have to be preempted"
        swapped = self.preemption_mode == "swap" and self.block_manager.swap_out(request)
        if not swapped:
            self.block_manager.free(request)
            request.num_computed_tokens = 0
        self.running.remove(request)
        request.status = RequestStatus.SWAPPED if swapped else RequestStatus.WAITING
        request.num_preemptions += 1
        self.num_preemptions += 1
        self.tracer.emit("preempt", "model_authoring", request.request_id, mode="swap" if swapped else "recompute")
        self.add(request)

    def _remove(self, request: Request) -> None:
        for queue in (self.running, self.waiting):
            if request in queue:
                queue.remove(request)
                break
        self.block_manager.free(request)

    def unfinished(self) -> Iterable[Request]:
        """Every request in the scheduler: those that run, then those that wait."""
        return [*self.running, *self.waiting]
