"""StepRecorder: watches a scheduler decide and book its steps, and keeps them as an EngineRecording.

It stands outside: the engine has no line of code for it and loses nothing while nobody records. Whatever drives a
scheduler can be recorded: LLMEngine on a real model, pagedlab.simulate.batching, a test.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from pagedlab.errors import PagedlabError
from pagedlab.model_authoring.recording import (
    Admission,
    Computed,
    Copy,
    Ended,
    EngineRecording,
    Preemption,
    RequestInfo,
    RequestState,
    Sampled,
    StepRecord,
)
from pagedlab.model_authoring.request import Request, RequestStatus
from pagedlab.model_authoring.scheduler import Schedule, Scheduler
from pagedlab.runtime.batch import StepResult

Decode = Callable[[Sequence[int]], str]
WATCHED = ("schedule", "update", "recover")
"""Methods of the scheduler that a recorder looks over the shoulder of."""


class StepRecorder:
    """Records every step of the scheduler that it is attached to. One recorder, one scheduler, one run.

    >>> recorder = StepRecorder(engine.tokenizer.decode)
    >>> with recorder.attached_to(engine.scheduler):
    ...     while engine.has_unfinished_requests():
    ...         engine.step()
    >>> recorder.recording().save("run.json")

    Where the scheduler is made by somebody else (a simulation), pass `scheduler_cls=recorder.watching(Scheduler)`.

    Args:
        decode: token ids -> text, for prompts and tokens; None leaves texts empty.
    """

    def __init__(self, decode: Decode | None = None) -> None:
        self._decode = decode or (lambda _: "")
        self._scheduler: Scheduler | None = None
        self._infos: dict[Request, RequestInfo] = {}
        self._taken: dict[str, int] = {}
        """Request id -> how many sequences had it: an engine may see an id again once its first bearer has ended."""
        self._live: dict[Request, None] = {}
        """Seen, and not yet known to have ended; a dictionary, for it keeps the order."""
        self._steps: list[StepRecord] = []
        self._numbers: dict[int, int] = {}
        """id of a schedule that is not booked yet -> its step."""
        self._booked = 0
        """The newest step whose outcome is known: whoever ended without notice ended after it."""

    # ---- attaching ----------------------------------------------------------------------------------------------

    @contextmanager
    def attached_to(self, scheduler: Scheduler) -> Iterator[StepRecorder]:
        """Record for the length of a `with` block; the scheduler is then as it was."""
        self.attach(scheduler)
        try:
            yield self
        finally:
            for name in WATCHED:
                delattr(scheduler, name)

    def watching(self, scheduler_cls: type[Scheduler]) -> type[Scheduler]:
        """A class like `scheduler_cls` whose object this recorder watches from the start."""
        recorder = self

        class Watched(scheduler_cls):  # type: ignore[misc, valid-type]
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **options)
                recorder.attach(self)

        Watched.__name__ = Watched.__qualname__ = scheduler_cls.__name__
        return Watched

    def attach(self, scheduler: Scheduler) -> None:
        """Record from now on.

        Raises:
            PagedlabError: this recorder has a scheduler already, or the scheduler another recorder.
        """
        if self._scheduler is not None or "schedule" in vars(scheduler):
            raise PagedlabError("A StepRecorder records one scheduler, once: make a new one for the next run.")
        self._scheduler = scheduler
        schedule, update, recover = scheduler.schedule, scheduler.update, scheduler.recover

        def recorded_schedule() -> Schedule:
            self._notice_ends(scheduler)
            before = {request: self._state(scheduler, request) for request in scheduler.unfinished()}
            start = time.perf_counter()
            decision = schedule()
            self._record(scheduler, before, decision, start)
            return decision

        def recorded_update(decision: Schedule, result: StepResult) -> list[Request]:
            dropped = [item.request for item in decision.items if item.request.is_finished]
            advanced = update(decision, result)
            self._book(decision, result, dropped)
            self._notice_ends(scheduler)
            return advanced

        def recorded_recover(decision: Schedule, error: str) -> list[Request]:
            failed = recover(decision, error)
            self._booked = self._numbers.pop(id(decision), self._booked)
            self._notice_ends(scheduler)
            return failed

        # On the object, not on the class: other engines go on unwatched.
        for name, function in zip(WATCHED, (recorded_schedule, recorded_update, recorded_recover), strict=True):
            setattr(scheduler, name, function)

    # ---- what is kept -------------------------------------------------------------------------------------------

    def recording(self) -> EngineRecording:
        """All steps so far.

        Raises:
            PagedlabError: nothing was recorded.
        """
        scheduler = self._scheduler
        if scheduler is None or not self._steps:
            raise PagedlabError("Nothing was recorded: attach the recorder to a scheduler, and run a step.")
        self._notice_ends(scheduler)
        manager = scheduler.block_manager
        is_own = type(scheduler).schedule is Scheduler.schedule and type(scheduler).sort_key is Scheduler.sort_key
        return EngineRecording(
            block_size=manager.block_size,
            num_blocks=len(manager.pool.blocks),
            num_usable_blocks=manager.num_usable_blocks,
            token_budget=scheduler.max_num_batched_tokens,
            max_num_seqs=scheduler.max_num_seqs,
            policy=scheduler.policy if is_own else type(scheduler).__name__,
            requests=tuple(self._infos.values()),
            steps=tuple(self._steps),
            after=self._snapshot(scheduler, len(self._steps), time.perf_counter()),
        )

    def _record(
        self, scheduler: Scheduler, before: dict[Request, RequestState], decision: Schedule, start: float
    ) -> None:
        if decision.is_empty and not decision.preempted:
            return
        for item in decision.items:
            for sequence in item.sampled:
                self._name(sequence)  # a fork that is born and ends in this step is seen nowhere else
        # A copy belongs to one sequence alone.
        owner = {
            block: request for request in scheduler.running for block in scheduler.block_manager.block_ids(request)
        }
        # By the blocks that were filled, not by the status before: a beam may go to host memory and back in one step.
        came_back = {owner[block] for _, block in decision.ops.swap_in}
        record = replace(
            self._snapshot(scheduler, len(self._steps), start),
            computed=tuple(Computed(self._name(item.request), item.start, item.end) for item in decision.items),
            admitted=tuple(self._admission(request, request in came_back) for request in decision.admitted),
            preempted=tuple(
                self._preemption(request, before[request], request in came_back) for request in decision.preempted
            ),
            copies=tuple(Copy(self._name(owner[target]), source, target) for source, target in decision.ops.copies),
        )
        self._numbers[id(decision)] = record.number
        self._steps.append(record)

    def _snapshot(self, scheduler: Scheduler, number: int, start: float) -> StepRecord:
        return StepRecord(
            number=number,
            requests=tuple(self._state(scheduler, request) for request in scheduler.unfinished()),
            cached_block_ids=tuple(b.block_id for b in scheduler.block_manager.pool.blocks if b.block_hash is not None),
            start=start,
        )

    def _book(self, decision: Schedule, result: StepResult, dropped: list[Request]) -> None:
        """`dropped` had ended before (a step decided ahead, an abort): what was sampled for them nobody gets."""
        number = self._numbers.pop(id(decision), None)
        if number is None:
            return
        self._booked = number
        record = self._steps[number]
        sampled = [(sequence, item.request) for item in decision.items for sequence in item.sampled]
        tokens = [
            Sampled(self._name(sequence), token_id, self._decode([token_id]))
            for row, ((sequence, root), token_id) in enumerate(zip(sampled, result.token_ids, strict=True))
            if row not in result.errors and not sequence.num_candidates and root not in dropped
        ]
        self._steps[number] = replace(record, sampled=tuple(tokens), seconds=time.perf_counter() - record.start)

    def _notice_ends(self, scheduler: Scheduler) -> None:
        ended = [request for request in self._live if request.is_finished]
        if not ended:
            return
        for request in ended:
            del self._live[request]
        record = self._steps[self._booked]
        news = tuple(Ended(self._name(request), str(request.finish_reason)) for request in ended)
        self._steps[self._booked] = replace(record, ended=record.ended + news)

    def _name(self, request: Request) -> str:
        """What the recording calls a sequence: its id, numbered if another one had it before."""
        if request not in self._infos:
            self._live[request] = None
            count = self._taken[request.request_id] = self._taken.get(request.request_id, 0) + 1
            self._infos[request] = RequestInfo(
                request_id=request.request_id if count == 1 else f"{request.request_id} ({count})",
                num_prompt_tokens=request.num_prompt_tokens,
                max_tokens=request.max_tokens,
                priority=request.priority,
                prompt=self._decode(request.prompt_token_ids),
            )
        return self._infos[request].request_id

    def _state(self, scheduler: Scheduler, request: Request) -> RequestState:
        runs = request.status is RequestStatus.RUNNING
        return RequestState(
            request_id=self._name(request),
            status=request.status.value,
            num_tokens=request.num_tokens + request.num_in_flight,
            num_computed=request.num_computed_tokens,
            block_ids=tuple(scheduler.block_manager.block_ids(request)) if runs else (),
        )

    def _admission(self, request: Request, came_back: bool) -> Admission:
        kept = request.num_computed_tokens
        return Admission(self._name(request), **{"num_swapped_tokens" if came_back else "num_hit_tokens": kept})

    def _preemption(self, request: Request, was: RequestState, came_back: bool) -> Preemption:
        mode = "swap" if came_back or request.status is RequestStatus.SWAPPED else "recompute"
        return Preemption(self._name(request), mode, was.num_computed, was.block_ids)
