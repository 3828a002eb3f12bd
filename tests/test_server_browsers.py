"""Pages of other origins: kept out unless the server is told of them, and then let in as browsers ask for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from server_tools import RunningServer, check_error, make_tiny_chat_model, running

from pagedlab.errors import ConfigError
from pagedlab.interfaces.openai_server.settings import ServerSettings

PAGE = "http://localhost:3000"
OTHER = "http://example.org"
KEY = {"Authorization": "Bearer secret"}
BODY = {"prompt": "a", "max_tokens": 1}
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_chat_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[RunningServer]:
    with running(model, num_blocks=64, api_key=["secret"], allowed_origins=[PAGE]) as server:
        yield server
        server.wait_idle()


def allowed(response: object) -> str | None:
    headers = response.headers  # type: ignore[attr-defined]
    assert "access-control-allow-credentials" not in headers
    return headers.get("access-control-allow-origin")


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/models", "/tokenize"])
def test_a_browser_asks_first_and_without_a_key(server: RunningServer, path: str) -> None:
    with server.client() as client:
        answer = client.options(path, headers={"Origin": PAGE, **PREFLIGHT})
    assert answer.status_code == 200 and allowed(answer) == PAGE
    assert {"GET", "POST"} == set(answer.headers["access-control-allow-methods"].split(", "))
    names = answer.headers["access-control-allow-headers"].lower()
    assert "authorization" in names and "content-type" in names and "Origin" in answer.headers["vary"]


def test_the_page_then_sends_its_key_like_everybody(server: RunningServer) -> None:
    with server.client() as client:
        answer = client.post("/v1/completions", json=BODY, headers={"Origin": PAGE, **KEY})
        assert answer.status_code == 200 and allowed(answer) == PAGE
        assert "X-Request-Id" in answer.headers["access-control-expose-headers"]
        with client.stream(
            "POST", "/v1/completions", json={**BODY, "stream": True}, headers={"Origin": PAGE, **KEY}
        ) as it:
            assert allowed(it) == PAGE and "[DONE]" in it.read().decode()


def test_a_page_can_read_what_it_is_refused_for(server: RunningServer) -> None:
    """Without the header it would learn of no more than "a network error"."""
    with server.client() as client:
        for answer, status in (
            (client.post("/v1/completions", json=BODY, headers={"Origin": PAGE}), 401),
            (client.post("/v1/completions", json={}, headers={"Origin": PAGE, **KEY}), 400),
            (client.get("/nothing", headers={"Origin": PAGE, **KEY}), 404),
            (client.get("/v1/completions", headers={"Origin": PAGE, **KEY}), 405),
            (client.post("/v1/completions", content="a", headers={"Origin": PAGE, **KEY}), 415),
            (
                client.post(
                    "/tokenize",
                    content=b"x" * (5 << 20),
                    headers={"Origin": PAGE, **KEY, "Content-Type": "application/json"},
                ),
                413,
            ),
        ):
            check_error(answer, status)
            assert allowed(answer) == PAGE


@pytest.mark.parametrize("origin", [OTHER, "null", f"{PAGE}.evil.org", "https://localhost:3000", "\xe9"])
def test_no_other_page_is_let_in(server: RunningServer, origin: str) -> None:
    headers = {"Origin": origin.encode("latin-1")}
    with server.client() as client:
        preflight = client.options(
            "/v1/completions", headers={**headers, **{k: v.encode() for k, v in PREFLIGHT.items()}}
        )
        assert "--allowed-origins" in check_error(preflight, 400)["message"] and allowed(preflight) is None
        assert allowed(client.get("/health", headers=headers)) is None


@pytest.mark.parametrize("method", ["DELETE", "PUT"])
def test_pages_get_no_more_methods_than_there_are(server: RunningServer, method: str) -> None:
    with server.client() as client:
        headers = {"Origin": PAGE, "Access-Control-Request-Method": method}
        check_error(client.options("/v1/completions", headers=headers), 400)


def test_by_default_no_page_is_let_in(model: Path) -> None:
    """The answer to a preflight has no header that lets a page in, so that no browser sends what follows it."""
    assert ServerSettings().allowed_origins == []
    with running(model, num_blocks=64) as server, server.client() as client:
        for path in ("/v1/completions", "/v1/models", "/health", "/dashboard/data", "/metrics"):
            assert allowed(client.options(path, headers={"Origin": PAGE, **PREFLIGHT})) is None
            assert allowed(client.get(path, headers={"Origin": PAGE})) is None


def test_a_form_of_another_page_cannot_send_a_prompt(model: Path) -> None:
    """Browsers send these three kinds of body unasked, whatever the answer to a preflight would be."""
    with running(model, num_blocks=64) as server, server.client() as client:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
            answer = client.post("/v1/completions", content='{"prompt": "a"}', headers={"Content-Type": kind})
            check_error(answer, 415)


def test_a_star_lets_every_page_in(model: Path) -> None:
    with running(model, num_blocks=64, allowed_origins=["*"]) as server, server.client() as client:
        assert allowed(client.options("/v1/completions", headers={"Origin": OTHER, **PREFLIGHT})) == "*"
        assert allowed(client.post("/v1/completions", json=BODY, headers={"Origin": OTHER})) == "*"


@pytest.mark.parametrize(
    "origin", ["", "null", "localhost:3000", f"{PAGE}/", f"{PAGE}/page", "http://*", "ftp://a", "**"]
)
def test_what_no_browser_sends_is_refused_at_the_start(origin: str) -> None:
    with pytest.raises(ConfigError, match="allowed_origins"):
        ServerSettings(allowed_origins=[origin])


@pytest.mark.parametrize("origin", ["*", PAGE, "https://lab.example.org", "http://127.0.0.1:8080", "http://[::1]:80"])
def test_what_browsers_send_is_taken(origin: str) -> None:
    assert ServerSettings(allowed_origins=[origin]).allowed_origins == [origin]
