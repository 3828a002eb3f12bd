"""One key's share of the engine: what it may hold at once, and that nothing of it is ever lost."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from server_tools import RunningServer, check_error, connect, http_bytes, make_tiny_chat_model, running, wait_until

from pagedlab.errors import ConfigError
from pagedlab.interfaces.openai_server.errors import ApiError
from pagedlab.interfaces.openai_server.settings import ServerSettings
from pagedlab.interfaces.openai_server.shares import Shares

KEYS = ["secret-of-a", "secret-of-b"]
ENDLESS = {"prompt": [5] * 4, "max_tokens": 8000, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    model = make_tiny_chat_model(tmp_path_factory.mktemp("model"))
    with running(model, num_blocks=4096, api_key=KEYS, max_pending_per_key=4) as server:
        yield server


def as_tenant(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize("taken", [[{}] * 4, [{"n": 4}], [{"prompt": ["a", "b"], "n": 2}]], ids=str)
def test_what_one_key_holds_does_not_lock_another_out(server: RunningServer, taken: list[dict]) -> None:
    connections = []
    for options in taken:
        connections.append(connect(server))
        body = json.dumps({**ENDLESS, **options}).encode()
        connections[-1].sendall(http_bytes("/v1/completions", body, f"Authorization: Bearer {KEYS[0]}"))
        assert b"200 OK" in connections[-1].recv(100)
    one = {"prompt": "a", "max_tokens": 1}
    with server.client() as client:
        refused = client.post("/v1/completions", json=one, headers=as_tenant(KEYS[0]))
        error = check_error(refused, 429)
        assert error["code"] == "rate_limit_exceeded" and refused.headers["Retry-After"] == "1"
        check_error(client.post("/v1/embeddings", json={"input": "a"}, headers=as_tenant(KEYS[0])), 429)
        assert client.post("/v1/completions", json=one, headers=as_tenant(KEYS[1])).status_code == 200
        for connection in connections:
            connection.close()
        server.wait_idle()
        wait_until(lambda: not server.serving._shares._taken, "every share is given back")
        assert client.post("/v1/completions", json=one, headers=as_tenant(KEYS[0])).status_code == 200


def test_a_call_that_is_more_than_the_share_is_told_so(server: RunningServer) -> None:
    with server.client(headers=as_tenant(KEYS[0])) as client:
        for options in ({"n": 5}, {"prompt": ["a"] * 5}):
            error = check_error(client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1, **options}), 400)
            assert "5 completions" in error["message"]


def test_whatever_a_call_ends_in_gives_its_share_back(server: RunningServer) -> None:
    with server.client(headers=as_tenant(KEYS[0])) as client:
        for _ in range(6):
            for options in ({}, {"stream": True}, {"prompt": [5, 9999]}, {"max_tokens": 99_999}, {"prompt": ""}):
                client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1, **options}).read()
            assert client.post("/v1/embeddings", json={"input": "a"}).status_code == 200
        wait_until(lambda: not server.serving._shares._taken, "every share is given back")


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 5), st.booleans())))
def test_shares_are_never_more_than_allowed_and_never_lost(steps: list[tuple[str, int, bool]]) -> None:
    shares, held = Shares(6), []
    for who, count, gives_back in steps:
        before = sum(number for name, number, _ in held if name == who)
        try:
            held.append((who, count, shares.take(who, count)))
            assert before + count <= 6
        except ApiError as refused:
            assert refused.status == 429 and before + count > 6
        if gives_back and held:
            *_, give_back = held.pop(0)
            give_back()
            give_back()
    for *_, give_back in held:
        give_back()
    assert not shares._taken


def test_bad_shares_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_pending_per_key"):
        ServerSettings(max_pending_per_key=0)
