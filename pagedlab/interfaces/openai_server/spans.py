"""RequestSpans: each finished request as OpenTelemetry spans: the whole, and its queue, prefill and decode."""

from __future__ import annotations

from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from pagedlab.errors import ConfigError
from pagedlab.interfaces.async_engine import Pending
from pagedlab.interfaces.openai_server.telemetry import wall_clock_offset_ns
from pagedlab.interfaces.outputs import RequestOutput
from pagedlab.interfaces.request_stream import Output

EXPORT_TIMEOUT = 5
"""Seconds; an absent collector must not hold up the server's end."""


class RequestSpans:
    """Spans are made when a request has ended, from its times, and leave in batches on a thread of the SDK's own.

    A client's `traceparent` header makes its span the parent. Attributes have the names of the semantic conventions for
    generative AI.

    Args:
        exporter: where they go.
        model_name: an attribute of each.
    """

    def __init__(self, exporter: SpanExporter, model_name: str) -> None:
        self._provider = TracerProvider(resource=Resource.create({"service.name": "pagedlab"}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("pagedlab.interfaces")
        self._propagator = TraceContextTextMapPropagator()
        self._model_name = model_name

    def send(self, one: Pending, output: Output, now: float) -> None:
        parent = self._propagator.extract(dict(one.trace_headers or {}))
        attributes: dict[str, Any] = {
            "gen_ai.request.id": output.request_id,
            "gen_ai.response.model": self._model_name,
            "gen_ai.usage.input_tokens": one.num_prompt_tokens,
            "gen_ai.usage.output_tokens": one.num_tokens,
        }
        scheduled = None
        if isinstance(output, RequestOutput):
            reasons = [str(completion.finish_reason) for completion in output.outputs]
            attributes["gen_ai.response.finish_reasons"] = reasons
            scheduled = output.metrics.first_scheduled_time if output.metrics else None
        offset = wall_clock_offset_ns()  # the same for all: one span's end is the next one's beginning

        def wall_clock(moment: float) -> int:
            """Nanoseconds since 1970 of a moment on time.perf_counter's clock."""
            return offset + int(moment * 1e9)

        span = self._tracer.start_span(
            "llm_request",
            parent,
            kind=trace.SpanKind.SERVER,
            attributes=attributes,
            start_time=wall_clock(one.arrival_time),
        )
        inside = trace.set_span_in_context(span)
        times = [one.arrival_time, scheduled, one.first_token_time, now]
        for name, begin, end in zip(("queue", "prefill", "decode"), times, times[1:], strict=False):
            if begin is not None and end is not None:
                self._tracer.start_span(name, inside, start_time=wall_clock(begin)).end(wall_clock(max(begin, end)))
        span.end(wall_clock(now))

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def otlp_exporter(endpoint: str) -> SpanExporter:
    """Sends spans to a collector over HTTP.

    Raises:
        ConfigError: the package that does it is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ModuleNotFoundError:
        raise ConfigError(
            "otlp_traces_endpoint needs opentelemetry-exporter-otlp-proto-http: pip install 'pagedlab[server]'."
        ) from None
    return OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_TIMEOUT)
