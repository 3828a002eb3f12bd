"""What a user of OpenAI's API or of vLLM expects, where it is easy to get almost right."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_tools import RunningServer, check_error, chunks, make_tiny_chat_model, running
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from pagedlab.interfaces.openai_server.token_bytes import byte_level_alphabet, token_bytes

CHAT = [{"role": "user", "content": "the quick brown fox?"}]
EMOJI = "🙂é北"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running(make_tiny_chat_model(tmp_path_factory.mktemp("model")), num_blocks=512) as server:
        yield server


@pytest.fixture
def client(server: RunningServer) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client
    server.wait_idle()


def forced(tokenizer: Any, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """For each token of a text: its id, and options that make the model say it and nothing else."""
    for token in tokenizer.encode(text):
        yield token, {"logit_bias": {str(token): 100}, "temperature": 0, "max_tokens": 1}


# ---- log-probabilities of tokens that are no text -------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_the_bytes_of_a_chats_tokens_add_up_to_its_text(
    server: RunningServer, client: httpx.Client, stream: bool
) -> None:
    """A character may be spread over tokens: each by itself reads U+FFFD, whose bytes are others."""
    found = b""
    for _, options in forced(server.serving.tokenizer, EMOJI):
        body = {"messages": CHAT, "logprobs": True, "top_logprobs": 1, "stream": stream, **options}
        response = client.post("/v1/chat/completions", json=body)
        if stream:
            logprobs = [c["logprobs"] for k in chunks(response) for c in k["choices"] if c.get("logprobs")]
            content = [one for piece in logprobs for one in piece["content"]]
        else:
            content = response.json()["choices"][0]["logprobs"]["content"]
        (one,) = content
        found += bytes(one["bytes"])
    assert found.decode() == EMOJI


def test_bytes_of_every_kind_of_token() -> None:
    alphabet = byte_level_alphabet()
    assert sorted(alphabet.values()) == list(range(256)) and alphabet["Ġ"] == 0x20 and alphabet["Ċ"] == 0x0A
    words = {"<0xF0>": 0, "�": 1, "ð": 2, "plain": 3}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="�")))
    tokenizer.backend_tokenizer.decoder = decoders.Fuse()
    assert token_bytes(tokenizer, 0, "\ufffd") == b"\xf0", "SentencePiece's byte"
    assert token_bytes(tokenizer, 1, "\ufffd") == "\ufffd".encode(), "the character itself"
    assert token_bytes(tokenizer, 2, "\ufffd") == b"\xf0", "a byte-level BPE's byte"
    assert token_bytes(tokenizer, 3, "plain") == b"plain"
    assert token_bytes(tokenizer, 99, "\ufffd") == "\ufffd".encode(), "padding of the vocabulary"


def test_of_two_tokens_with_one_text_the_chosen_ones_number_is_shown(
    server: RunningServer, client: httpx.Client
) -> None:
    for _, options in forced(server.serving.tokenizer, EMOJI):
        answer = client.post("/v1/completions", json={"prompt": "the quick", "logprobs": 20, **options}).json()
        logprobs = answer["choices"][0]["logprobs"]
        (token,), (number,), (top,) = logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"]
        assert token == "\ufffd" and top[token] == number


# ---- what is not supported is said ----------------------------------------------------------------------------------

TOOL = {"type": "function", "function": {"name": "f"}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
UNSUPPORTED: list[tuple[str, dict[str, Any], str, str]] = [
    ("chat/completions", {"tools": [TOOL]}, "tools", "not supported"),
    ("chat/completions", {"tools": [TOOL], "tool_choice": "auto"}, "tools", "not supported"),
    ("chat/completions", {"tool_choice": "required"}, "tool_choice", "not supported"),
    ("chat/completions", {"tool_choice": {"type": "function"}}, "tool_choice", "not supported"),
    ("chat/completions", {"response_format": {"type": "json_object"}}, "response_format", "supported"),
    ("chat/completions", {"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format", "support"),
    ("chat/completions", {"functions": []}, "functions", "no option"),
    ("chat/completions", {"audio": {}}, "audio", "no option"),
    ("chat/completions", {"reasoning_effort": "low"}, "reasoning_effort", "no option"),
    ("chat/completions", {"guided_json": {}}, "guided_json", "no option"),
    ("chat/completions", {"priority": 5}, "priority", "--scheduling-policy"),
    ("chat/completions", {"messages": [{"role": "assistant", "tool_calls": [CALL]}]}, "messages", "tool_calls"),
    ("chat/completions", {"messages": [{"role": "assistant", "function_call": {"name": "f"}}]}, "messages", "function"),
    ("completions", {"best_of": 2}, "best_of", "not supported"),
    ("completions", {"suffix": "x"}, "suffix", "not supported"),
    ("completions", {"priority": -1}, "priority", "--scheduling-policy"),
    ("completions", {"max_completion_tokens": 3}, "max_completion_tokens", "no option"),
    ("completions", {"response_format": {"type": "text"}}, "response_format", "no option"),
    ("completions", {"use_beam_search": True}, "use_beam_search", "no option"),
]


@pytest.mark.parametrize(("path", "options", "param", "said"), UNSUPPORTED, ids=lambda one: str(one)[:40])
def test_an_option_that_is_not_supported_is_a_400_that_names_it(
    client: httpx.Client, path: str, options: dict, param: str, said: str
) -> None:
    body = {"messages": CHAT} if path.startswith("chat") else {"prompt": "a"}
    error = check_error(client.post(f"/v1/{path}", json={**body, "max_tokens": 1, **options}), 400)
    assert error["param"] == param and said in error["message"], error


@pytest.mark.parametrize(
    "options",
    [
        {"tools": [], "tool_choice": "none", "parallel_tool_calls": True},
        {"response_format": {"type": "text"}},
        {"user": "me", "metadata": {"a": "b"}, "store": False, "priority": 0},
        {"stop": None, "seed": None, "logit_bias": None, "top_p": None, "n": None, "stream": None, "model": None},
        {"stop": [], "logit_bias": {}},
        {"messages": [*CHAT, {"role": "assistant", "content": "x", "tool_calls": [], "function_call": None}, *CHAT]},
        {"messages": [{"role": "user", "content": ""}]},
        {"messages": [{"role": "user", "content": []}]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "system", "content": "x"}]},
    ],
    ids=lambda one: str(one)[:40],
)
def test_what_clients_send_unasked_is_taken(client: httpx.Client, options: dict) -> None:
    response = client.post("/v1/chat/completions", json={"messages": CHAT, "max_tokens": 1, **options})
    assert response.status_code == 200, response.text


def test_priorities_are_taken_where_the_scheduler_reads_them(tmp_path: Path) -> None:
    with (
        running(make_tiny_chat_model(tmp_path), num_blocks=64, scheduling_policy="priority") as server,
        server.client() as client,
    ):
        body = {"prompt": "a", "max_tokens": 1, "priority": -5}
        assert client.post("/v1/completions", json=body).status_code == 200


# ---- streams --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_usage_comes_last_and_once_and_only_if_asked_for(client: httpx.Client, path: str) -> None:
    body: dict[str, Any] = {"messages": CHAT} if path.startswith("chat") else {"prompt": "a"}
    body |= {"max_tokens": 3, "n": 2, "seed": 1, "ignore_eos": True, "stream": True}
    plain = chunks(client.post(f"/v1/{path}", json=body))
    assert all(chunk["choices"] and not chunk.get("usage") for chunk in plain)
    *rest, last = chunks(client.post(f"/v1/{path}", json={**body, "stream_options": {"include_usage": True}}))
    assert all(chunk["choices"] and not chunk.get("usage") for chunk in rest)
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 6
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + 6
    assert {chunk["object"] for chunk in [*rest, last]} == {
        "chat.completion.chunk" if path.startswith("chat") else "text_completion"
    }
    assert {(chunk["id"], chunk["created"], chunk["model"]) for chunk in rest} == {
        (last["id"], last["created"], last["model"])
    }
    for index in (0, 1):
        mine = [c for chunk in rest for c in chunk["choices"] if c["index"] == index]
        assert [c["finish_reason"] for c in mine] == [None] * (len(mine) - 1) + ["length"]


def test_a_character_spread_over_tokens_is_streamed_whole(client: httpx.Client) -> None:
    """The model babbles bytes; whatever of them is no character comes as U+FFFD, but no chunk ends inside one."""
    body = {"prompt": "one emoji 🙂", "max_tokens": 200, "ignore_eos": True, "temperature": 2.0, "seed": 7}
    whole = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
    response = client.post("/v1/completions", json={**body, "stream": True})
    pieces = [c["text"] for k in chunks(response) for c in k["choices"]]
    assert "".join(pieces) == whole and len(pieces) > 20
    assert json.loads(json.dumps(pieces)) == pieces and all(piece.encode() for piece in pieces[:-1])
