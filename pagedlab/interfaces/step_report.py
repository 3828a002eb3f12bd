"""StepReport and Pending: what the engine's thread tells the event loop, and what the loop knows of each request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pagedlab.interfaces.engine import EngineStats
from pagedlab.interfaces.request_stream import Output, RequestStream
from pagedlab.trace import TraceEvent


@dataclass(slots=True)
class StepReport:
    """All that the event loop learns of one step: one message, however many requests the step advanced.

    Attributes:
        time: end of the step on time.perf_counter's clock, seconds
        num_tokens: tokens that it computed
        outputs: what is new, by request
        stats: the engine's counters after it
        events: trace events since the last report; none unless EngineConfig.enable_trace
        error: why the step raised, if it did
        num_commands: commands that the engine's thread had carried out before: who was queued later is not meant
    """

    time: float
    num_tokens: int
    outputs: list[Output]
    stats: EngineStats
    events: list[TraceEvent] = field(default_factory=list)
    error: str | None = None
    num_commands: int = 0


@dataclass(slots=True)
class Pending:
    """One request between its arrival and its last token, as the event loop sees it. Times as in StepReport.

    Attributes:
        stream, index: who awaits it, and its number there
        num_prompt_tokens: its share of the token bound
        arrival_time, first_token_time, last_token_time, num_tokens: what latency is computed from
        trace_headers: W3C trace context that it came with
        command: number of the command that queues it in the engine
    """

    stream: RequestStream
    index: int
    num_prompt_tokens: int
    arrival_time: float
    first_token_time: float | None = None
    last_token_time: float | None = None
    num_tokens: int = 0
    trace_headers: Mapping[str, str] | None = None
    command: int = 0
