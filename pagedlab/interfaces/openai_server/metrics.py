"""ServerMetrics: what Prometheus scrapes, under vLLM's names, and the recent latencies that the dashboard shows."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pagedlab.interfaces.async_engine import AsyncLLMEngine, Pending, StepReport
from pagedlab.interfaces.outputs import PoolingRequestOutput, RequestOutput

LATENCY = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
LONG = (0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
SIZES = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
FINISHED_REASONS = ("stop", "length", "abort", "error")
NUM_RECENT = 1024
RATE_SECONDS = 5

EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"


class ServerMetrics:
    """Counts what passes. Labels come from fixed sets only, so that no client can make the series grow.

    Args:
        model_name: the label that every series has, as vLLM's have.
    """

    def __init__(self, model_name: str) -> None:
        self.registry = CollectorRegistry()
        self._name = model_name

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"pagedlab:{name}", text, ["model_name"], registry=self.registry, buckets=buckets).labels(
                model_name
            )

        def counter(name: str, text: str) -> Counter:
            return Counter(f"pagedlab:{name}", text, ["model_name"], registry=self.registry).labels(model_name)

        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of requests that began to run.")
        self.generation_tokens = counter("generation_tokens", "Tokens generated.")
        self.requests = Counter(
            "pagedlab:request_success",
            "Requests that ended, by how.",
            ["model_name", "finished_reason"],
            registry=self.registry,
        )
        for reason in FINISHED_REASONS:
            self.requests.labels(model_name, reason)
        self.ttft = histogram("time_to_first_token_seconds", "Arrival to first token.", LATENCY)
        self.itl = histogram("inter_token_latency_seconds", "One token to the next, of streams.", LATENCY)
        self.tpot = histogram("request_time_per_output_token_seconds", "The same, a request's mean.", LATENCY)
        self.e2e = histogram("e2e_request_latency_seconds", "Arrival to last token.", LONG)
        self.queue = histogram("request_queue_time_seconds", "Arrival to first step.", LONG)
        self.prefill = histogram("request_prefill_time_seconds", "First step to first token.", LONG)
        self.decode = histogram("request_decode_time_seconds", "First token to last token.", LONG)
        self.iteration_tokens = histogram("iteration_tokens_total", "Tokens computed in a step.", SIZES)
        self.recent_ttft: deque[float] = deque(maxlen=NUM_RECENT)
        self.recent_tpot: deque[float] = deque(maxlen=NUM_RECENT)
        self._recent_tokens: deque[tuple[float, int]] = deque(maxlen=8 * NUM_RECENT)

    def watch(self, engine: AsyncLLMEngine) -> None:
        """Also show the engine's own counters."""
        self.registry.register(EngineCollector(engine, self._name))

    def tokens_per_second(self, now: float) -> float:
        """Tokens generated over the last seconds; those of a request that is not streamed count when it ends."""
        return sum(count for moment, count in self._recent_tokens if moment > now - RATE_SECONDS) / RATE_SECONDS

    def exposition(self) -> tuple[bytes, str]:
        """Prometheus' text, and its content type."""
        return generate_latest(self.registry), EXPOSITION

    def observe(self, report: StepReport, pending: dict[str, Pending]) -> None:
        """Book one step. Runs on the event loop; the times are those of the engine's thread."""
        if report.num_tokens:
            self.iteration_tokens.observe(report.num_tokens)
        for output in report.outputs:
            one = pending.get(output.request_id)
            if one is None:
                continue
            if isinstance(output, PoolingRequestOutput):
                self.prompt_tokens.inc(one.num_prompt_tokens)
                self._end(one, report.time, "stop")
                continue
            self._tokens(one, output, report.time)
            if output.finished:
                self._finish(one, output, report.time)

    def abort(self, one: Pending, now: float) -> None:
        """Book a request that its client gave up, or the server."""
        self._end(one, now, "abort")

    def _tokens(self, one: Pending, output: RequestOutput, now: float) -> None:
        num_new = sum(len(completion.token_ids) for completion in output.outputs)
        if not num_new:
            return
        self.generation_tokens.inc(num_new)
        self._recent_tokens.append((now, num_new))
        one.num_tokens += num_new
        if one.first_token_time is None:
            metrics = output.metrics
            one.first_token_time = (metrics.first_token_time if metrics else None) or now
            self.prompt_tokens.inc(one.num_prompt_tokens)
            self.ttft.observe(one.first_token_time - one.arrival_time)
            self.recent_ttft.append(one.first_token_time - one.arrival_time)
        elif one.last_token_time is not None:
            self.itl.observe(now - one.last_token_time)
        one.last_token_time = now

    def _finish(self, one: Pending, output: RequestOutput, now: float) -> None:
        reasons = {completion.finish_reason for completion in output.outputs}
        self._end(one, now, next((reason for reason in FINISHED_REASONS[::-1] if reason in reasons), "stop"))
        scheduled = output.metrics.first_scheduled_time if output.metrics else None
        if scheduled is None or one.first_token_time is None:
            return
        self.queue.observe(max(0.0, scheduled - one.arrival_time))
        self.prefill.observe(max(0.0, one.first_token_time - scheduled))
        self.decode.observe(max(0.0, now - one.first_token_time))
        tokens_each = one.num_tokens / max(1, len(output.outputs))
        if tokens_each > 1:
            tpot = max(0.0, now - one.first_token_time) / (tokens_each - 1)
            self.tpot.observe(tpot)
            self.recent_tpot.append(tpot)

    def _end(self, one: Pending, now: float, reason: str) -> None:
        self.requests.labels(self._name, reason).inc()
        self.e2e.observe(now - one.arrival_time)


class EngineCollector(Collector):
    """The engine's state at the moment of the scrape, as of its last step."""

    def __init__(self, engine: AsyncLLMEngine, model_name: str) -> None:
        self._engine = engine
        self._model_name = model_name

    def collect(self) -> Iterable[Metric]:
        stats = self._engine.stats
        waiting = max(0, len(self._engine.pending) - stats.num_running) if self._engine.pending else 0
        gauges = (
            ("num_requests_running", "Sequences that run.", stats.num_running),
            ("num_requests_waiting", "Requests that wait.", max(stats.num_waiting, waiting)),
            ("kv_cache_usage_perc", "Share of the KV blocks in use, 0 to 1.", stats.kv_cache_usage),
        )
        counters = (
            ("prefix_cache_queries", "Tokens looked up in the prefix cache.", stats.prefix_cache_queries),
            ("prefix_cache_hits", "Tokens found there.", stats.prefix_cache_hits),
            ("num_preemptions", "Times that a request lost its blocks.", stats.num_preemptions),
        )
        for name, text, value in gauges:
            gauge = GaugeMetricFamily(f"pagedlab:{name}", text, labels=["model_name"])
            gauge.add_metric([self._model_name], value)
            yield gauge
        for name, text, value in counters:
            counter = CounterMetricFamily(f"pagedlab:{name}", text, labels=["model_name"])
            counter.add_metric([self._model_name], value)
            yield counter


def percentiles(values: Iterable[float], ranks: Sequence[float] = (50, 90, 99)) -> dict[str, float | None]:
    """p50, p90 ... of the values (nearest rank); None where there are none."""
    ordered = sorted(values)
    return {
        f"p{rank:g}": ordered[min(len(ordered) - 1, int(len(ordered) * rank / 100))] if ordered else None
        for rank in ranks
    }
