"""Load on an OpenAI-compatible server of this machine: requests sent on a schedule, every chunk timed as it comes.

The client is asyncio's streams and little more. It shares the machine with the server, so what it costs is missing from
the throughput that it measures: a general HTTP library takes longer to hand over a chunk than the server to write it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from pagedlab.errors import ConfigError, PagedlabError

LOOPBACK = ("127.0.0.1", "localhost")
MAX_HEADERS = 100
MAX_BODY = 64 << 20
"""Bytes of one answer; a server that sends more is not measured but cut off."""


class HttpError(PagedlabError):
    """The server's answer is no HTTP, or not the answer that was asked for."""


@dataclass
class Answer:
    """What became of one request. Times in seconds on time.perf_counter's clock.

    Attributes:
        sent: when the connection was opened
        chunks: when each chunk with text came
        finished: when the finish reason came, which is the last token's time
        ended: when the stream ended
        num_prompt_tokens, num_tokens: as the server counted them
        finish_reason: of the one choice
        error: one sentence, if anything was not as it must be
    """

    sent: float = 0.0
    chunks: list[float] = field(default_factory=list)
    finished: float = 0.0
    ended: float = 0.0
    num_prompt_tokens: int = 0
    num_tokens: int = 0
    finish_reason: str | None = None
    error: str | None = None

    @property
    def ttft(self) -> float:
        """Seconds to the first token; only of an answer without error."""
        return self.chunks[0] - self.sent

    @property
    def tpot(self) -> float | None:
        """Seconds a token after the first; None of a single token."""
        return (self.finished - self.chunks[0]) / (self.num_tokens - 1) if self.num_tokens > 1 else None

    @property
    def itl(self) -> list[float]:
        """Seconds from chunk to chunk. A token that completes no character comes with the next."""
        return [later - earlier for earlier, later in zip(self.chunks, self.chunks[1:], strict=False)]

    @property
    def e2e(self) -> float:
        return self.ended - self.sent


def loopback_url(url: str) -> tuple[str, int]:
    """Host and port of a server of this machine.

    Raises:
        ConfigError: it is elsewhere, or no plain http://host:port.
    """
    parts = urlsplit(url)
    try:
        port = parts.port or 80
    except ValueError:
        port = -1
    if parts.scheme != "http" or parts.hostname not in LOOPBACK or port < 0 or parts.path not in ("", "/"):
        raise ConfigError(
            f"The base URL must be http://127.0.0.1:PORT or http://localhost:PORT, got {url!r}: "
            "load is put on this machine's own servers alone."
        )
    return parts.hostname, port


@dataclass
class Response:
    """Status, headers in lower case, and the body's pieces as they come."""

    status: int
    headers: dict[str, str]
    reader: asyncio.StreamReader

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body: chunked, of a stated length, or to the end of the connection. At most MAX_BODY bytes."""
        total = 0
        async for piece in self._chunked() if "chunked" in self.headers.get("transfer-encoding", "") else self._plain():
            total += len(piece)
            if total > MAX_BODY:
                raise HttpError(f"The answer is longer than {MAX_BODY} bytes.")
            yield piece

    async def body(self) -> bytes:
        return b"".join([piece async for piece in self.pieces()])

    async def _chunked(self) -> AsyncIterator[bytes]:
        while True:
            size = int((await self.reader.readuntil(b"\r\n")).split(b";")[0], 16)
            if size > MAX_BODY:
                raise HttpError(f"A chunk of {size} bytes was announced.")
            piece = (await self.reader.readexactly(size + 2))[:-2]
            if size == 0:
                return
            yield piece

    async def _plain(self) -> AsyncIterator[bytes]:
        length = self.headers.get("content-length")
        if length is not None:
            if int(length) > MAX_BODY:
                raise HttpError(f"A body of {length} bytes was announced.")
            yield await self.reader.readexactly(int(length))
            return
        while piece := await self.reader.read(65536):
            yield piece


@asynccontextmanager
async def request(
    address: tuple[str, int],
    method: str,
    path: str,
    body: bytes = b"",
    content_type: str = "application/json",
) -> AsyncIterator[Response]:
    """One request on a connection of its own, which is closed with the block, read to its end or not."""
    reader, writer = await asyncio.open_connection(*address, limit=1 << 20)
    try:
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {address[0]}\r\nConnection: close\r\nContent-Type: {content_type}\r\n"
        )
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        status_line = (await reader.readuntil(b"\r\n")).split(b" ", 2)
        if len(status_line) < 2 or not status_line[0].startswith(b"HTTP/1."):
            raise HttpError("The server does not answer in HTTP/1.1.")
        headers: dict[str, str] = {}
        for _ in range(MAX_HEADERS):
            line = (await reader.readuntil(b"\r\n")).decode("latin-1").strip()
            if not line:
                yield Response(int(status_line[1]), headers, reader)
                return
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip().lower()
        raise HttpError(f"The answer has more than {MAX_HEADERS} headers.")
    finally:
        writer.close()


async def get(address: tuple[str, int], path: str, timeout: float = 30) -> tuple[int, bytes]:
    """Status and body."""
    async with asyncio.timeout(timeout), request(address, "GET", path) as response:
        return response.status, await response.body()


async def events(response: Response) -> AsyncIterator[Any]:
    """The JSON of each server-sent event, and the string "[DONE]" where it is said."""
    rest = b""
    async for piece in response.pieces():
        *whole, rest = (rest + piece).split(b"\n\n")
        for one in whole:
            data = one.removeprefix(b"data: ").strip()
            if data:
                yield "[DONE]" if data == b"[DONE]" else json.loads(data)


async def stream_completion(address: tuple[str, int], path: str, body: dict[str, Any], timeout: float) -> Answer:
    """Send a streaming completion and time its chunks. Never raises: what goes wrong is the answer's error."""
    answer = Answer(sent=time.perf_counter())
    try:
        async with asyncio.timeout(timeout), request(address, "POST", path, json.dumps(body).encode()) as response:
            if response.status != 200:
                text = (await response.body())[:300].decode(errors="replace")
                raise HttpError(f"status {response.status}: {text}")
            async for event in events(response):
                _take(answer, event)
        if answer.finish_reason is None or not answer.chunks:
            raise HttpError("the stream ended without a finish reason or without a token")
    except TimeoutError:
        answer.error = f"no whole answer within {timeout:g} s"
    except (KeyError, TypeError, AttributeError) as error:
        answer.error = f"an event is not that of a completion ({type(error).__name__}: {error})"
    except (OSError, ValueError, EOFError, asyncio.LimitOverrunError, PagedlabError) as error:
        answer.error = f"{type(error).__name__}: {error}"
    answer.ended = time.perf_counter()
    return answer


def _take(answer: Answer, event: Any) -> None:
    if event == "[DONE]":
        return
    if "error" in event:
        raise HttpError(str(event["error"])[:300])
    for choice in event["choices"]:
        if choice.get("text"):
            answer.chunks.append(time.perf_counter())
        if choice.get("finish_reason"):
            if answer.finish_reason is not None:
                raise HttpError("the stream has two finish reasons")
            answer.finish_reason, answer.finished = choice["finish_reason"], time.perf_counter()
            if not answer.chunks:  # every token was special and has no text
                answer.chunks.append(answer.finished)
    if usage := event.get("usage"):
        answer.num_prompt_tokens, answer.num_tokens = usage["prompt_tokens"], usage["completion_tokens"]


async def send_all(
    address: tuple[str, int],
    bodies: Sequence[dict[str, Any]],
    arrivals: Sequence[float],
    max_concurrency: int,
    timeout: float,
    path: str = "/v1/completions",
) -> tuple[list[Answer], float]:
    """Send each body at its time (seconds from now), at most `max_concurrency` at once; answers and seconds in all.

    A request that has to wait for its turn is timed from when it is sent, as vLLM's benchmark does.
    """
    turns = asyncio.Semaphore(max_concurrency)
    start = time.perf_counter()

    async def one(body: dict[str, Any], arrival: float) -> Answer:
        await asyncio.sleep(max(0.0, start + arrival - time.perf_counter()))
        async with turns:
            return await stream_completion(address, path, body, timeout)

    answers = await asyncio.gather(*(one(body, arrival) for body, arrival in zip(bodies, arrivals, strict=True)))
    return list(answers), time.perf_counter() - start
