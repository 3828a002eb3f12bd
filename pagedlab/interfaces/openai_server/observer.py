"""Observer: everything that is told of a step and of a request's end: metrics, log lines, trace events, spans."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pagedlab.interfaces.async_engine import Pending, StepReport
from pagedlab.interfaces.openai_server.metrics import ServerMetrics
from pagedlab.interfaces.openai_server.spans import RequestSpans
from pagedlab.interfaces.openai_server.telemetry import (
    interface_log,
    model_authoring_log,
    runtime_log,
    wall_clock_offset_ns,
)
from pagedlab.interfaces.outputs import RequestOutput
from pagedlab.trace import TraceEvent, Tracer

MAX_EVENTS = 200_000
CLOCKS_APART = 0.1
"""Seconds that the two clocks may drift apart before the log follows; between two steps of NTP its differences are
exact."""


class Observer:
    """Runs on the event loop, after a step and before its readers wake: it costs the engine's thread nothing.

    Args:
        metrics: counts all.
        spans: sends each request to an OpenTelemetry collector; None sends nothing.
    """

    def __init__(self, metrics: ServerMetrics, spans: RequestSpans | None = None) -> None:
        self.metrics = metrics
        self.spans = spans
        self.events: deque[TraceEvent] = deque(maxlen=MAX_EVENTS)
        self._scheduled: list[str] = []
        self._offset = wall_clock_offset_ns() / 1e9

    def step(self, report: StepReport, pending: dict[str, Pending]) -> None:
        self.metrics.observe(report, pending)
        self.events.extend(report.events)
        if interface_log.isEnabledFor(logging.DEBUG):
            for event in report.events:
                self._log_event(event)
        for output in report.outputs:
            one = pending.get(output.request_id)
            if one is not None and output.finished:
                if isinstance(output, RequestOutput):
                    log_request(one, output, report.time)
                if self.spans is not None:
                    self.spans.send(one, output, report.time)

    def accepted(self, request_ids: Sequence[str], arrived: float, admitted: float) -> None:
        """Trace what HTTP did with a call's requests before the engine got them; times on time.perf_counter's clock.

        Args:
            arrived: its head was read.
            admitted: key, rate limit and body were in order; since then a route parsed and validated it.
        """
        now = time.perf_counter()
        for request_id in request_ids:
            for name, start, end in (("admit", arrived, admitted), ("parse", admitted, now)):
                event = TraceEvent(name, "interfaces", start, end - start, request_id=request_id)
                self.events.append(event)
                if interface_log.isEnabledFor(logging.DEBUG):
                    self._log_event(event)

    def abort(self, request_id: str, one: Pending) -> None:
        now = time.perf_counter()
        self.metrics.abort(one, now)
        interface_log.info("aborted", extra={"request_id": request_id, "output_tokens": one.num_tokens})

    def recorded(self) -> Tracer:
        """The events so far, for another thread to write: no more are added to it."""
        tracer = Tracer()
        tracer.events = self.events.copy()
        return tracer

    def save_chrome_trace(self, path: str | Path) -> None:
        """Write the events for Perfetto or chrome://tracing."""
        self.recorded().save_chrome_trace(path)

    def close(self) -> None:
        if self.spans is not None:
            self.spans.close()

    def _log_event(self, event: TraceEvent) -> None:
        """One line an event, at the time when it happened, which is before it is written.

        What concerns a whole batch names the requests that the scheduler put into it.
        """
        if event.name == "schedule":
            self._scheduled = list(event.args.get("requests", ()))
        details: dict[str, Any] = {"step": event.step, **event.args}
        if event.request_id is None:
            details["requests"] = event.args.get("requests", self._scheduled)
        if event.duration:
            details["milliseconds"] = round(event.duration * 1e3, 3)
        extra = {"request_id": event.request_id, "event": event.name, "details": details}
        logger = logging.getLogger(f"pagedlab.{event.layer}")
        record = logger.makeRecord(logger.name, logging.DEBUG, __file__, 0, event.name, (), None, extra=extra)
        record.created = self._wall_clock(event.start)
        record.msecs = record.created % 1 * 1e3
        logger.handle(record)

    def _wall_clock(self, moment: float) -> float:
        """Seconds since 1970 of a moment on time.perf_counter's clock."""
        offset = wall_clock_offset_ns() / 1e9
        if abs(offset - self._offset) > CLOCKS_APART:
            self._offset = offset
        return moment + self._offset


def log_request(one: Pending, output: RequestOutput, now: float) -> None:
    """A finished request in three lines: each layer's share of its time, in seconds."""
    request_id = output.request_id
    reasons = sorted({str(completion.finish_reason) for completion in output.outputs})
    interface_log.info(
        "finished",
        extra={
            "request_id": request_id,
            "reason": ",".join(reasons),
            "prompt_tokens": one.num_prompt_tokens,
            "output_tokens": one.num_tokens,
            "seconds": round(now - one.arrival_time, 4),
        },
    )
    scheduled = output.metrics.first_scheduled_time if output.metrics else None
    if scheduled is None or one.first_token_time is None:
        return
    model_authoring_log.info(
        "scheduled",
        extra={
            "request_id": request_id,
            "queue_seconds": round(max(0.0, scheduled - one.arrival_time), 4),
            "cached_tokens": output.num_cached_tokens,
        },
    )
    runtime_log.info(
        "computed",
        extra={
            "request_id": request_id,
            "prefill_seconds": round(max(0.0, one.first_token_time - scheduled), 4),
            "decode_seconds": round(max(0.0, now - one.first_token_time), 4),
        },
    )
