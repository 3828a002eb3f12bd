"""How answers of chapter 12 are tried: streams as they come from the network, and servers that refuse.

An answer that returns nothing gives None, which readers are told; any other shape that is not asked for raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def from_the_network(answer: Any, pieces: Sequence[tuple[float, str]]) -> list[Any] | None:
    """Pieces of a body, each with its time; a character stands for a byte."""
    got = answer([(seconds, text.encode("latin-1")) for seconds, text in pieces])
    return None if got is None else list(got)


def refusing_server(answer: Any, script: Sequence[tuple[int, dict[str, str]]], most: int) -> dict[str, Any]:
    """What a client gets from a server that answers as the script says, and how long it slept in between."""
    sleeps: list[float] = []
    tries = 0

    def send() -> tuple[int, dict[str, str]]:
        nonlocal tries
        tries += 1
        status, headers = script[min(tries, len(script)) - 1]
        if tries > 1000:
            raise RuntimeError("The client never gives up: it has tried 1000 times.")
        return status, dict(headers)

    status = answer(send, sleeps.append, most)
    return {"status": status, "tries": tries, "slept": [float(seconds) for seconds in sleeps]}


def sorted_out(answer: Any, lines: Sequence[str], request_id: str) -> dict[str, list[str]] | None:
    """Names of the request's lines by layer."""
    got = answer(list(lines), request_id)
    return None if got is None else {str(layer): list(names) for layer, names in dict(got).items()}


def timed(answer: Any, lines: Sequence[str], request_id: str) -> list[float] | None:
    """Two times in seconds."""
    got = answer(list(lines), request_id)
    return None if got is None else [float(seconds) for seconds in got]


def reported(answer: Any, requests: Sequence[dict[str, Any]], *arguments: float) -> dict[str, Any] | None:
    """A report on answered and failed requests, which the answer may change as it likes."""
    got = answer([dict(request) for request in requests], *arguments)
    return None if got is None else dict(got)
