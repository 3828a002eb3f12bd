"""HttpProtocol: one connection: how long a client may take to ask, and how long it may leave an answer unread."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from pagedlab.interfaces.openai_server.errors import ApiError
from pagedlab.interfaces.openai_server.telemetry import interface_log

LEAST_READ = 16 << 10
"""Bytes that a client must take within `send_timeout` if more than that wait for it."""


class HttpProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, with bounds of its own. It is h11's rather than the faster httptools, which bounds no header.

    uvicorn waits for ever for a request's head, and for a client that reads nothing of an answer: each would keep a
    connection, and what was written to it, in memory.

    Args:
        head_timeout: seconds that a client may be connected without asking for anything.
        send_timeout: seconds after which a client that reads nothing is cut off.
        arguments: uvicorn's.
    """

    def __init__(self, *, head_timeout: float, send_timeout: float, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._head_timeout = head_timeout
        self._send_timeout = send_timeout
        self._head_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._head_timer, self._send_timer):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_head()

    def pause_writing(self) -> None:
        """The transport's buffer is full: from now on the client has to read."""
        super().pause_writing()
        self._send_timer = self.loop.call_later(self._send_timeout, self._check_read, self._num_unread())

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._send_timer is not None:
            self._send_timer.cancel()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP never reaches the app; it gets the stated shape here."""
        body = json.dumps(ApiError(400, msg).body().model_dump()).encode()
        head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()

    def _watch_head(self) -> None:
        """Let the time run while no request is answered; single bytes of one do not set it back."""
        if self._is_answering and self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        elif not self._is_answering and self._head_timer is None:
            self._head_timer = self.loop.call_later(self._head_timeout, self._end_idle)

    def _end_idle(self) -> None:
        self._head_timer = None
        if not self._is_answering:
            self.transport.close()  # once what was written has been read

    def _num_unread(self) -> int:
        return self.transport.get_write_buffer_size()

    def _check_read(self, before: int) -> None:
        now = self._num_unread()
        if before - now < LEAST_READ:
            state = self.scope["state"] if self.scope else {}
            interface_log.warning("the client does not read", extra={"request_id": state.get("request_id")})
            self.transport.abort()  # to close it would be to wait for the reader
        else:
            self._send_timer = self.loop.call_later(self._send_timeout, self._check_read, now)
