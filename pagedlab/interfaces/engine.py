"""LLMEngine: takes requests at any moment, advances all of them a step at a time, and hands out what is new."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from pagedlab.config import EngineConfig
from pagedlab.errors import InvalidRequestError, PagedlabError
from pagedlab.interfaces.engine_parts import EngineParts, build_parts
from pagedlab.interfaces.input_processing import Limits, Prompt
from pagedlab.interfaces.output_processing import Generation
from pagedlab.interfaces.outputs import PoolingRequestOutput, RequestOutput
from pagedlab.interfaces.request_building import RequestBuilder, derive_seed
from pagedlab.model_authoring.model_executor import ModelExecutor, QueueingWorker
from pagedlab.model_authoring.request import PoolingParams, Request
from pagedlab.model_authoring.scheduler import Schedule, Scheduler
from pagedlab.runtime.batch import PendingStep, StepResult
from pagedlab.sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams
from pagedlab.trace import Tracer

__all__ = ["EngineStats", "LLMEngine", "LaunchedStep", "derive_seed"]


@dataclass(slots=True)
class EngineStats:
    """Counters since the engine started, and its state now.

    Times are seconds; tokens of a preempted request that are computed again count again in num_computed_tokens.
    execute_time is what the host spent on launching steps and waiting for them. Where the engine runs ahead of the
    device, schedule_time and update_time pass while the device works.
    """

    num_steps: int = 0
    num_running: int = 0
    num_waiting: int = 0
    num_total_blocks: int = 0
    num_free_blocks: int = 0
    num_preemptions: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    num_computed_tokens: int = 0
    num_generated_tokens: int = 0
    schedule_time: float = 0.0
    execute_time: float = 0.0
    update_time: float = 0.0

    @property
    def kv_cache_usage(self) -> float:
        return 1 - self.num_free_blocks / max(1, self.num_total_blocks)

    @property
    def prefix_cache_hit_rate(self) -> float:
        return self.prefix_cache_hits / max(1, self.prefix_cache_queries)


@dataclass(slots=True)
class LaunchedStep:
    """A step between its schedule and its tokens. Times are those of time.perf_counter()."""

    number: int
    schedule: Schedule
    result: PendingStep
    begin: float
    scheduled: float
    launched: float


class LLMEngine:
    """The engine that LLM and the server drive.

    With `async_scheduling` it runs one step ahead of the device: while step t is computed it schedules and queues step
    t + 1, whose new tokens the device carries over by itself, and only then waits for the tokens of step t. What is
    known too late costs a row, never a wrong token: a sequence that turns out to have ended was computed once more, and
    that token is dropped.

    Args:
        config: every option; EngineConfig() serves the default model.
        parts: model, worker and memory, if they exist already (tests and simulation put their own here).

    Raises:
        ConfigError, ModelError, BackendError: the engine cannot be built as asked.
    """

    def __init__(self, config: EngineConfig | None = None, parts: EngineParts | None = None) -> None:
        self.config = config or EngineConfig()
        self.parts = parts or build_parts(self.config)
        self.tracer = Tracer(self.config.enable_trace)
        self.tokenizer = self.parts.tokenizer
        self.block_manager = self.parts.block_manager
        scheduler_cls = self.config.scheduler_cls or Scheduler
        self.scheduler: Scheduler = scheduler_cls(
            block_manager=self.block_manager,
            max_num_seqs=self.parts.max_num_seqs,
            max_num_batched_tokens=self.parts.max_num_batched_tokens,
            policy=self.config.scheduling_policy,
            preemption_mode=self.config.preemption_mode,
            long_prefill_token_threshold=self.config.long_prefill_token_threshold,
            tracer=self.tracer,
        )
        self.executor = ModelExecutor(self.parts.worker, self.block_manager, self.tracer)
        self.limits = Limits(
            vocab_size=self.parts.vocab_size,
            max_model_len=self.parts.max_model_len,
            block_size=self.block_manager.block_size,
            num_blocks=self.block_manager.num_usable_blocks,
            max_num_seqs=self.parts.max_num_seqs,
        )
        self._builder = RequestBuilder(self.limits, self.tokenizer, self.parts.eos_token_ids, self.config.seed)
        queues = isinstance(self.executor.worker, QueueingWorker)
        wanted = self.config.async_scheduling
        self.runs_ahead = queues and (self.parts.is_asynchronous if wanted is None else wanted)
        """Is the next step queued before this one's tokens are known, where they do not matter for it?"""
        self._in_flight: LaunchedStep | None = None
        self._num_launched = 0
        self._generations: dict[str, Generation] = {}
        self._failed: list[Generation] = []
        self._num_arrivals = 0
        self._stats = EngineStats(num_total_blocks=self.block_manager.num_usable_blocks)

    # ---- requests -----------------------------------------------------------------------------------------------

    def add_request(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams | BeamSearchParams | PoolingParams | None = None,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        add_special_tokens: bool = True,
    ) -> None:
        """Queue a request. It starts with the next step that has room.

        Args:
            request_id: names the request until it ends; not empty.
            prompt: text, token ids, or vLLM's dictionaries.
            params: SamplingParams generates, BeamSearchParams searches, PoolingParams pools the hidden states.
            priority: smaller first, under scheduling_policy="priority".
            cache_salt: share cached prefixes only with requests of the same salt.
            add_special_tokens: let the tokenizer add its own to a text prompt (not after a chat template).

        Raises:
            InvalidRequestError: the request could never be served; the engine is as before.
        """
        if request_id in self._generations:
            raise InvalidRequestError(f"Request id {request_id!r} is in use: give each unfinished request its own id.")
        generation = self._builder.build(
            request_id,
            prompt,
            params if params is not None else SamplingParams(),
            arrival=self._num_arrivals,
            priority=priority,
            cache_salt=cache_salt,
            add_special_tokens=add_special_tokens,
        )
        root = generation.root
        self.scheduler.add(root)
        self._num_arrivals += 1
        self._generations[request_id] = generation
        self.tracer.emit("add_request", "interfaces", request_id, num_prompt_tokens=root.num_prompt_tokens)

    def abort_request(self, request_ids: str | Iterable[str]) -> list[RequestOutput]:
        """End requests at once and free their blocks; ids that are unknown or ended are passed over.

        Returns:
            what the aborted requests had so far, with finish_reason "abort".
        """
        outputs = []
        for request_id in [request_ids] if isinstance(request_ids, str) else list(request_ids):
            generation = self._generations.pop(request_id, None)
            if generation is None:
                continue
            self._failed = [other for other in self._failed if other is not generation]
            for sequence in generation.sequences:
                self.scheduler.finish(sequence, "abort")
            self.tracer.emit("abort", "interfaces", request_id)
            if generation.completions:
                outputs.append(generation.output(RequestOutputKind.CUMULATIVE, self.tokenizer))
        return outputs

    def has_unfinished_requests(self) -> bool:
        return bool(self._generations)

    # ---- steps --------------------------------------------------------------------------------------------------

    def step(self) -> list[RequestOutput | PoolingRequestOutput]:
        """Advance every request that fits into one step.

        Returns:
            what is new, by each request's output_kind. A request that failed (NaN logits) ends with finish_reason
            "error" and the reason in stop_reason; the others go on.

        Raises:
            PagedlabError: nothing can be scheduled although requests wait (a scheduler of your own may do that).
            Exception: whatever the model raised. The requests of that step have then ended, the next call returns them
                with finish_reason "error", and the engine goes on.
        """
        undelivered = self._end_failed()
        if undelivered or not (self._generations or self._in_flight):
            return undelivered
        step = self._in_flight or self._launch()
        if step is None:
            raise PagedlabError(
                f"The scheduler chose nothing although {len(self._generations)} requests are unfinished: "
                "abort them, and check scheduler_cls and block_manager_cls."
            )
        self._in_flight = None
        if self.runs_ahead and self.scheduler.advance(step.schedule):
            self._in_flight = step  # should the next launch raise, this one is still to be collected
            self._in_flight = self._launch()
        self.tracer.step = step.number
        waited = time.perf_counter()
        with self._failing(step.schedule):
            result = step.result()
        executed = time.perf_counter()
        outputs = self._collect(step.schedule, result, executed)
        self._count(step, waited, executed)
        return outputs

    def _launch(self) -> LaunchedStep | None:
        """Schedule a step and start it; None if there is nothing to compute."""
        number = self.tracer.step = self._num_launched
        begin = time.perf_counter()
        with self.tracer.span("schedule", "model_authoring") as details:
            schedule = self.scheduler.schedule()
            if self.tracer.enabled:
                details.update(self._describe(schedule))
        if schedule.is_empty:
            return None
        self._num_launched += 1
        scheduled = time.perf_counter()
        for request in schedule.admitted:
            metrics = self._generations[request.group_id].metrics
            if metrics.first_scheduled_time is None:
                metrics.first_scheduled_time = scheduled
        if self.runs_ahead:
            with self._failing(schedule):
                result = self.executor.launch(schedule)
        else:
            result = partial(self.executor.execute, schedule)
        return LaunchedStep(number, schedule, result, begin, scheduled, time.perf_counter())

    @contextmanager
    def _failing(self, schedule: Schedule) -> Iterator[None]:
        """Whatever a step raises ends the requests of that step, and none other."""
        try:
            yield
        except BaseException as error:
            for sequence in self.scheduler.recover(schedule, f"The step failed: {error}"):
                self._fail_group(sequence)
            self._failed = [generation for generation in self._generations.values() if generation.error is not None]
            raise

    def _collect(
        self, schedule: Schedule, result: StepResult, executed: float
    ) -> list[RequestOutput | PoolingRequestOutput]:
        with self.tracer.span("update", "model_authoring"):
            advanced = self.scheduler.update(schedule, result)
        touched: dict[str, Generation] = {}
        for sequence in advanced:
            generation = self._generations[sequence.group_id]
            if sequence.finish_reason == "error":
                self._fail_group(sequence)
            elif generation.completions:
                self._take_token(generation, sequence, executed)
            if sequence.is_finished or not generation.is_silent:
                touched[sequence.group_id] = generation
        outputs: list[RequestOutput | PoolingRequestOutput] = []
        for request_id, generation in touched.items():
            search = generation.beam_search
            if search is not None and search.beams and search.is_ready:
                self._stats.num_generated_tokens += len(search.beams)
                search.advance(self.scheduler)
            output = self._output(request_id, generation)
            if output is not None:
                outputs.append(output)
        return outputs

    def _take_token(self, generation: Generation, sequence: Request, now: float) -> None:
        self._stats.num_generated_tokens += 1
        if generation.metrics.first_token_time is None:
            generation.metrics.first_token_time = now
        if generation.is_silent and not sequence.params.stop:
            return
        stop_string = generation.completions[sequence.index].read_along()
        if stop_string is not None:
            self.scheduler.finish(sequence, "stop", stop_string)
            sequence.finish_reason, sequence.stop_reason = "stop", stop_string

    def _output(self, request_id: str, generation: Generation) -> RequestOutput | PoolingRequestOutput | None:
        finished = generation.is_finished
        if finished:
            generation.metrics.finished_time = time.perf_counter()
            del self._generations[request_id]
            self.tracer.emit("finish", "interfaces", request_id)
        kind = generation.root.params.output_kind
        if generation.root.pooling or generation.beam_search:
            kind = RequestOutputKind.FINAL_ONLY
        if not finished and kind is RequestOutputKind.FINAL_ONLY:
            return None
        with self.tracer.span("output", "interfaces", request_id):
            if generation.root.pooling and generation.root.finish_reason != "error":
                return generation.pooling_output()
            return generation.output(kind, self.tokenizer)

    def _end_failed(self) -> list[RequestOutput | PoolingRequestOutput]:
        """Outputs of requests that a step took down with it when it raised."""
        outputs = [self._output(generation.request_id, generation) for generation in self._failed]
        self._failed = []
        return [output for output in outputs if output is not None]

    def _fail_group(self, failed: Request) -> None:
        """One sequence of a request failed: end the others, so that the request ends as a whole."""
        generation = self._generations[failed.group_id]
        for sequence in generation.sequences:
            if not sequence.is_finished:
                self.scheduler.finish(sequence, "error", failed.stop_reason)
        generation.error = str(failed.stop_reason)
        self.tracer.emit("error", "interfaces", failed.group_id, reason=generation.error)

    # ---- state --------------------------------------------------------------------------------------------------

    def stats(self) -> EngineStats:
        """Counters and current state; a snapshot of its own."""
        now = self._stats
        now.num_running = len(self.scheduler.running)
        now.num_waiting = len(self.scheduler.waiting)
        now.num_free_blocks = self.block_manager.num_free_blocks
        now.num_preemptions = self.scheduler.num_preemptions
        now.prefix_cache_queries = self.block_manager.prefix_cache_queries
        now.prefix_cache_hits = self.block_manager.prefix_cache_hits
        return EngineStats(**{name: getattr(now, name) for name in EngineStats.__slots__})

    def reset_prefix_cache(self) -> None:
        """Forget every cached prefix."""
        self.block_manager.pool.clear_cache()

    def _describe(self, schedule: Schedule) -> dict[str, Any]:
        return {
            "num_tokens": schedule.num_tokens,
            "requests": {item.request.request_id: [item.start, item.end] for item in schedule.items},
            "preempted": [request.request_id for request in schedule.preempted],
            "copies": schedule.ops.copies,
            "num_free_blocks": self.block_manager.num_free_blocks,
        }

    def _count(self, step: LaunchedStep, waited: float, executed: float) -> None:
        self._stats.num_steps += 1
        self._stats.num_computed_tokens += step.schedule.num_tokens
        self._stats.schedule_time += step.scheduled - step.begin
        self._stats.execute_time += (step.launched - step.scheduled) + (executed - waited)
        self._stats.update_time += time.perf_counter() - executed
