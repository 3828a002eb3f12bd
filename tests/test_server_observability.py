"""Metrics, logs, traces and the dashboard: what they say is what the engine did."""

from __future__ import annotations

import io
import json
import logging
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families
from server_tools import RunningServer, make_tiny_chat_model, running, wait_until

from pagedlab.interfaces.openai_server import dashboard
from pagedlab.interfaces.openai_server.metrics import percentiles
from pagedlab.interfaces.openai_server.spans import RequestSpans
from pagedlab.interfaces.openai_server.telemetry import JsonFormatter, TextFormatter, wall_clock_offset_ns

FINISHED = ["stop", "length", "abort", "error"]
NAMES = {
    "num_requests_running": "gauge",
    "num_requests_waiting": "gauge",
    "kv_cache_usage_perc": "gauge",
    "prefix_cache_queries": "counter",
    "prefix_cache_hits": "counter",
    "num_preemptions": "counter",
    "prompt_tokens": "counter",
    "generation_tokens": "counter",
    "request_success": "counter",
    "time_to_first_token_seconds": "histogram",
    "inter_token_latency_seconds": "histogram",
    "e2e_request_latency_seconds": "histogram",
    "request_queue_time_seconds": "histogram",
    "request_prefill_time_seconds": "histogram",
    "request_decode_time_seconds": "histogram",
    "iteration_tokens_total": "histogram",
}
"""The contract's, under `pagedlab:`."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_chat_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def server(model: Path) -> Iterator[RunningServer]:
    with running(model, num_blocks=128, served_model_name=["tiny"], enable_trace=True) as server:
        yield server


def ask(server: RunningServer, **body: object) -> dict:
    options = {"prompt": [5] * 40, "max_tokens": 6, "ignore_eos": True, **body}
    with server.client() as client:
        response = client.post("/v1/completions", json=options)
        assert response.status_code == 200, response.text
        return {"text": response.text} if body.get("stream") else response.json()


def samples(server: RunningServer) -> dict[str, float]:
    """name{label} -> value, where a label other than the model's stands."""
    with server.client() as client:
        response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    found = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("model_name") == "tiny"
            found[sample.name.removeprefix("pagedlab:") + "".join(labels.values())] = sample.value
    return found


# ---- metrics --------------------------------------------------------------------------------------------------------


def test_every_metric_of_the_contract_is_there_under_its_name_and_type(server: RunningServer) -> None:
    with server.client() as client:
        families = {f.name: f.type for f in text_string_to_metric_families(client.get("/metrics").text)}
    assert {f"pagedlab:{name}": kind for name, kind in NAMES.items()}.items() <= families.items()


def test_metrics_count_exactly_what_was_asked_for(server: RunningServer) -> None:
    ask(server)
    ask(server, stream=True)
    ask(server, n=2, temperature=1.0, stop_token_ids=[7], logit_bias={"7": 100})
    server.wait_idle()
    found = samples(server)
    assert found["prompt_tokens_total"] == 120
    assert found["generation_tokens_total"] == 6 + 6 + 2
    assert [found[f"request_success_total{reason}"] for reason in FINISHED] == [1, 2, 0, 0]
    assert found["prefix_cache_queries_total"] == 120 and found["prefix_cache_hits_total"] == 64
    for name in ("time_to_first_token_seconds", "request_queue_time_seconds", "request_prefill_time_seconds"):
        assert found[f"{name}_count"] == 3
    assert found["e2e_request_latency_seconds_count"] == 3
    assert 1 <= found["inter_token_latency_seconds_count"] <= 5, "of the stream"
    steps = server.engine.stats()
    assert found["iteration_tokens_total_count"] == steps.num_steps
    assert found["iteration_tokens_total_sum"] == steps.num_computed_tokens
    assert found["num_requests_running"] == found["num_requests_waiting"] == found["kv_cache_usage_perc"] == 0
    assert found["num_preemptions_total"] == 0


def test_an_aborted_request_is_counted_as_such(server: RunningServer) -> None:
    with (
        server.frozen(after=10),
        server.client() as client,
        client.stream(
            "POST", "/v1/completions", json={"prompt": "a", "max_tokens": 1500, "ignore_eos": True, "stream": True}
        ) as response,
    ):
        pieces = response.iter_raw()
        next(pieces)
        running_now = samples(server)
        assert running_now["num_requests_running"] == 1 and running_now["kv_cache_usage_perc"] > 0
    server.wait_idle()
    assert samples(server)["request_success_totalabort"] == 1


def test_labels_come_from_fixed_sets(server: RunningServer) -> None:
    before = set(samples(server))
    with server.client() as client:
        for number in range(5):
            client.get(f"/path-{number}")
            client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1, "user": f"user-{number}"})
            client.post("/v1/completions", json={"model": f"model-{number}", "prompt": "a"})
    assert set(samples(server)) == before


def test_percentiles_are_those_of_the_values() -> None:
    assert percentiles([]) == {"p50": None, "p90": None, "p99": None}
    assert percentiles(range(100)) == {"p50": 50, "p90": 90, "p99": 99}
    assert percentiles([3.0]) == {"p50": 3.0, "p90": 3.0, "p99": 3.0}


# ---- the dashboard --------------------------------------------------------------------------------------------------


def test_the_dashboard_shows_what_the_engine_holds(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pagedlab.interfaces.openai_server.metrics.RATE_SECONDS", 600)  # however slow this test is
    ask(server)
    with server.client() as client:
        body = {"prompt": [6] * 33, "n": 2, "max_tokens": 400, "ignore_eos": True, "stream": True}
        steps = server.engine.stats().num_steps + 20
        with server.frozen(after=20), client.stream("POST", "/v1/completions", json=body):
            wait_until(lambda: server.serving.engine.stats.num_steps == steps, "both completions run")
            data = client.get("/dashboard/data").json()
        assert data["running"] == 2 and data["waiting"] == 0 and data["pending"] == 1
        assert len(data["blocks"]) == data["num_blocks"] == 127 and data["blocks_per_cell"] == 1
        letters = {letter: data["blocks"].count(letter) for letter in "fcos"}
        assert letters["s"] == 2, "the two completions share the full blocks of their prompt"
        assert letters["c"] == 2, "the first request's full blocks can be hit"
        assert letters["o"] >= 2 and sum(letters.values()) == 127
        assert data["tokens_per_second"] > 0 and data["model"] == "tiny"
        server.wait_idle()
        later = client.get("/dashboard/data").json()
        assert later["running"] == 0 and set(later["blocks"]) <= {"f", "c"}
        assert later["ttft"]["p50"] > 0 and later["prefix_cache_hit_rate"] == 0


def test_of_a_large_pool_every_kth_block_is_shown(model: Path) -> None:
    with running(model, num_blocks=5000) as server, server.client() as client:
        data = client.get("/dashboard/data").json()
        assert data["num_blocks"] == 4999 and data["blocks_per_cell"] == 3 and len(data["blocks"]) == 1667


def test_the_page_needs_nothing_from_elsewhere(server: RunningServer) -> None:
    with server.client() as client:
        response = client.get("/dashboard")
    assert response.headers["content-type"].startswith("text/html")
    page = response.text
    assert not re.search(r"https?://|//[a-z]|src=|@import|url\(", page.replace("image/svg", "")), "an outside asset"
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert response.headers["content-security-policy"] == dashboard.POLICY
    asked_for = set(re.findall(r"data\.([a-z_]+)", page)) | {"running", "waiting", "preemptions", "ttft", "tpot"}
    assert asked_for - {"error"} <= set(dashboard.DashboardData.model_fields)
    for name in re.findall(r'byId\("(\w+)"\)', page):
        assert f'id="{name}"' in page


# ---- logs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What the layers log at debug, as JSON lines."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("pagedlab")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(before)


def test_a_request_can_be_followed_through_the_three_layers(server: RunningServer, log: io.StringIO) -> None:
    request_id = ask(server, max_tokens=3)["id"]
    server.wait_idle()
    # It is written after the answer has gone.
    wait_until(lambda: "POST /v1/completions" in log.getvalue(), "the last line is written")
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    mine = [
        line
        for line in lines
        if line["request_id"] == request_id or request_id in line.get("details", {}).get("requests", ())
    ]
    assert {line["layer"] for line in mine} == {"interfaces", "model_authoring", "runtime"}
    messages = [(line["layer"], line["message"]) for line in mine]
    for step in [
        ("interfaces", "add_request"),
        ("model_authoring", "schedule"),
        ("model_authoring", "pack"),
        ("runtime", "forward"),
        ("model_authoring", "update"),
        ("interfaces", "finish"),
        ("interfaces", "finished"),
        ("model_authoring", "scheduled"),
        ("runtime", "computed"),
    ]:
        assert step in messages, step
    assert sum(step == ("runtime", "forward") for step in messages) == 3
    events = sorted((line for line in mine if "event" in line), key=lambda line: line["time"])
    order = ["admit", "parse", "add_request", "schedule", "pack", "forward", "update"]
    assert [line["event"] for line in events][: len(order)] == order, "a line's time is when it happened"
    assert mine[0]["time"] <= events[-1]["time"] <= time.time()
    (end,) = [line for line in mine if line["message"] == "finished"]
    assert (end["prompt_tokens"], end["output_tokens"], end["reason"]) == (40, 3, "length")
    access = [line for line in lines if line["message"] == "POST /v1/completions"]
    assert access[0]["status"] == 200 and request_id.endswith(access[0]["request_id"])


def test_no_text_of_a_client_is_logged(server: RunningServer, log: io.StringIO) -> None:
    with server.client() as client:
        headers = {"Authorization": "Bearer my-secret-key"}
        client.post("/v1/completions", json={"prompt": "my secret prompt", "max_tokens": 3}, headers=headers)
        client.post("/v1/completions", json={"prompt": "my secret prompt", "max_tokens": -3}, headers=headers)
    assert "secret" not in log.getvalue() and log.getvalue()


def test_a_line_of_text_stays_one_line() -> None:
    record = logging.makeLogRecord(
        {"name": "pagedlab.runtime", "msg": "GET /a\r\nfake", "levelname": "INFO", "request_id": "r-1", "status": 200}
    )
    line = TextFormatter().format(record)
    assert "\n" not in line and "runtime" in line and "r-1" in line and line.endswith("status=200")
    assert json.loads(JsonFormatter().format(record))["layer"] == "runtime"


@pytest.mark.parametrize("pauses", [0, 1, 3, 20])
def test_a_pause_between_the_readings_of_two_clocks_moves_no_time(monkeypatch: pytest.MonkeyPatch, pauses: int) -> None:
    """A thread may be stopped for seconds anywhere, also between the readings; of 20 it takes the closest."""
    now, since_1970, left = 10**9, 1_700_000_000 * 10**9, pauses

    def perf_counter() -> int:
        nonlocal now
        now += 100
        return now

    def wall_clock() -> int:
        nonlocal now, left
        read = since_1970 + now
        now, left = now + (left > 0) * (1_000_000 if left == pauses else 3 * 10**9), left - 1
        return read

    monkeypatch.setattr(time, "perf_counter_ns", perf_counter)
    monkeypatch.setattr(time, "time_ns", wall_clock)
    assert abs(wall_clock_offset_ns() - since_1970) <= (500_100 if pauses == 20 else 100)


# ---- traces ---------------------------------------------------------------------------------------------------------


def test_the_chrome_trace_holds_every_step_of_a_request(server: RunningServer) -> None:
    request_id = ask(server, max_tokens=3)["id"]
    server.wait_idle()
    with server.client() as client:
        trace = client.get("/trace").json()
    rows = trace["traceEvents"]
    assert {row["args"]["name"] for row in rows if row["ph"] == "M"} == {"interfaces", "model_authoring", "runtime"}
    assert {"add_request", "finish"} <= {row["name"] for row in rows if row["args"].get("request_id") == request_id}
    assert sum(row["name"] == "forward" for row in rows) == 3
    assert all(row["dur"] > 0 for row in rows if row["ph"] == "X")


def test_without_tracing_the_trace_is_a_404_that_says_what_to_do(model: Path) -> None:
    with running(model, num_blocks=64) as server, server.client() as client:
        assert "--enable-trace" in client.get("/trace").json()["error"]["message"]


def test_the_trace_file_is_written_when_the_server_ends(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    with running(model, num_blocks=64, enable_trace=True, trace_file=str(file)) as server:
        ask(server)
    assert any(row["name"] == "forward" for row in json.loads(file.read_text())["traceEvents"])


def test_each_request_becomes_spans_under_the_clients_own(server: RunningServer) -> None:
    exporter = InMemorySpanExporter()
    server.server.config.app.state.observer.spans = spans = RequestSpans(exporter, "tiny")  # type: ignore[union-attr]
    trace_id, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with server.client() as client:
        answer = client.post(
            "/v1/completions",
            json={"prompt": [5] * 4, "max_tokens": 5, "ignore_eos": True},
            headers={"traceparent": f"00-{trace_id}-{parent}-01"},
        ).json()
    server.wait_idle()
    spans.close()
    found = {span.name: span for span in exporter.get_finished_spans()}
    assert set(found) == {"llm_request", "queue", "prefill", "decode"}
    request = found["llm_request"]
    assert f"{request.context.trace_id:032x}" == trace_id and f"{request.parent.span_id:016x}" == parent
    assert request.attributes["gen_ai.request.id"] == answer["id"]
    assert request.attributes["gen_ai.usage.input_tokens"] == 4
    assert request.attributes["gen_ai.usage.output_tokens"] == 5
    for name in ("queue", "prefill", "decode"):
        assert found[name].parent.span_id == request.context.span_id
        assert request.start_time - 1000 <= found[name].start_time <= found[name].end_time <= request.end_time + 1000
    assert found["queue"].end_time == pytest.approx(found["prefill"].start_time, abs=1_000_000)


def test_spans_arrive_at_a_collector(model: Path) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    received: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            import gzip

            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    collector = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    try:
        endpoint = f"http://127.0.0.1:{collector.server_port}/v1/traces"
        with running(model, num_blocks=64, otlp_traces_endpoint=endpoint) as server:
            ask(server)
    finally:
        collector.shutdown()
        collector.server_close()
    names = [
        span.name
        for body in received
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert sorted(names) == ["decode", "llm_request", "prefill", "queue"]
