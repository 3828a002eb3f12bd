"""Answers that take a while: ended when their reader goes away, and sent in pieces as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from fastapi.responses import Response
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from pagedlab.interfaces.openai_server.errors import as_api_error

Result = TypeVar("Result")

HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
DONE = b"data: [DONE]\n\n"


class ClientGone(Exception):
    """The client closed its connection before it had the whole answer."""


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled if the client goes away first.

    Raises:
        ClientGone: it did.
    """
    worker = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({worker, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not worker.done():
            raise ClientGone
        return worker.result()
    finally:
        worker.cancel()
        watcher.cancel()
        await asyncio.gather(worker, watcher, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def event(chunk: BaseModel) -> bytes:
    """`data: {json}` and an empty line; JSON holds no line break of its own. Fields that nobody set are left out."""
    return b"data: " + chunk.model_dump_json(exclude_unset=True).encode() + b"\n\n"


class EventStream(Response):
    """Sends chunks as they come, then `[DONE]`. An error on the way becomes one more chunk.

    Args:
        chunks: what to send.
        close: called once, however it ends: aborts what still runs.
        deadline: when to give up, on the event loop's clock.
    """

    def __init__(self, chunks: AsyncIterator[BaseModel], close: Callable[[], None], deadline: float) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._chunks = chunks
        self._close = close
        self._deadline = deadline

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with contextlib.suppress(ClientGone):
                await until_disconnect(receive, self._write(send))
        finally:
            self._close()

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for data in self._events():
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self) -> AsyncIterator[bytes]:
        try:
            while True:
                async with asyncio.timeout_at(self._deadline):
                    chunk = await anext(self._chunks)
                yield event(chunk)
        except StopAsyncIteration:
            pass
        except Exception as error:
            yield event(as_api_error(error).body())
        yield DONE
