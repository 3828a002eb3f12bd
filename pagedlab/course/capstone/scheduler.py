"""SchedulerSocket: the engine's lists and books of requests, with each step decided by a reader's scheduler."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, NoReturn

from pagedlab.course.capstone.watch import Watch
from pagedlab.model_authoring.request import Request, RequestStatus
from pagedlab.model_authoring.scheduler import Schedule, Scheduler

MAX_CALLS = 1000
"""Of allocate and free in one step: a loop that asks more often never ends."""
MAX_STEPS = 200
"""In a row without a new token of anybody: more than the chunks of any prompt that the capstone runs."""


class RequestView:
    """One request as a reader's scheduler sees it. It changes nothing.

    Attributes:
        name: the request's id
        arrival: number of arrivals before it
        num_tokens: tokens known: prompt and output so far
        num_computed: how many of them have their keys and values in the cache
    """

    __slots__ = ("_request",)

    def __init__(self, request: Request) -> None:
        self._request = request

    @property
    def name(self) -> str:
        return self._request.request_id

    @property
    def arrival(self) -> int:
        return self._request.arrival

    @property
    def num_tokens(self) -> int:
        return self._request.num_tokens

    @property
    def num_computed(self) -> int:
        return self._request.num_computed_tokens

    def __repr__(self) -> str:
        return f"<request {self.name}: {self.num_computed} of {self.num_tokens} tokens computed>"


class SchedulerSocket(Scheduler):
    """Keeps the running and the waiting requests as the engine's scheduler does; `part` decides each step.

    Without a part the engine's own `schedule` decides, and the socket only counts steps.
    """

    part: Any = None
    watch: Watch

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.mine = None
        self.idle_steps = 0
        if self.part is not None:
            self.mine = self.watch.call(
                "scheduler", self.part.__name__, self.part, self.max_num_batched_tokens, self.max_num_seqs
            )

    def schedule(self) -> Schedule:
        self.watch.step += 1
        if self.mine is None:
            return super().schedule()
        running, waiting = list(self.running), [request for request in self.waiting if not request.is_paused]
        views = {request: RequestView(request) for request in [*running, *waiting]}
        blocks = Blocks(self)
        plan = self.watch.call(
            "scheduler",
            "schedule",
            self.mine.schedule,
            [views[request] for request in running],
            [views[request] for request in waiting],
            blocks,
        )
        return self._carry_out(self._checked(plan), blocks)

    def _checked(self, plan: Any) -> dict[Request, int]:
        """The plan by request, each with a number of tokens that it has and room to write them."""
        if not isinstance(plan, Mapping):
            self.refuse(f"schedule() returned {plan!r}: return a dictionary, request -> number of tokens to compute.")
        checked: dict[Request, int] = {}
        for view, number in plan.items():
            request = self.request_of(view, "schedule() planned")
            wanted = request.num_uncomputed_tokens
            try:
                number = operator.index(number)
            except TypeError:
                self.refuse(f"schedule() planned {number!r} tokens of request {request.request_id}: a whole number.")
            if not 1 <= number <= wanted:
                self.refuse(
                    f"schedule() planned {number} tokens of request {request.request_id}, which has "
                    f"{request.num_tokens} tokens, {request.num_computed_tokens} of them computed: plan 1 to {wanted}."
                )
            self._check_room(request, number)
            checked[request] = number
        if sum(checked.values()) > self.max_num_batched_tokens:
            self.refuse(
                f"schedule() planned {sum(checked.values())} tokens, over the budget of {self.max_num_batched_tokens}."
            )
        if not checked:
            self.refuse(
                f"schedule() planned nothing although {len(self.running)} requests run and {len(self.waiting)} wait: "
                "no progress, and the next step would be the same. When blocks run out, free those of a running one."
            )
        return checked

    def _check_room(self, request: Request, number: int) -> None:
        manager, name = self.block_manager, request.request_id
        if request not in manager.tables:
            lost = " (you freed them in this step)" if request.num_preemptions else ""
            self.refuse(f"schedule() planned request {name}, which has no blocks{lost}: ask blocks.allocate first.")
        end = request.num_computed_tokens + number
        if manager.num_blocks_to_take(request, end):
            held = len(manager.tables[request].blocks) * manager.block_size
            self.refuse(
                f"schedule() planned tokens up to number {end} of request {name}, and its blocks have room for {held} "
                f"that are its own: ask blocks.allocate(request, {end}) in the same step, and take no for an answer."
            )

    def _carry_out(self, plan: dict[Request, int], blocks: Blocks) -> Schedule:
        admitted = [request for request in plan if request.status is RequestStatus.WAITING]
        for request in admitted:
            self.waiting.remove(request)
            self.running.append(request)
            request.status = RequestStatus.RUNNING
        if admitted and len(self.running) > self.max_num_seqs:
            self.refuse(f"{len(self.running)} requests run now, and max_num_seqs is {self.max_num_seqs}.")
        for request in self.waiting:
            if request in self.block_manager.tables:
                self.refuse(
                    f"request {request.request_id} waits, was granted blocks, and is not in the plan: run it, or free "
                    "its blocks, which nobody can use."
                )
        items = [self._item(request, number) for request, number in plan.items()]
        self.idle_steps = 0 if any(item.sampled for item in items) else self.idle_steps + 1
        if self.idle_steps > MAX_STEPS:
            self.refuse(
                f"nobody got a token in {MAX_STEPS} steps, and blocks were taken {self.num_preemptions} times: "
                "requests take them from each other in turns. Let the oldest keep its blocks."
            )
        return Schedule(items, self.block_manager.take_ops(), admitted, blocks.preempted)

    def request_of(self, view: Any, what: str) -> Request:
        request = getattr(view, "_request", None)
        if not isinstance(view, RequestView) or request not in [*self.running, *self.waiting]:
            self.refuse(f"{what} {view!r}, which is none of the requests in running and waiting.")
        return request

    def refuse(self, sentence: str) -> NoReturn:
        """Raises PartError."""
        self.watch.fail("scheduler", sentence)


class Blocks:
    """What a reader's scheduler may do to blocks, for the length of one step."""

    def __init__(self, scheduler: SchedulerSocket) -> None:
        self._scheduler = scheduler
        self._calls = 0
        self.preempted: list[Request] = []

    def allocate(self, request: RequestView, num_tokens: int) -> bool:
        """Make room for the request's first `num_tokens` tokens; False, and no change, if blocks do not suffice."""
        scheduler, manager = self._scheduler, self._scheduler.block_manager
        inner = self._asked(request, "allocate")
        try:
            num_tokens = operator.index(num_tokens)
        except TypeError:
            scheduler.refuse(f"blocks.allocate was asked for room for {num_tokens!r} tokens: a whole number.")
        if inner in manager.tables:
            return manager.allocate(inner, num_tokens)
        manager.attach_prefix(inner)
        granted = manager.allocate(inner, num_tokens)
        if not granted:
            manager.free(inner)
        return granted

    def free(self, request: RequestView) -> None:
        """Take all of the request's blocks. One that ran waits again, by arrival, with nothing computed."""
        inner = self._asked(request, "free")
        if inner.status is RequestStatus.RUNNING:
            self._scheduler._preempt(inner)
            self.preempted.append(inner)
        else:
            self._scheduler.block_manager.free(inner)

    def _asked(self, request: RequestView, what: str) -> Request:
        self._calls += 1
        self._scheduler.watch.calls[f"blocks.{what}"] += 1
        if self._calls > MAX_CALLS:
            self._scheduler.refuse(
                f"it asked for blocks {MAX_CALLS:,} times in one step: its loop never ends. Each round must free "
                "the blocks of a request that still runs, or stop."
            )
        return self._scheduler.request_of(request, f"blocks.{what} was called with")
