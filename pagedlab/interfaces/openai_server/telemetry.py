"""Logs, one logger a layer, each line with its request's id: text for people, JSON for machines."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

interface_log = logging.getLogger("pagedlab.interfaces")
model_authoring_log = logging.getLogger("pagedlab.model_authoring")
runtime_log = logging.getLogger("pagedlab.runtime")

STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "request_id", "color_message"}
"""Attributes that every log record has; what a record has beyond them are the event's own fields."""


CLOSE_READINGS_NS = 50_000
"""Nanoseconds that reading both clocks takes at most, unless the thread was stopped in the midst of it."""


def wall_clock_offset_ns() -> int:
    """Nanoseconds since 1970 at the zero of time.perf_counter's clock.

    Both clocks cannot be read at once: a thread that is stopped between the two readings would be wrong by as much.
    """
    readings = []
    for _ in range(20):
        before, wall, after = time.perf_counter_ns(), time.time_ns(), time.perf_counter_ns()
        readings.append((after - before, wall - (before + after) // 2))
        if after - before < CLOSE_READINGS_NS:
            break
    return min(readings)[1]


def fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in record.__dict__.items() if name not in STANDARD}


def layer(record: logging.LogRecord) -> str:
    """pagedlab.runtime.worker -> runtime; uvicorn's own lines belong to the interface."""
    parts = record.name.split(".")
    return parts[1] if parts[0] == "pagedlab" and len(parts) > 1 else "interfaces"


def plain(text: str) -> str:
    """The text with whatever is no visible character spelt out.

    A client's text must not write lines of its own into the log, nor colour or overwrite those of others.
    """
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _traceback(record: logging.LogRecord) -> list[str]:
    """Indented, so that no line of an error's text looks like one of the log's own."""
    if not record.exc_info:
        return []
    text = logging.Formatter().formatException(record.exc_info)
    return [f"    {plain(line)}" for line in text.splitlines()]


class TextFormatter(logging.Formatter):
    """12:00:01.250 INFO    runtime          cmpl-5f… finished: prefill_s=0.02 decode_s=0.31"""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created)) + f".{int(record.msecs):03d}"
        request_id = getattr(record, "request_id", None)
        details = " ".join(f"{name}={value}" for name, value in fields(record).items())
        line = f"{clock} {record.levelname:7} {layer(record):15} {f'{request_id} ' if request_id else ''}"
        line += record.getMessage() + (f": {details}" if details else "")
        return "\n".join([plain(line), *_traceback(record)])


class JsonFormatter(logging.Formatter):
    """One object a line: time (seconds since 1970), level, layer, request_id, message, and the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": round(record.created, 6),
            "level": record.levelname.lower(),
            "layer": layer(record),
            "request_id": getattr(record, "request_id", None),
            "message": record.getMessage(),
            **fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logging(log_format: str, log_level: str) -> None:
    """Send the layers' lines, and uvicorn's, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    for name in ("pagedlab", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(log_level.upper())
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, logging.getLogger("pagedlab").level))
