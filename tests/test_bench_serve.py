"""`pagedlab bench serve` and `bench soak`: they count every token, and say so and fail when something is wrong."""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from server_tools import make_tiny_chat_model, running, wait_until
from transformers import AutoTokenizer

from pagedlab.bench import cli, serve, servers, soak
from pagedlab.bench.http_load import Answer, loopback_url, stream_completion
from pagedlab.bench.serve_load import Slo, check_counts, scaled_lengths, serve_jobs, summarize, whole_words
from pagedlab.bench.servers import ServerStartError, parse_metrics, transformers_server
from pagedlab.errors import ConfigError, PagedlabError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_chat_model(tmp_path_factory.mktemp("model"))


def make_words(model: Path) -> tuple[list[str], Any]:
    tokenizer = AutoTokenizer.from_pretrained(model)
    words = whole_words(lambda text: tokenizer.encode(text, add_special_tokens=False), 384, tokenizer.decode)
    return words, tokenizer


# ---- the client -----------------------------------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def sse(*events: Any) -> bytes:
    """Events in chunks of 7 bytes, so that no chunk is an event."""
    text = b"".join(b"data: " + (e if isinstance(e, bytes) else json.dumps(e).encode()) + b"\n\n" for e in events)
    pieces = [text[i : i + 7] for i in range(0, len(text), 7)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def chunk(text: str = "", reason: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, "finish_reason": reason}], **more}


USAGE = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


@contextmanager
def canned(answer: bytes) -> Iterator[tuple[str, int]]:
    """A server that says the same to everybody, one connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                asked = b""
                while not asked.endswith(b"\r\n\r\n{}"):  # what is left unread would reset the connection
                    asked += connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield ("127.0.0.1", listener.getsockname()[1])
        thread.join(60)


def ask(answer: bytes) -> Answer:
    with canned(answer) as address:
        return asyncio.run(stream_completion(address, "/v1/completions", {}, timeout=60))


def test_a_stream_in_odd_pieces_is_read_whole() -> None:
    answer = ask(HEAD + sse(chunk("a"), chunk("b", "length"), USAGE, b"[DONE]"))
    assert answer.error is None
    assert (len(answer.chunks), answer.num_prompt_tokens, answer.num_tokens) == (2, 3, 2)
    assert answer.sent <= answer.chunks[0] <= answer.chunks[1] <= answer.finished <= answer.ended


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy", "status 503: busy"),
        (HEAD + sse(chunk("a"), {"error": {"message": "the engine is gone"}}, b"[DONE]"), "the engine is gone"),
        (HEAD + sse(chunk("a"), b"[DONE]"), "without a finish reason"),
        (HEAD + sse(chunk("a", "stop"), chunk("b", "stop"), b"[DONE]"), "two finish reasons"),
        (HEAD + sse(chunk("a"))[:-20], "IncompleteReadError"),
        (HEAD + sse(b"{nonsense"), "JSONDecodeError"),
        (HEAD + b"fffffffff\r\n", "was announced"),
        (HEAD + sse({"object": "ping"}, b"[DONE]"), "not that of a completion"),
        (HEAD + sse(b"null"), "not that of a completion"),
        (HEAD + sse({"choices": ["a"]}), "not that of a completion"),
        (HEAD + sse(chunk("a", "length"), {"choices": [], "usage": {"prompt_tokens": 1}}), "completion_tokens"),
        (b"SSH-2.0-OpenSSH\r\n", "does not answer in HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200, "more than 100 headers"),
        (b"", "IncompleteReadError"),
    ],
)
def test_what_goes_wrong_is_the_answers_error(answer: bytes, error: str) -> None:
    assert error in (ask(answer).error or "")


@pytest.mark.parametrize(
    "url",
    ["http://example.org:8000", "https://127.0.0.1", "http://127.0.0.1.example.org", "http://localhost:99999", "x"],
)
def test_load_is_put_on_this_machine_alone(url: str) -> None:
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1"):
        loopback_url(url)
    assert loopback_url("http://localhost:8000/") == ("localhost", 8000)


# ---- workload and numbers -------------------------------------------------------------------------------------------


def test_prompts_have_the_lengths_that_were_drawn(model: Path) -> None:
    words, tokenizer = make_words(model)
    jobs = serve_jobs(200, words, scaled_lengths("sharegpt", 0.25, 2048), seed=3)
    assert all(len(tokenizer.encode(job.prompt, add_special_tokens=False)) == job.num_prompt_tokens for job in jobs)
    assert np.mean([job.num_prompt_tokens for job in jobs]) == pytest.approx(161.31 / 4, rel=0.02)
    assert np.mean([job.max_tokens for job in jobs]) == pytest.approx(337.99 / 4, rel=0.02)
    assert jobs == serve_jobs(200, words, scaled_lengths("sharegpt", 0.25, 2048), seed=3)


def test_numbers_by_hand() -> None:
    """Two good answers and a failed one; numpy's percentiles are the oracle."""
    fast = Answer(0.0, [0.1, 0.2, 0.4], 0.4, 0.5, 7, 4, "length")
    slow = Answer(1.0, [3.0], 3.0, 3.0, 5, 1, "length")
    failed = Answer(error="refused")
    result = summarize([fast, slow, failed], 2.0, Slo(ttft=1.0, tpot=0.11))
    assert (result["completed"], result["failed"], result["total_output_tokens"]) == (2, 1, 5)
    assert result["output_throughput"] == 2.5 and result["request_throughput"] == 1.0
    assert result["good_requests"] == 1 and result["request_goodput"] == 0.5
    assert result["median_ttft_ms"] == pytest.approx(1050)
    assert result["p99_ttft_ms"] == pytest.approx(np.percentile([100, 2000], 99))
    assert result["mean_tpot_ms"] == pytest.approx(100) and result["mean_itl_ms"] == pytest.approx(150)
    assert result["p50_e2el_ms"] == pytest.approx(1250)
    assert summarize([fast], 2.0, Slo(ttft=1.0, tpot=0.09))["good_requests"] == 0


def test_an_answer_with_a_token_too_few_is_an_error(model: Path) -> None:
    job = serve_jobs(1, make_words(model)[0], scaled_lengths("alpaca", 1, 2048))[0]
    for prompt, output, reason in ((0, -1, "length"), (1, 0, "length"), (0, 0, "stop")):
        answer = Answer(
            0, [1], 1, 1, job.num_prompt_tokens + prompt, num_tokens=job.max_tokens + output, finish_reason=reason
        )
        check_counts([job], [answer])
        assert answer.error
    right = Answer(0, [1], 1, 1, job.num_prompt_tokens + 1, job.max_tokens, "length")
    check_counts([job], [right], extra_prompt_tokens=1)
    assert right.error is None


# ---- the whole command ----------------------------------------------------------------------------------------------

SMALL = ["--num-prompts", "6", "--scale", "0.05", "--rounds", "1", "--max-concurrency", "3", "--no-peer"]


@pytest.mark.slow
def test_bench_serve_starts_a_server_measures_it_and_ends_it(model: Path, tmp_path: Path) -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    file, picture = tmp_path / "serve.json", tmp_path / "serve.png"
    arguments = ["serve", "--model", str(model), *SMALL, "--json", str(file), "--picture", str(picture)]
    assert cli.main(arguments) == 0
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before
    result = json.loads(file.read_text())
    assert result["errors"] == [] and result["start_seconds"] > 0
    for load in ("burst", "poisson"):
        assert result[load]["completed"] == 6 and result[load]["failed"] == 0
        assert result[load]["total_output_tokens"] == result["num_output_tokens"]
        assert result[load]["total_input_tokens"] == result["num_input_tokens"]
        assert 0 < result[load]["p50_ttft_ms"] <= result[load]["p99_ttft_ms"] <= result[load]["p99_e2el_ms"]
    assert result["ratio_to_offline"]["median"] > 0
    assert result["environment"]["packages"]["torch"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_bursts_latencies_are_those_of_every_round(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were those of the last round alone, which nothing said."""
    bursts: list[list[Answer]] = []
    real = serve.send_all

    async def spy(*arguments: Any) -> tuple[list[Answer], float]:
        answers, seconds = await real(*arguments)
        if arguments[3] == 3:  # at once: the warm-up sends 4, Poisson arrivals all
            bursts.append(answers)
        return answers, seconds

    monkeypatch.setattr(serve, "send_all", spy)
    file = tmp_path / "serve.json"
    with running(model, num_blocks=512) as server:
        where = ["--base-url", server.url, "--no-offline", "--rounds", "3", "--json", str(file)]
        assert cli.main(["serve", "--model", str(model), *SMALL, *where]) == 0
    result = json.loads(file.read_text())
    answers = [answer for one in bursts for answer in one]
    assert len(bursts) == 3 and result["burst"]["rounds"] == 3
    assert result["burst"]["completed"] == len(answers) == 18
    for name in ("ttft", "e2e"):
        values = [1000 * getattr(answer, name) for answer in answers]
        key = {"ttft": "ttft", "e2e": "e2el"}[name]
        assert result["burst"][f"p99_{key}_ms"] == pytest.approx(np.percentile(values, 99))
    rates = result["output_tokens_per_s"]["pagedlab_serve"]
    assert rates["min"] <= result["burst"]["output_throughput"] <= rates["max"]


def test_errors_are_said_and_end_the_command_with_1(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A server that takes one request at a time refuses most of a burst."""
    with running(model, num_blocks=512, max_pending_requests=1) as server:
        arguments = ["serve", "--model", str(model), "--base-url", server.url, *SMALL, "--no-offline"]
        assert cli.main(arguments) == 1
        server.wait_idle()
    said = capsys.readouterr().err
    assert "status 503" in said and "the numbers above do not count" in said


def test_a_server_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServerStartError, match=r"pagedlab serve ended with status 1: .*nothing"):
        servers.pagedlab_server(tmp_path / "nothing").__enter__()
    with socket.socket() as taken, pytest.raises(ServerStartError, match="was not ready after"):
        taken.bind(("127.0.0.1", 0))  # nobody listens there, nor will another process meanwhile
        servers.ServerProcess("sleep", ["sleep", "600"], taken.getsockname()[1], 0.3).__enter__()
    monkeypatch.setattr(servers.sys, "executable", "/nowhere/python")
    monkeypatch.setattr(servers.shutil, "which", lambda name: None)
    with pytest.raises(ServerStartError, match="no `transformers` program"):
        transformers_server(tmp_path, "cpu", "float32", 1)


def test_metrics_are_summed_by_name() -> None:
    text = (
        "# HELP pagedlab:generation_tokens_total x\n"
        'pagedlab:generation_tokens_total{model_name="a"} 3.0\npagedlab:generation_tokens_total{model_name="b"} 4\n'
        'pagedlab:request_success_total{finished_reason="length",model_name="a"} 2.0\n'
        'pagedlab:time_to_first_token_seconds_bucket{le="1.0",model_name="a"} 2.0\nother 1\n'
    )
    assert parse_metrics(text) == {"generation_tokens": 7.0, "request_success{length}": 2.0}


# ---- soak -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_short_soak_is_flat_and_leaks_no_block(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "soak.json"
    arguments = ["soak", "--model", str(model), "--minutes", "0.2", "--num-blocks", "64", "--json", str(file)]
    status = cli.main(arguments)
    result = json.loads(file.read_text())
    assert result["problems"] == [] and status == 0
    assert result["leaked_blocks"] == 0 and result["memory"]["flat"]
    assert sum(result["requests"].values()) >= 8 and result["output_tokens"] > 0


@pytest.mark.parametrize(("mib_per_minute", "flat"), [(0.0, True), (1.0, True), (4.0, False), (50.0, False)])
def test_memory_that_grows_is_seen(mib_per_minute: float, flat: bool) -> None:
    """30 minutes, a sample each 5 s, noise of 4 MiB, a jump in the warm-up: 54 MiB over 22 minutes are allowed."""
    draw = np.random.default_rng(0)
    seconds = np.arange(0, 1800, 5.0)
    mib = 500 + mib_per_minute * seconds / 60 + draw.normal(0, 4, len(seconds))
    mib[:60] -= 300
    judged = soak.judge_memory([(at, int(one * soak.MIB)) for at, one in zip(seconds, mib, strict=True)])
    assert judged["flat"] is flat
    assert judged["allowed_mib"] == pytest.approx(32 + 22.4, abs=0.2)


def soak_of(url: str) -> soak.Soak:
    arguments = argparse.Namespace(request_timeout=300, minutes=0.05, clients=2, seed=0)
    return soak.Soak(loopback_url(url), psutil.Process().pid, arguments)


def test_a_leaked_block_is_seen(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    idle = soak.Soak._idle

    async def idle_at_once(one: soak.Soak, before: dict[str, float]) -> dict[str, float]:
        """It would wait for a minute until the three blocks are free as well."""
        await asyncio.to_thread(wait_until, lambda: server.is_idle, "all but the blocks is as without load")
        return await idle(one, before, timeout=0)

    monkeypatch.setattr(soak.Soak, "_idle", idle_at_once)
    with running(model, num_blocks=64) as server:
        pool = server.engine.block_manager.pool
        leaked = [pool.allocate() for _ in range(3)]
        result = asyncio.run(soak_of(server.url).run())
        assert result["leaked_blocks"] == 3
        assert any("3 KV blocks are in use" in problem for problem in result["problems"])
        for block in leaked:
            pool.release(block)


def test_books_are_read_when_a_request_that_was_in_no_queue_yet_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client left before the engine's thread had looked at it: nothing runs, nothing waits, and one is missing."""
    idle = dict.fromkeys(("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"), 0.0)
    told = [{**idle, "request_success{length}": 2.0, "request_success{abort}": count} for count in (1.0, 1.0, 2.0)]

    async def scrape(address: tuple[str, int]) -> dict[str, float]:
        return told.pop(0)

    monkeypatch.setattr(soak, "scrape", scrape)
    one = soak_of("http://127.0.0.1:1")
    one.tally = soak.Tally(finished=2, aborted_at_most=2)
    after = asyncio.run(one._idle({}))
    assert told == [] and soak.judge_books({}, after, one.tally) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"request_success{length}": 3.0}, "4 requests were accepted, 5 have ended"),
        ({"request_success{error}": 1.0}, "with an error of the engine"),
        ({"num_requests_running": 1.0}, "num_requests_running is 1"),
    ],
)
def test_books_that_do_not_agree_are_seen(change: dict[str, float], problem: str) -> None:
    after = {"request_success{length}": 2.0, "request_success{abort}": 2.0, "num_requests_running": 0.0}
    after["num_requests_waiting"] = 0.0
    tally = soak.Tally(finished=2, aborted_at_most=2)
    assert soak.judge_books({}, after, tally) == []
    assert any(problem in one for one in soak.judge_books({}, after | change, tally))


def test_too_few_samples_are_no_verdict() -> None:
    with pytest.raises(PagedlabError, match="say nothing"):
        soak.judge_memory([(0.0, 1), (1.0, 1)])
