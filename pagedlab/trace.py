"""Trace events: one structured record for each step of a request's way through the three layers.

The recorder is a bounded list: a long run forgets its oldest events instead of growing. `chrome_trace` turns the events
into Chrome trace-event JSON, which Perfetto and chrome://tracing open.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LAYERS = ("interfaces", "model_authoring", "runtime")


@dataclass(slots=True, frozen=True)
class TraceEvent:
    """One thing that happened.

    Attributes:
        name: what, e.g. add_request, schedule, preempt, forward, output, finish
        layer: which of LAYERS did it
        start: seconds on time.perf_counter's clock
        duration: seconds; 0 for an instant
        step: number of the engine step, -1 outside one
        request_id: whose; None when it concerns the whole batch
        args: details, plain JSON values
    """

    name: str
    layer: str
    start: float
    duration: float = 0.0
    step: int = -1
    request_id: str | None = None
    args: dict[str, Any] = field(default_factory=dict)


class Tracer:
    """Collects TraceEvents while `enabled`; costs one attribute test when it is not."""

    def __init__(self, enabled: bool = False, max_events: int = 200_000) -> None:
        self.enabled = enabled
        self.step = -1
        self.events: deque[TraceEvent] = deque(maxlen=max_events)

    def emit(self, name: str, layer: str, request_id: str | None = None, **args: Any) -> None:
        """Record an instant."""
        if self.enabled:
            self.events.append(TraceEvent(name, layer, time.perf_counter(), 0.0, self.step, request_id, args))

    @contextmanager
    def span(self, name: str, layer: str, request_id: str | None = None, **args: Any) -> Iterator[dict[str, Any]]:
        """Record how long the block took. The yielded dictionary takes details that are known only inside."""
        if not self.enabled:
            yield args
            return
        start = time.perf_counter()
        try:
            yield args
        finally:
            duration = time.perf_counter() - start
            self.events.append(TraceEvent(name, layer, start, duration, self.step, request_id, args))

    def of_request(self, request_id: str) -> list[TraceEvent]:
        """The request's own events, in order of time."""
        return sorted((e for e in self.events if e.request_id == request_id), key=lambda event: event.start)

    def chrome_trace(self) -> dict[str, Any]:
        """The events in Chrome's trace-event format: one process a layer, one thread a request (0: the batch)."""
        threads: dict[str | None, int] = {None: 0}
        rows: list[dict[str, Any]] = [
            {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": layer}}
            for pid, layer in enumerate(LAYERS, start=1)
        ]
        for event in self.events:
            thread = threads.setdefault(event.request_id, len(threads))
            row = {
                "name": event.name,
                "cat": event.layer,
                "pid": LAYERS.index(event.layer) + 1,
                "tid": thread,
                "ts": event.start * 1e6,
                "args": {"step": event.step, "request_id": event.request_id, **event.args},
            }
            rows.append(row | ({"ph": "X", "dur": event.duration * 1e6} if event.duration else {"ph": "i", "s": "t"}))
        return {"traceEvents": rows, "displayTimeUnit": "ms"}

    def save_chrome_trace(self, path: str | Path) -> Path:
        """Write `chrome_trace()` to a file and return its path."""
        path = Path(path)
        path.write_text(json.dumps(self.chrome_trace()))
        return path
