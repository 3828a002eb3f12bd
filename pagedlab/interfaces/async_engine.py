"""AsyncLLMEngine: the engine behind an event loop: a thread of its own steps it, and a reader awaits what comes out.

Why a thread and not a process? Both keep HTTP out of a step; they differ in what they share. A thread shares the GIL,
but nearly all of a step is arithmetic, which runs without it, and what the event loop does for a token is small: on a
CPU, 32 streams of the default model cost 10.1 ms of processor time a token through HTTP and 9.8 ms offline (medians of
four interleaved rounds, one thread). So the event loop keeps the GIL for short moments only: long texts are tokenized
on another thread, in Rust; bodies are bounded; a step comes back as one call, not as one for each request; and the
server shortens the interval after which Python hands the GIL over. A process would cost its own memory and start, and a
copy of every output between the two. Where a step takes a few milliseconds, as on a fast GPU with hundreds of streams,
the GIL does become the limit, and a process is worth that price (vLLM V1 pays it).
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, TypeVar

from pagedlab.errors import GenerationError, InvalidRequestError, PagedlabError
from pagedlab.interfaces.engine import EngineStats, LLMEngine
from pagedlab.interfaces.input_processing import Prompt, check_lengths, check_params, check_prompt, parse_prompt
from pagedlab.interfaces.outputs import PoolingRequestOutput, RequestOutput
from pagedlab.interfaces.request_stream import Output, RequestStream
from pagedlab.interfaces.sampling_options import most_tokens
from pagedlab.interfaces.step_report import Pending, StepReport
from pagedlab.model_authoring.request import PoolingParams
from pagedlab.sampling_params import RequestOutputKind, SamplingParams

__all__ = ["AsyncLLMEngine", "EngineDeadError", "EngineOverloadedError", "Pending", "StepReport"]

Result = TypeVar("Result")
logger = logging.getLogger("pagedlab.interfaces.async_engine")

MAX_FAILED_STEPS = 3
"""Steps in a row that may raise before the engine counts as dead: a bad request takes one step down, a bad GPU all."""


class EngineOverloadedError(PagedlabError):
    """The queue is full: try again later. Nothing of the call was queued."""


class EngineDeadError(PagedlabError):
    """The engine's thread has ended; no request can be served any more."""


class AsyncLLMEngine:
    """Lets coroutines share one LLMEngine.

    The engine belongs to one thread. Coroutines hand it functions through a queue; it runs them between two steps, so
    neither side ever takes a lock that the other could hold, and an abort takes effect within a step. Whatever a step
    brought comes back as one call on the event loop.

    Args:
        engine: must be used by nobody else from now on.
        max_pending_requests: unfinished requests; one more is refused.
        max_pending_tokens: prompt tokens of unfinished requests, likewise (a lone request always gets in).
        on_step: called on the event loop with each report and the requests it may concern, before readers wake.
        on_abort: called on the event loop with each request that is aborted.
        on_death: called on the event loop once, when the engine has died.
    """

    def __init__(
        self,
        engine: LLMEngine,
        *,
        max_pending_requests: int = 1024,
        max_pending_tokens: int = 1 << 20,
        on_step: Callable[[StepReport, dict[str, Pending]], None] | None = None,
        on_abort: Callable[[str, Pending], None] | None = None,
        on_death: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.limits = engine.limits
        self.has_tokenizer = engine.tokenizer is not None
        self.default_sampling = engine.parts.default_sampling
        self.is_tracing = engine.tracer.enabled
        self.max_pending_requests = max_pending_requests
        self.max_pending_tokens = max_pending_tokens
        self.on_step = on_step
        self.on_abort = on_abort
        self.on_death = on_death
        self.error: BaseException | None = None
        """What killed the engine."""
        self.pending: dict[str, Pending] = {}
        self.num_pending_tokens = 0
        self.stats = engine.stats()
        """As of the last step."""
        self._engine = engine
        self._tokenizer = engine.tokenizer
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._num_commands = 0
        """Put into the queue, of which the engine's thread has carried out `_num_obeyed`."""
        self._num_obeyed = 0
        self._calls: set[asyncio.Future[Any]] = set()
        self._num_failed_steps = 0
        self._num_requests = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    # ---- life ---------------------------------------------------------------------------------------------------

    @property
    def is_alive(self) -> bool:
        return self._thread is not None and self.error is None

    def start(self) -> None:
        """Begin to step, for the event loop that is running now."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="pagedlab-engine", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """End the thread after its current step; whoever still awaits a request gets EngineDeadError."""
        if self._thread is None:
            return
        self.abort_all(EngineDeadError("The engine was stopped."))
        self._command(None)
        await asyncio.to_thread(self._thread.join)
        self._thread = None
        self._fail_all(EngineDeadError("The engine was stopped."))

    # ---- requests, on the event loop ----------------------------------------------------------------------------

    def submit(
        self,
        request_id: str,
        prompts: Sequence[Prompt],
        params: SamplingParams | PoolingParams,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        trace_headers: Mapping[str, str] | None = None,
    ) -> RequestStream:
        """Queue one call's prompts, all of them or none; read the outputs from the stream, and close it.

        Raises:
            InvalidRequestError: one of them could never be served.
            EngineOverloadedError: there is no room for them in the queue now.
            EngineDeadError: there is no engine.
        """
        if not self.is_alive:
            raise EngineDeadError(f"The engine is not running{f': {self.error}' if self.error else ''}.")
        parsed = [parse_prompt(prompt, self._tokenizer) for prompt in prompts]
        for _, token_ids in parsed:
            self._check(token_ids, params)
        self._admit(len(parsed), sum(len(token_ids) for _, token_ids in parsed))
        request_ids = [request_id if len(parsed) == 1 else f"{request_id}-{index}" for index in range(len(parsed))]
        if any(one in self.pending for one in request_ids):
            raise InvalidRequestError(f"Request id {request_id!r} is in use: give each unfinished request its own id.")
        is_delta = isinstance(params, SamplingParams) and params.output_kind is RequestOutputKind.DELTA
        stream = RequestStream(request_ids, self.abort, is_delta)
        now = time.perf_counter()
        for index, (one, (text, token_ids)) in enumerate(zip(request_ids, parsed, strict=True)):
            prompt = {"prompt": text, "prompt_token_ids": token_ids}
            command = self._command(self._adding(one, prompt, params, priority, cache_salt))
            self.pending[one] = Pending(
                stream, index, len(token_ids), now, trace_headers=trace_headers, command=command
            )
            self.num_pending_tokens += len(token_ids)
        return stream

    async def generate(
        self, prompt: Prompt, sampling_params: SamplingParams, request_id: str | None = None, **options: Any
    ) -> AsyncIterator[RequestOutput]:
        """vLLM's AsyncLLMEngine.generate: outputs of one prompt by its output_kind; closing the iterator aborts it."""
        self._num_requests += 1
        stream = self.submit(request_id or f"generate-{self._num_requests}", [prompt], sampling_params, **options)
        try:
            async for _, output in stream:
                assert isinstance(output, RequestOutput)
                yield output
        finally:
            stream.close()

    async def encode(
        self, prompt: Prompt, pooling_params: PoolingParams | None = None, request_id: str | None = None
    ) -> PoolingRequestOutput:
        """One vector for the prompt.

        Raises:
            GenerationError: the step failed, or the model returned numbers that are none.
        """
        self._num_requests += 1
        stream = self.submit(request_id or f"encode-{self._num_requests}", [prompt], pooling_params or PoolingParams())
        try:
            _, output = await anext(stream)
        finally:
            stream.close()
        if isinstance(output, RequestOutput):
            raise GenerationError(str(output.outputs[0].stop_reason), [output])
        return output

    def abort(self, request_ids: Sequence[str]) -> None:
        """End requests: they are forgotten here at once, and free their blocks before the next step."""
        known = [request_id for request_id in request_ids if request_id in self.pending]
        for request_id in known:
            one = self._forget(request_id)
            if self.on_abort is not None and one is not None:
                self.on_abort(request_id, one)
        if known and self.is_alive:
            self._command(lambda: self._abort(known))

    def abort_all(self, reason: BaseException) -> int:
        """Abort every unfinished request, telling its reader why. Returns how many there were."""
        pending = list(self.pending.items())
        for _, one in pending:
            one.stream.fail(reason)
        self.abort([request_id for request_id, _ in pending])
        return len(pending)

    async def call(self, function: Callable[[LLMEngine], Result]) -> Result:
        """Run a function on the engine between two steps (a picture of its blocks, say) and return its result."""
        if not self.is_alive:
            raise EngineDeadError(f"The engine is not running: {self.error}.")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._calls.add(future)
        future.add_done_callback(self._calls.discard)

        def finish(result: Any, error: Exception | None) -> None:
            if future.done():
                return  # whoever asked is gone
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        def command() -> None:
            try:
                result, error = function(self._engine), None
            except Exception as raised:
                result, error = None, raised
            loop.call_soon_threadsafe(finish, result, error)

        self._command(command)
        return await future

    def _command(self, function: Callable[[], None] | None) -> int:
        """Let the engine's thread run a function between two steps (None ends it); the command's number, from 1."""
        self._num_commands += 1
        self._commands.put(function)
        return self._num_commands

    def _check(self, token_ids: list[int], params: SamplingParams | PoolingParams) -> None:
        """The engine's own checks, made before anything is queued: they read nothing that a step changes."""
        check_prompt(token_ids, self.limits)
        if isinstance(params, SamplingParams):
            check_params(params, self.limits, self.has_tokenizer)
            check_lengths(len(token_ids), most_tokens(params, len(token_ids), self.limits), params.n, self.limits)
        else:
            check_lengths(len(token_ids), 0, 1, self.limits)

    def _admit(self, num_requests: int, num_tokens: int) -> None:
        if len(self.pending) + num_requests > self.max_pending_requests:
            raise EngineOverloadedError(
                f"{len(self.pending)} requests are unfinished, {num_requests} more came, and "
                f"{self.max_pending_requests} are allowed: try again later."
            )
        if self.pending and self.num_pending_tokens + num_tokens > self.max_pending_tokens:
            raise EngineOverloadedError(
                f"Unfinished requests have {self.num_pending_tokens} prompt tokens, {num_tokens} more came, and "
                f"{self.max_pending_tokens} are allowed: try again later."
            )

    def _forget(self, request_id: str) -> Pending | None:
        one = self.pending.pop(request_id, None)
        if one is not None:
            self.num_pending_tokens -= one.num_prompt_tokens
        return one

    def _receive(self, report: StepReport) -> None:
        self.stats = report.stats
        # Who was aborted while the step ran gets nothing, nor does a later request that took over the id.
        report.outputs = [output for output in report.outputs if self._is_meant(report, output.request_id)]
        if self.on_step is not None:
            self.on_step(report, self.pending)
        for output in report.outputs:
            one = self.pending[output.request_id]
            one.stream.put(one.index, output)
            if output.finished:
                self._forget(output.request_id)

    def _is_meant(self, report: StepReport, request_id: str) -> bool:
        one = self.pending.get(request_id)
        return one is not None and one.command <= report.num_commands

    def _refuse(self, request_id: str, error: Exception, command: int) -> None:
        one = self.pending.get(request_id)
        if one is not None and one.command == command:
            one.stream.fail(error)
            self._forget(request_id)

    def _die(self, error: BaseException) -> None:
        self.error = error
        self._fail_all(EngineDeadError(f"The engine died: {type(error).__name__}: {error}"))
        if self.on_death is not None:
            self.on_death(error)

    def _fail_all(self, error: Exception) -> None:
        for one in list(self.pending.values()):
            one.stream.fail(error)
        for future in list(self._calls):
            if not future.done():
                future.set_exception(error)
        self.pending.clear()
        self.num_pending_tokens = 0

    # ---- the engine's thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._obey():
                self._step()
        except BaseException as error:
            logger.critical("The engine died.", exc_info=error)
            self._post(self._die, error)

    def _obey(self) -> bool:
        """Carry out what has been asked for since the last step, waiting if there is nothing to step; False ends."""
        while True:
            try:
                command = self._commands.get(block=not self._engine.has_unfinished_requests())
            except queue.Empty:
                return True
            if command is None:
                return False
            command()
            self._num_obeyed += 1

    def _step(self) -> None:
        before = self._engine.stats()
        try:
            outputs, error = self._engine.step(), None
        except Exception as raised:
            # The engine has ended the requests of that step; its next step returns them. The others go on.
            outputs, error = [], raised
            self._num_failed_steps += 1
            logger.error("A step failed.", exc_info=raised)
            if self._num_failed_steps >= MAX_FAILED_STEPS:
                raise
        self._report(outputs, before, str(error) if error else None)

    def _report(self, outputs: list[Output], before: EngineStats | None = None, error: str | None = None) -> None:
        stats = self._engine.stats()
        num_tokens = stats.num_computed_tokens - before.num_computed_tokens if before else 0
        if num_tokens:
            self._num_failed_steps = 0
        events = list(self._engine.tracer.events)
        self._engine.tracer.events.clear()
        report = StepReport(time.perf_counter(), num_tokens, outputs, stats, events, error, self._num_obeyed)
        self._post(self._receive, report)

    def _abort(self, request_ids: list[str]) -> None:
        self._engine.abort_request(request_ids)
        self._report([])  # the books have changed though no step was made

    def _adding(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams | PoolingParams,
        priority: int,
        cache_salt: str | None,
    ) -> Callable[[], None]:
        def add() -> None:
            try:
                self._engine.add_request(request_id, prompt, params, priority=priority, cache_salt=cache_salt)
            except Exception as error:
                self._post(self._refuse, request_id, error, self._num_obeyed + 1)

        return add

    def _post(self, function: Callable[..., None], *arguments: Any) -> None:
        """Let the event loop call a function; it may be closed already when the process ends."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            logger.debug("The event loop is closed.")
