"""RequestStream: the outputs of one call's requests, on their way from the engine to the one who awaits them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from pagedlab.interfaces.outputs import CompletionOutput, PoolingRequestOutput, RequestOutput

Output = RequestOutput | PoolingRequestOutput


class RequestStream:
    """`async for index, output in stream`: the next output of any of the call's requests, until all have ended.

    A reader slower than the engine finds the steps that it missed merged into one output: what waits for it never
    exceeds what the requests generate, and it costs the engine nothing.

    Args:
        request_ids: the requests; `index` counts them.
        abort: ends those of them that are named.
        is_delta: outputs hold what is new (RequestOutputKind.DELTA); otherwise the latest says all.
    """

    def __init__(
        self, request_ids: Sequence[str], abort: Callable[[Sequence[str]], None], is_delta: bool = True
    ) -> None:
        self.request_ids = list(request_ids)
        self._abort = abort
        self._is_delta = is_delta
        self._waiting: dict[int, Output] = {}
        self._unfinished = set(range(len(self.request_ids)))
        self._error: BaseException | None = None
        self._news = asyncio.Event()
        self.on_close: Callable[[], None] | None = None
        """Called when the reader is done, however it ended."""

    def put(self, index: int, output: Output) -> None:
        earlier = self._waiting.get(index)
        self._waiting[index] = output if earlier is None or not self._is_delta else merge(earlier, output)
        self._news.set()

    def fail(self, error: BaseException) -> None:
        """Raise `error` to the reader once it has read what came before."""
        self._error = self._error or error
        self._news.set()

    def close(self) -> None:
        """Abort what has not ended. Call it whatever happens: a reader that goes away must not leave work behind."""
        self._abort([self.request_ids[index] for index in self._unfinished])
        if self.on_close is not None:
            self.on_close()

    def __aiter__(self) -> RequestStream:
        return self

    async def __anext__(self) -> tuple[int, Output]:
        while not self._waiting:
            if self._error is not None:
                raise self._error
            if not self._unfinished:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        index = next(iter(self._waiting))
        output = self._waiting.pop(index)
        if output.finished:
            self._unfinished.discard(index)
        return index, output


def merge(earlier: Output, later: Output) -> Output:
    """Two successive DELTA outputs of a request as one."""
    if not isinstance(earlier, RequestOutput) or not isinstance(later, RequestOutput):
        return later
    outputs = [_merge_completions(*pair) for pair in zip(earlier.outputs, later.outputs, strict=True)]
    return replace(later, outputs=outputs)


def _merge_completions(earlier: CompletionOutput, later: CompletionOutput) -> CompletionOutput:
    logprobs = later.logprobs
    if earlier.logprobs is not None and later.logprobs is not None:
        logprobs = earlier.logprobs + later.logprobs
    return replace(
        later, text=earlier.text + later.text, token_ids=earlier.token_ids + later.token_ids, logprobs=logprobs
    )
