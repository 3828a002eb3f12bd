"""Messages between the processes of grading: a length, then JSON; never a pickle."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

HEADER = struct.Struct(">I")
MAX_MESSAGE = 256 << 20


def send(connection: socket.socket, message: Any) -> None:
    body = json.dumps(message).encode()
    connection.sendall(HEADER.pack(len(body)) + body)


def receive(connection: socket.socket) -> Any:
    """The next message.

    Raises:
        EOFError: the other side is gone.
    """
    (length,) = HEADER.unpack(receive_bytes(connection, HEADER.size))
    if length > MAX_MESSAGE:
        raise EOFError("a message is too long")
    return json.loads(receive_bytes(connection, length))


def receive_bytes(connection: socket.socket, length: int) -> bytes:
    parts = []
    while length:
        part = connection.recv(min(length, 1 << 20))
        if not part:
            raise EOFError("the other side is gone")
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def write_frame(descriptor: int, message: Any) -> None:
    body = json.dumps(message).encode()
    frame = memoryview(HEADER.pack(len(body)) + body)
    while frame:
        frame = frame[os.write(descriptor, frame) :]


def frames(raw: bytes, was_cut: bool) -> Iterator[dict[str, Any]]:
    """The frames that a trial wrote. An answer may have written there, too.

    Args:
        raw: what came
        was_cut: the trial was stopped, so the last frame may not be whole

    Raises:
        ValueError: there is something else among them.
    """
    place = 0
    while place + HEADER.size <= len(raw):
        (length,) = HEADER.unpack_from(raw, place)
        place += HEADER.size
        if place + length > len(raw):
            break
        try:
            frame = json.loads(raw[place : place + length])
        except RecursionError as error:
            raise ValueError("a frame is no message") from error
        if not isinstance(frame, dict):
            raise ValueError("a frame is no message")
        yield frame
        place += length
    if place != len(raw) and not was_cut:
        raise ValueError("something follows the last frame")
