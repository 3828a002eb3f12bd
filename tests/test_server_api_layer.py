"""What stands before the routes: keys, tenants, rate limits, bodies, admission; each refusal has its status."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_tools import RunningServer, check_error, connect, http_bytes, make_tiny_chat_model, read_all, running

from pagedlab.errors import ConfigError
from pagedlab.interfaces.openai_server import keys as keys_module
from pagedlab.interfaces.openai_server.keys import EVERYBODY, KeyRing
from pagedlab.interfaces.openai_server.settings import ServerSettings

KEYS = ["secret-of-a", "secret-of-b"]
OPEN = {"/health", "/metrics"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_chat_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def locked(model: Path) -> Iterator[RunningServer]:
    with running(model, num_blocks=256, api_key=KEYS) as server:
        yield server


# ---- keys -----------------------------------------------------------------------------------------------------------


def test_with_a_key_set_nothing_but_health_and_metrics_answers_without_it(locked: RunningServer) -> None:
    with locked.client() as client:
        paths = client.get("/openapi.json", headers={"Authorization": f"Bearer {KEYS[0]}"}).json()["paths"]
        assert len(paths) >= 10
        routes = [(path, method) for path, methods in paths.items() for method in methods]
        for path, method in [*routes, ("/openapi.json", "get"), ("/nothing", "get"), ("/dashboard", "get")]:
            response = client.request(method.upper(), path.replace("{name}", "x"), json={})
            if path in OPEN:
                assert response.status_code == 200
            else:
                assert check_error(response, 401)["type"] == "authentication_error"
                assert "WWW-Authenticate" in response.headers


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer wrong",
        "Bearer secret-of-a2",
        "Bearer secret-of-",
        "bearer\tsecret-of-a",
        "Basic c2VjcmV0",
        "secret-of-a",
        "Bearer " + "x" * 10_000,
    ],
)
def test_a_wrong_key_is_a_401(locked: RunningServer, header: str) -> None:
    with locked.client() as client:
        check_error(client.get("/v1/models", headers={"Authorization": header}), 401)


@pytest.mark.parametrize("key", KEYS)
def test_every_key_opens(locked: RunningServer, key: str) -> None:
    with locked.client(headers={"Authorization": f"Bearer {key}"}) as client:
        assert client.get("/v1/models").status_code == 200
        assert client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).status_code == 200


def test_the_refused_body_is_not_even_read(locked: RunningServer) -> None:
    with connect(locked) as connection:
        connection.sendall(http_bytes("/v1/completions", b"x" * 1_000_000)[:500])
        assert connection.recv(65536).startswith(b"HTTP/1.1 401")


def test_keys_are_compared_in_constant_time_and_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr(keys_module.hmac, "compare_digest", compare)
    ring = KeyRing(["a", "bb", "ccc"])
    for given in ("Bearer a", "Bearer ccc", "Bearer wrong", None):
        compared.clear()
        ring.tenant(given)
        assert compared == [(32, 32)] * 3, "every key, and digests of one length whatever was sent"


def test_a_browser_may_send_the_key_as_password_to_the_dashboard_alone() -> None:
    ring = KeyRing(["secret"])
    basic = "Basic YW55Ym9keTpzZWNyZXQ="  # anybody:secret
    assert ring.tenant(basic, allow_basic=True) is not None and ring.tenant(basic) is None
    assert ring.tenant("Basic !!", allow_basic=True) is None
    assert KeyRing([]).tenant(None) is EVERYBODY


# ---- tenants --------------------------------------------------------------------------------------------------------


def cached_tokens(server: RunningServer, key: str, prompt: list[int], **options: object) -> int:
    with server.client(headers={"Authorization": f"Bearer {key}"}) as client:
        answer = client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 1, **options}).json()
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_one_tenant_cannot_see_anothers_prefix_hits(locked: RunningServer) -> None:
    prompt = list(range(10, 90))
    assert cached_tokens(locked, KEYS[0], prompt) == 0
    assert cached_tokens(locked, KEYS[0], prompt) == 64, "one's own prefix hits"
    assert cached_tokens(locked, KEYS[1], prompt) == 0, "another's does not"
    assert cached_tokens(locked, KEYS[1], prompt) == 64
    assert cached_tokens(locked, KEYS[0], prompt, cache_salt="mine") == 0, "a salt of the request's divides further"
    assert cached_tokens(locked, KEYS[0], prompt, cache_salt="mine") == 64
    assert cached_tokens(locked, KEYS[1], prompt, cache_salt="mine") == 0


def test_salts_are_secret_and_differ_between_servers() -> None:
    salts = [KeyRing(["key"]).tenant("Bearer key").cache_salt for _ in range(2)]
    assert salts[0] != salts[1] and all("key" not in salt for salt in salts)


# ---- rate limits ----------------------------------------------------------------------------------------------------


def test_the_rate_limit_counts_each_key_by_itself(model: Path) -> None:
    with running(model, num_blocks=64, api_key=KEYS, rate_limit="3/minute") as server:
        statuses = {}
        for key in KEYS:
            with server.client(headers={"Authorization": f"Bearer {key}"}) as client:
                body = {"prompt": "a", "max_tokens": 1}
                responses = [client.post("/v1/completions", json=body) for _ in range(5)]
                statuses[key] = [response.status_code for response in responses]
                assert client.get("/v1/models").status_code == 200, "reading is not limited"
        assert statuses == {key: [200, 200, 200, 429, 429] for key in KEYS}
        error = check_error(responses[-1], 429)
        assert error["type"] == "rate_limit_error" and error["code"] == "rate_limit_exceeded"
        assert 1 <= int(responses[-1].headers["Retry-After"]) <= 60


def test_after_retry_after_there_is_room_again(model: Path) -> None:
    with running(model, num_blocks=64, rate_limit="2/second") as server, server.client() as client:
        body = {"prompt": "a", "max_tokens": 1}
        deadline = time.monotonic() + 120  # a busy machine may not get to three requests in each second
        while (response := client.post("/v1/completions", json=body)).status_code == 200:
            assert time.monotonic() < deadline
        assert response.status_code == 429
        time.sleep(int(response.headers["Retry-After"]))
        assert client.post("/v1/completions", json=body).status_code == 200


# ---- bodies ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(model: Path) -> Iterator[RunningServer]:
    with running(model, num_blocks=64, max_body_bytes=2000) as server:
        yield server


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[1, 2", b"nonsense", b"\xff\xfe{}", b'{"prompt": "a"} x', b"[" * 1500, b'{"seed": ' + b"9" * 1900],
    ids=repr,
)
def test_malformed_json_is_a_400(small: RunningServer, body: bytes) -> None:
    with small.client() as client:
        for path in ("/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/tokenize", "/detokenize"):
            headers = {"Content-Type": "application/json"}
            check_error(client.post(path, content=body, headers=headers), 400)


@pytest.mark.parametrize("value", [b"null", b"[]", b'"text"', b"1"])
def test_json_that_is_no_object_is_a_400(small: RunningServer, value: bytes) -> None:
    with small.client() as client:
        check_error(client.post("/v1/completions", content=value, headers={"Content-Type": "application/json"}), 400)


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "multipart/form-data; boundary=x", "application/xml", "", "a" * 500]
)
def test_a_wrong_content_type_is_a_415(small: RunningServer, kind: str | None) -> None:
    with small.client() as client:
        headers = {} if kind is None else {"Content-Type": kind}
        check_error(client.post("/v1/completions", content=b'{"prompt": "a"}', headers=headers), 415)


def test_a_body_over_the_limit_is_a_413_with_and_without_a_length(small: RunningServer) -> None:
    with small.client() as client:
        body = json.dumps({"prompt": "a" * 2000}).encode()
        headers = {"Content-Type": "application/json"}
        assert (
            check_error(client.post("/v1/completions", content=body, headers=headers), 413)["code"] == "body_too_large"
        )

        def pieces() -> Iterator[bytes]:
            for start in range(0, len(body), 100):
                yield body[start : start + 100]

        check_error(client.post("/v1/completions", content=pieces(), headers=headers), 413)
        fits = json.dumps({"prompt": "a", "max_tokens": 1}).encode().ljust(2000)
        assert client.post("/v1/completions", content=fits, headers=headers).status_code == 200


def test_a_body_that_never_comes_is_a_408(model: Path) -> None:
    answer, deadline = b"", time.monotonic() + 60
    with running(model, num_blocks=64, body_timeout=1.0) as server:
        while not answer:  # on a busy machine the head, too, may come too late: then there is no answer
            assert time.monotonic() < deadline
            with connect(server) as connection, contextlib.suppress(ConnectionError):
                connection.sendall(http_bytes("/v1/completions", b'{"prompt": "a"}')[:-5])
                answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 408")


def test_a_flood_of_headers_is_refused_and_the_server_goes_on(small: RunningServer) -> None:
    floods = [
        "".join(f"X-{number}: {'y' * 100}\r\n" for number in range(5000)),
        f"X: {'y' * 1_000_000}\r\n",
        "X: y\r\n" * 100_000,
    ]
    refused = 0
    for flood in floods:
        with connect(small) as connection:
            try:
                connection.sendall(f"GET /health HTTP/1.1\r\nHost: x\r\n{flood}\r\n".encode())
            except OSError:  # closed in the midst of it
                refused += 1
                continue
            answer = read_all(connection)
            assert b"HTTP/1.1 200" not in answer
            refused += 1
    assert refused == len(floods)
    with small.client() as client:
        assert client.get("/health").status_code == 200


def test_what_is_no_http_gets_the_stated_shape(small: RunningServer) -> None:
    for garbage in (b"\x00\x01\x02\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"):
        with connect(small) as connection:
            connection.sendall(garbage)
            head, _, body = read_all(connection).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 400") and b"application/json" in head
            assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


def test_a_client_may_name_its_request_and_no_two_have_one_id(small: RunningServer) -> None:
    with small.client() as client:
        body = {"prompt": "a", "max_tokens": 1}
        ids = []
        for name in ("job-7", "job-7", "bad name\twith a tab", "x" * 200):
            response = client.post("/v1/completions", json=body, headers={"X-Request-Id": name})
            ids.append(response.headers["X-Request-Id"])
            assert response.json()["id"] == f"cmpl-{ids[-1]}"
        assert len(set(ids)) == 4 and all(one.startswith("job-7-") for one in ids[:2])
        assert "bad" not in ids[2] and len(ids[3]) < 50
        assert client.get("/nothing").headers["X-Request-Id"]


# ---- admission ------------------------------------------------------------------------------------------------------


def occupy(server: RunningServer, count: int, max_tokens: int = 10_000, prompt_tokens: int = 1) -> list[socket.socket]:
    """Requests that run until their connections are closed."""
    body = {"prompt": [5] * prompt_tokens, "max_tokens": max_tokens, "ignore_eos": True, "stream": True}
    connections = []
    for _ in range(count):
        connections.append(connect(server))
        connections[-1].sendall(http_bytes("/v1/completions", json.dumps(body).encode()))
        assert b"200 OK" in connections[-1].recv(100)
    return connections


def test_beyond_the_bound_on_requests_comes_503_with_retry_after(model: Path) -> None:
    with running(model, num_blocks=2048, max_pending_requests=3) as server, server.client() as client:
        connections = occupy(server, 3)
        response = client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1})
        assert check_error(response, 503)["code"] == "overloaded" and int(response.headers["Retry-After"]) >= 1
        check_error(client.post("/v1/completions", json={"prompt": ["a", "b", "c", "d"], "max_tokens": 1}), 503)
        assert client.get("/health").status_code == 200
        for connection in connections:
            connection.close()
        server.wait_idle()
        assert client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).status_code == 200


def test_beyond_the_bound_on_tokens_comes_503(model: Path) -> None:
    with running(model, num_blocks=2048, max_pending_tokens=1000) as server, server.client() as client:
        connections = occupy(server, 1, prompt_tokens=800)
        check_error(client.post("/v1/completions", json={"prompt": [5] * 300, "max_tokens": 1}), 503)
        assert client.post("/v1/completions", json={"prompt": [5] * 100, "max_tokens": 1}).status_code == 200
        connections[0].close()
        server.wait_idle()
        lone = client.post("/v1/completions", json={"prompt": [5] * 3000, "max_tokens": 1})
        assert lone.status_code == 200, "a lone request always gets in"


def test_a_request_that_takes_too_long_is_ended(model: Path) -> None:
    with running(model, num_blocks=2048, request_timeout=0.5) as server, server.client() as client:
        body = {"prompt": "a", "max_tokens": 10_000, "ignore_eos": True}
        assert check_error(client.post("/v1/completions", json=body), 504)["code"] == "timeout"
        server.wait_idle()
        text = client.post("/v1/completions", json={**body, "stream": True}).text
        *_, last, done, end = text.split("\n\n")
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
        assert (done, end) == ("data: [DONE]", "")
        server.wait_idle()


def test_a_long_text_is_tokenized_beside_the_steps(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a megabyte is tokenized, requests are answered: in this test that does not end before they are."""
    with running(model, num_blocks=64) as server:
        answered: list[tuple[str, int]] = []
        begun, others_are_answered = threading.Event(), threading.Event()
        encode = server.serving.tokenizer.encode

        def encode_for_long(text: str, **options: object) -> object:
            begun.set()
            tokens = encode(text, **options)
            assert others_are_answered.wait(60)
            return tokens

        def send_long() -> None:
            with server.client() as client:
                answered.append(("long", client.post("/tokenize", json={"prompt": "the quick " * 100_000}).status_code))

        monkeypatch.setattr(server.serving.tokenizer, "encode", encode_for_long)
        thread = threading.Thread(target=send_long)
        thread.start()
        assert begun.wait(60)
        with server.client() as client:
            answered += [("short", client.get("/health").status_code) for _ in range(3)]
            body = {"prompt": [5], "max_tokens": 2}
            answered.append(("short", client.post("/v1/completions", json=body).status_code))
        others_are_answered.set()
        thread.join()
        assert answered == [*[("short", 200)] * 4, ("long", 200)]


@pytest.mark.parametrize(
    "options",
    [
        {"port": 70_000},
        {"rate_limit": "many"},
        {"api_key": [""]},
        {"api_key": ["schlüssel"]},
        {"max_pending_requests": 0},
        {"request_timeout": 0},
        {"drain_timeout": -1},
        {"log_format": "xml"},
        {"log_level": "loud"},
    ],
    ids=str,
)
def test_bad_settings_are_refused_in_one_sentence(options: dict) -> None:
    with pytest.raises(ConfigError) as refused:
        ServerSettings(**options)
    assert next(iter(options)) in str(refused.value) and "\n" not in str(refused.value)
