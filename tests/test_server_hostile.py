"""A client that wants to harm the others: what it sends costs the server little, and the others nothing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import resource
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from pydantic import BaseModel, ValidationError
from server_tools import (
    RunningServer,
    check_error,
    connect,
    http_bytes,
    make_tiny_chat_model,
    read_all,
    running,
    shrink_send_buffers,
    wait_until,
)

from pagedlab import SamplingParams
from pagedlab.errors import ConfigError
from pagedlab.interfaces import cli
from pagedlab.interfaces.openai_server import dashboard
from pagedlab.interfaces.openai_server.http_protocol import HttpProtocol
from pagedlab.interfaces.openai_server.protocol import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    EmbeddingBody,
    TokenizeBody,
)
from pagedlab.interfaces.openai_server.server import allow_many_connections
from pagedlab.interfaces.openai_server.settings import ServerSettings
from pagedlab.interfaces.openai_server.telemetry import JsonFormatter, TextFormatter
from pagedlab.model_authoring.request import Request
from pagedlab.trace import TraceEvent

JSON = {"Content-Type": "application/json"}
Answered = TypeVar("Answered")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_chat_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[RunningServer]:
    with running(model, num_blocks=256, served_model_name=["tiny"]) as server:
        yield server
        server.wait_idle()


# ---- bodies full of mistakes ----------------------------------------------------------------------------------------

MANY = 2000
TURN = {"role": "user", "content": "a"}
FULL_OF_MISTAKES = [
    (CompletionBody, {"prompt": "a", **{f"option-{i}": i for i in range(MANY)}}),
    (CompletionBody, {"prompt": "a", "stream": True, "stream_options": {f"o{i}": i for i in range(MANY)}}),
    (CompletionBody, {"prompt": "a", "logit_bias": {str(i): "x" for i in range(MANY)}}),
    (CompletionBody, {"prompt": "a", "stop": [""] * MANY}),
    (CompletionBody, {"prompt": "a", "stop_token_ids": [-1] * MANY}),
    (CompletionBody, {"prompt": [-1] * MANY}),
    (CompletionBody, {"prompt": [None] * MANY}),
    (CompletionBody, {"prompt": [[-1] * MANY] * MANY}),
    (ChatBody, {"messages": [{}] * MANY}),
    (ChatBody, {"messages": [{"role": "user", "content": [{}] * MANY}] * 1000}),
    (ChatBody, {"messages": [TURN], "metadata": {str(i): i for i in range(MANY)}}),
    (TokenizeBody, {"messages": [{"content": [1] * MANY}] * MANY}),
    (EmbeddingBody, {"input": [["x"]] * MANY}),
    (DetokenizeBody, {"tokens": ["x"] * MANY}),
]


@pytest.mark.parametrize(("kind", "body"), FULL_OF_MISTAKES, ids=lambda value: str(value)[:50])
def test_a_body_is_not_searched_for_more_than_a_few_mistakes(kind: type[BaseModel], body: dict) -> None:
    """Each that is found is described, on the event loop: 3 MB of them kept every client waiting for 23 s."""
    with pytest.raises(ValidationError) as refused:
        kind.model_validate(body)
    assert refused.value.error_count() <= 8


def test_dictionaries_are_bounded_before_they_are_read() -> None:
    with pytest.raises(ValidationError) as refused:
        CompletionBody.model_validate({"prompt": "a", "logit_bias": {str(i): "x" for i in range(1025)}})
    assert refused.value.error_count() == 1 and "1024" in str(refused.value)


@pytest.mark.parametrize("body", [{"prompt": "a", "\ud800": 1}, {"prompt": "a", "stream_options": {"\ud800": 1}}])
def test_an_option_whose_name_is_no_text_is_a_400(server: RunningServer, body: dict) -> None:
    with server.client() as client:
        error = check_error(client.post("/v1/completions", content=json.dumps(body), headers=JSON), 400)
    assert error["param"] == "?" and "no option" in error["message"]


# ---- keys and addresses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", [b"Basic \xe9", b"Basic \xff\xfe", b"Basic =", b"Basic YQ", b"Bearer \xe9", b"\xe9"])
def test_a_key_that_is_no_ascii_is_a_401(model: Path, header: bytes) -> None:
    with running(model, num_blocks=64, api_key=["secret"]) as server, server.client() as client:
        for path in ("/dashboard", "/dashboard/data", "/v1/models"):
            check_error(client.get(path, headers={"Authorization": header}), 401)


@pytest.mark.parametrize("key", ["", " ", " key", "key\n", "ke\ty", "ke\x1by"])
def test_a_key_that_no_header_can_carry_is_refused_at_the_start(key: str) -> None:
    with pytest.raises(ConfigError, match="api_key"):
        ServerSettings(api_key=[key])


def test_an_empty_key_in_the_environment_opens_no_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PAGEDLAB_API_KEY", "")
    assert cli.main(["serve", "/nowhere"]) == 1
    assert "api_key" in capsys.readouterr().err


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP"])
def test_no_header_gives_a_client_another_address(model: Path, header: str) -> None:
    with running(model, num_blocks=64, rate_limit="2/minute") as server, server.client() as client:
        statuses = []
        for number in range(6):
            claim = f"for=10.0.0.{number}" if header == "Forwarded" else f"10.0.0.{number}"
            statuses.append(client.post("/tokenize", json={"prompt": "a"}, headers={header: claim}).status_code)
    assert statuses == [200, 200, 429, 429, 429, 429]


# ---- paths and methods ----------------------------------------------------------------------------------------------


def test_a_slash_at_the_end_changes_nothing(server: RunningServer) -> None:
    with server.client() as client:
        for path in ("/v1/models", "/health", "/metrics", "/version", "/dashboard", "/v1/models/tiny"):
            assert client.get(f"{path}/").status_code == 200
        assert [card["id"] for card in client.get("/v1/models/").json()["data"]] == ["tiny"]
        assert client.post("/v1/completions/", json={"prompt": "a", "max_tokens": 1}).status_code == 200
        check_error(client.get("/v1/completions/"), 405)


def test_no_answer_sends_a_client_elsewhere(server: RunningServer) -> None:
    """A redirection would name the host that the client itself sent."""
    for path in ("/health/", "/v1/completions/", "//example.org", "/v1/models//", "/dashboard//", "/%2fexample.org/"):
        with connect(server) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n\r\n".encode())
            head = read_all(connection).partition(b"\r\n\r\n")[0]
        assert b"example.org" not in head and head.split()[1] in (b"200", b"404", b"405")


def test_head_is_get_without_the_body(server: RunningServer) -> None:
    with server.client() as client:
        for path in ("/health", "/v1/models", "/version", "/dashboard", "/nothing", "/v1/completions"):
            head, get = client.head(path), client.get(path)
            assert head.status_code == get.status_code and head.content == b""
            assert head.headers["content-type"] == get.headers["content-type"]
            assert head.headers["content-length"] == get.headers["content-length"]


@pytest.mark.parametrize(
    "path", ["/dashboard/../trace", "/dashboard/%2e%2e/v1/models", "/health/../v1/models", "/metrics%2f..%2ftrace"]
)
def test_no_path_leads_around_the_key(model: Path, path: str) -> None:
    with running(model, num_blocks=64, api_key=["secret"]) as server, connect(server) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        assert read_all(connection).startswith(b"HTTP/1.1 401")


# ---- logs -----------------------------------------------------------------------------------------------------------

RUDE = "a\r\nfake\x1b[2K\x1b[31mred\x07\x08\x0b\x0c\x00\x85\u2028\u202e\x7f"


def test_the_log_shows_no_control_character_of_a_clients() -> None:
    record = logging.makeLogRecord({"name": "pagedlab.interfaces", "msg": f"GET /{RUDE}", "levelname": "INFO"})
    record.user = RUDE
    line = TextFormatter().format(record)
    assert line.isprintable() and len(line.splitlines()) == 1 and "\\x1b[31mred" in line
    assert len(JsonFormatter().format(record).splitlines()) == 1
    assert json.loads(JsonFormatter().format(record))["user"] == RUDE
    assert "é 北京 🙂" in TextFormatter().format(logging.makeLogRecord({"name": "x", "msg": "é 北京 🙂"}))


def test_an_errors_text_cannot_look_like_a_line_of_the_log() -> None:
    try:
        raise RuntimeError(f"12:00:00.000 INFO {RUDE}\n12:00:00.000 INFO    interfaces      GET /: status=200")
    except RuntimeError:
        record = logging.makeLogRecord({"name": "x", "msg": "failed", "exc_info": sys.exc_info()})
    first, *rest = TextFormatter().format(record).split("\n")
    assert first.endswith("failed") and len(rest) > 3
    assert all(line.startswith("    ") and line.isprintable() for line in rest)


# ---- connections that only cost -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def impatient(model: Path) -> Iterator[RunningServer]:
    """It lets nobody be slow: on a busy machine that may be the test itself, which then asks once more."""
    with running(model, num_blocks=1024, body_timeout=0.5) as server:
        yield server
        server.wait_idle()


def wait_for_no_connection(server: RunningServer) -> None:
    wait_until(lambda: not server.server.server_state.connections, "no connection is left")


def until_in_time(ask: Callable[[], Answered], timeout: float = 60) -> Answered:
    """What `ask` returns, once the impatient server did not find it too slow to begin."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return ask()
        except (httpx.TransportError, ConnectionError):
            assert time.monotonic() < deadline, "the server lets nobody ask"


@pytest.mark.parametrize("begin", [b"", b"GET /health HTTP/1.1\r\nHost: x\r\n", b"G"], ids=repr)
def test_who_connects_and_asks_for_nothing_is_let_go(impatient: RunningServer, begin: bytes) -> None:
    connections = [connect(impatient) for _ in range(100)]
    for connection in connections:
        with contextlib.suppress(ConnectionError):  # let go already
            connection.sendall(begin)
    with impatient.client() as client:
        assert until_in_time(lambda: client.get("/health")).status_code == 200
    wait_for_no_connection(impatient)
    for connection in connections:
        assert read_all(connection) == b""
        connection.close()


@pytest.mark.parametrize("asked_before", [False, True])
def test_a_head_that_drips_in_is_not_waited_for(impatient: RunningServer, asked_before: bool) -> None:
    """One byte now and then keeps no connection, neither at its beginning nor after an answer."""

    def connected() -> socket.socket:
        connection = connect(impatient)
        if asked_before:
            connection.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = connection.recv(65536)
            if not answer:
                raise ConnectionError("too late")
            assert answer.startswith(b"HTTP/1.1 200")
        return connection

    num_sent = 0
    with until_in_time(connected) as connection, pytest.raises(ConnectionError):
        for byte in b"GET /health HTTP/1.1\r\nX: " + b"y" * 1000:
            connection.sendall(bytes([byte]))
            num_sent += 1
            time.sleep(0.05)
    assert num_sent < 400, "let go after 0.5 s, which is ten bytes, and not after the 50 s that all would take"
    wait_for_no_connection(impatient)


def test_a_connection_with_a_request_on_it_is_let_be(impatient: RunningServer) -> None:
    body = json.dumps({"prompt": "a", "max_tokens": 10_000, "ignore_eos": True, "stream": True}).encode()

    def asked() -> socket.socket:
        connection = connect(impatient)
        connection.sendall(http_bytes("/v1/completions", body))
        if not connection.recv(1, socket.MSG_PEEK):
            raise ConnectionError("too late")
        return connection

    with until_in_time(asked) as connection:
        begin = time.monotonic()
        while time.monotonic() - begin < 1.5:  # three times as long as a head may take
            assert connection.recv(65536)
    impatient.wait_idle()


def tokenize_bytes(text: str, *headers: str) -> bytes:
    """Asks for an answer that is two and a half times as long as the text."""
    return http_bytes("/tokenize", json.dumps({"prompt": text, "return_token_strs": True}).encode(), *headers)


def test_a_whole_answer_that_nobody_reads_is_thrown_away(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its megabyte would stay in memory for as long as the client likes."""
    shrink_send_buffers(monkeypatch)
    with (
        running(model, num_blocks=64, send_timeout=0.5) as server,
        connect(server, receive_buffer=4096) as connection,
    ):
        connection.sendall(tokenize_bytes("the quick " * 40_000))
        assert connection.recv(1, socket.MSG_PEEK) == b"H"  # the answer has begun: the server knows of this connection
        wait_for_no_connection(server)
        answer = read_all(connection)
    length = re.search(rb"content-length: (\d+)", answer)
    assert answer.startswith(b"HTTP/1.1 200") and length and len(answer) < int(length[1]) / 2


def test_a_slow_reader_gets_the_whole_answer(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes several times as long as nobody may read at all, but it reads on.

    A busy machine may stop the reader itself for half a second, or both ends: then all of it is tried at half the pace.
    """
    shrink_send_buffers(monkeypatch)
    looked: list[int] = []
    check_read = HttpProtocol._check_read
    monkeypatch.setattr(
        HttpProtocol, "_check_read", lambda one, before: looked.append(before) or check_read(one, before)
    )
    for send_timeout in (0.5, 1.0, 2.0, 4.0, 8.0):
        looked.clear()
        parts = []
        with (
            running(model, num_blocks=64, send_timeout=send_timeout) as server,
            connect(server, receive_buffer=4096) as connection,
        ):
            connection.sendall(tokenize_bytes("the quick " * 40_000, "Connection: close"))
            with contextlib.suppress(ConnectionError):
                while part := connection.recv(16_384):
                    parts.append(part)
                    time.sleep(0.01 * send_timeout)
        head, _, answer = b"".join(parts).partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        if length and len(answer) == int(length[1]):
            break
    assert json.loads(answer)["count"] > 40_000
    assert looked, "the server has looked whether it reads on"


def test_the_limit_of_open_files_is_raised_as_far_as_the_system_lets_it() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, before[1]), before[1]))
        allow_many_connections()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert soft == min(hard, 65_536) and hard == before[1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# ---- long texts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": ["the quick " * 10] * 200, "max_tokens": 1}),
        ("/v1/completions", {"prompt": "the quick " * 300, "max_tokens": 1}),
        ("/v1/embeddings", {"input": ["the quick " * 10] * 200}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "the quick " * 300}], "max_tokens": 1}),
        ("/tokenize", {"prompt": "the quick " * 3000, "return_token_strs": True}),
        ("/detokenize", {"tokens": [200] * 100_000}),
    ],
    ids=lambda value: str(value)[:30],
)
def test_much_text_is_read_beside_the_event_loop(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, path: str, body: dict
) -> None:
    """Many short texts are as much as a long one: 256 of them kept every client waiting for 0.4 s."""
    threads = set()
    tokenizer = server.serving.tokenizer

    def spied(real: Any) -> Any:
        def spy(*arguments: Any, **options: Any) -> Any:
            threads.add(threading.current_thread().name.split("_")[0])
            return real(*arguments, **options)

        return spy

    for name in ("encode", "decode", "convert_ids_to_tokens"):
        monkeypatch.setattr(tokenizer, name, spied(getattr(tokenizer, name)))
    with server.client() as client:
        response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    assert threads == {"pagedlab-tokenizer"}


def test_text_does_not_pile_up_before_the_tokenizer(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Megabytes are read before a request can be counted as one: they have a bound of their own."""
    monkeypatch.setattr("pagedlab.interfaces.openai_server.serving.MAX_WAITING_TEXT", 30_000)
    go_on, real = threading.Event(), server.serving.tokenizer.encode
    monkeypatch.setattr(server.serving.tokenizer, "encode", lambda *a, **o: go_on.wait(120) and real(*a, **o))
    found: list[int] = []

    def ask() -> None:
        with server.client() as client:
            found.append(client.post("/tokenize", json={"prompt": "the quick " * 1000}).status_code)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: server.serving._size_waiting == 30_000, "three texts wait")
    with server.client() as client:
        refused = client.post("/tokenize", json={"prompt": "the quick " * 1000})
        assert check_error(refused, 503)["code"] == "overloaded" and refused.headers["Retry-After"] == "1"
        assert client.get("/health").status_code == 200
    go_on.set()
    for thread in threads:
        thread.join()
    assert found == [200] * 3 and server.serving._size_waiting == 0


# ---- what is safe by design -----------------------------------------------------------------------------------------


def test_the_server_is_reached_from_this_machine_alone_unless_told_otherwise() -> None:
    assert ServerSettings().host == "127.0.0.1"


@pytest.mark.parametrize(
    "template",
    ["{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ cycler.__init__.__globals__.os.getcwd() }}", "{% for", ""],
)
def test_a_chat_template_runs_in_a_sandbox(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    monkeypatch.setattr(server.serving.tokenizer, "chat_template", template)
    with server.client() as client:
        error = check_error(client.post("/v1/chat/completions", json={"messages": [TURN]}), 400)
    assert "template" in error["message"]


def test_a_message_is_no_template(server: RunningServer) -> None:
    with server.client() as client:
        turn = {"role": "user", "content": "{{ 7 * 7 }}{% for %}"}
        answer = client.post("/tokenize", json={"messages": [turn]}).json()
        assert turn["content"] in client.post("/detokenize", json={"tokens": answer["tokens"]}).json()["prompt"]


def test_blocks_are_named_by_sha256_of_salt_and_tokens() -> None:
    tokens = list(range(32))
    request = Request("r", tokens, SamplingParams(max_tokens=1), cache_salt="salt")
    parent = hashlib.sha256(b"pagedlab:salt").digest()
    for index in range(2):
        packed = struct.pack("<16q", *tokens[16 * index : 16 * index + 16])
        parent = hashlib.sha256(parent + packed).digest()
        assert request.block_hash(index, 16) == parent


# ---- what everybody may read ----------------------------------------------------------------------------------------


def test_the_trace_is_written_beside_the_event_loop(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """200,000 events take seconds to write; whoever asks for them must not stop the others."""
    threads: list[str] = []
    real = dashboard._as_json
    monkeypatch.setattr(dashboard, "_as_json", lambda one: threads.append(threading.current_thread().name) or real(one))
    observer = server.server.config.app.state.observer  # type: ignore[union-attr]
    observer.events.extend(TraceEvent("forward", "runtime", 1.0, 0.5, args={"n": i}) for i in range(1000))
    try:
        with server.client() as client:
            trace = client.get("/trace").json()
    finally:
        observer.events.clear()
    assert trace["displayTimeUnit"] == "ms"
    assert [row["args"]["n"] for row in trace["traceEvents"] if row["name"] == "forward"] == list(range(1000))
    assert threads and not any("Main" in name or name == server._thread.name for name in threads)
