"""What vLLM's server takes beyond OpenAI's: words and tokens kept out, options of the chat template, defaults."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_tools import RunningServer, check_error, make_tiny_chat_model, running

ADVICE = {"temperature": 1e-6, "top_k": 3, "repetition_penalty": 1.5, "max_new_tokens": 5}
CHAT = [{"role": "user", "content": "the quick brown fox?"}]
PROMPT = {"prompt": "the quick brown fox", "ignore_eos": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_chat_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[RunningServer]:
    with running(model, num_blocks=256) as server:
        yield server


@pytest.fixture
def client(server: RunningServer) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client
    server.wait_idle()


def complete(client: httpx.Client, **options: Any) -> dict[str, Any]:
    response = client.post("/v1/completions", json={**PROMPT, **options})
    assert response.status_code == 200, response.text
    return response.json()


def test_allowed_token_ids_are_all_that_comes(server: RunningServer, client: httpx.Client) -> None:
    allowed = server.serving.tokenizer.encode("fox dog", add_special_tokens=False)
    answer = complete(client, allowed_token_ids=allowed, max_tokens=8, logprobs=0)
    said = {token for token in answer["choices"][0]["logprobs"]["tokens"]}
    assert said <= set(server.serving.tokenizer.convert_ids_to_tokens(allowed)) | {
        server.serving.tokenizer.decode([token]) for token in allowed
    }
    check_error(client.post("/v1/completions", json={**PROMPT, "allowed_token_ids": []}), 400)
    check_error(client.post("/v1/completions", json={**PROMPT, "allowed_token_ids": [1 << 30]}), 400)


def test_bad_words_do_not_come(client: httpx.Client) -> None:
    words: list[str] = []
    for _ in range(4):
        text = complete(client, bad_words=words, max_tokens=6, temperature=0)["choices"][0]["text"]
        assert not set(words) & set(text.split())
        words += [word for word in text.split() if word.isascii() and word.isalpha()][:1]
    check_error(client.post("/v1/completions", json={**PROMPT, "bad_words": [""]}), 400)
    check_error(client.post("/v1/completions", json={**PROMPT, "bad_words": ["x"] * 65}), 400)


# ---- the chat template ---------------------------------------------------------------------------------------------


def prompt_tokens(client: httpx.Client, **options: Any) -> int:
    """How much the template wrote."""
    response = client.post("/v1/chat/completions", json={"messages": CHAT, "max_tokens": 1, **options})
    assert response.status_code == 200, response.text
    return response.json()["usage"]["prompt_tokens"]


def test_chat_template_kwargs_reach_the_template(server: RunningServer, client: httpx.Client) -> None:
    template = server.serving.tokenizer.chat_template
    server.serving.tokenizer.chat_template = template + "{% if mood is defined %}{{ mood }}{% endif %}"
    try:
        plain = prompt_tokens(client)
        assert prompt_tokens(client, chat_template_kwargs={"mood": "quick " * 20}) > plain
        assert prompt_tokens(client, chat_template_kwargs={"else": True}) == plain
    finally:
        server.serving.tokenizer.chat_template = template


@pytest.mark.parametrize(
    "variables",
    [
        {"chat_template": "{{ 'another' }}"},
        {"tokenize": True},
        {"return_tensors": "pt"},
        {"conversation": 1},
        {"messages": 1},
        {"add_generation_prompt": False},
        {"deep": {"er": 1}},
        {"list": [1]},
        {str(i): i for i in range(17)},
        {"long": "x" * 257},
        "text",
    ],
    ids=str,
)
def test_clients_cannot_set_how_the_template_is_run(client: httpx.Client, variables: Any) -> None:
    body = {"messages": CHAT, "max_tokens": 1, "chat_template_kwargs": variables}
    check_error(client.post("/v1/chat/completions", json=body), 400)


def test_the_last_message_is_continued(client: httpx.Client) -> None:
    begun = [*CHAT, {"role": "assistant", "content": "the lazy"}]
    options = {"messages": begun, "max_tokens": 3, "temperature": 0}
    both = client.post("/v1/chat/completions", json={**options, "continue_final_message": True})
    assert "add_generation_prompt" in check_error(both, 400)["message"]
    continued = prompt_tokens(client, messages=begun, add_generation_prompt=False, continue_final_message=True)
    ended = prompt_tokens(client, messages=begun, add_generation_prompt=False)
    assert continued < ended  # without what ends a turn


# ---- the model's own defaults --------------------------------------------------------------------------------------


def test_what_a_body_leaves_out_is_what_the_models_authors_advise(model: Path, tmp_path: Path) -> None:
    for file in model.iterdir():
        if file.name != "generation_config.json":
            (tmp_path / file.name).symlink_to(file)
    (tmp_path / "generation_config.json").write_text(json.dumps(ADVICE))
    own = {"temperature": 1e-6, "top_k": 3, "repetition_penalty": 1.5}
    with running(model, num_blocks=64) as plain, plain.client() as client:
        expected = complete(client, max_tokens=5, **own)
        other = complete(client, max_tokens=5, temperature=1e-6)
        default = complete(client, temperature=0)
    with running(tmp_path, num_blocks=64) as advised, advised.client() as client:
        assert complete(client)["choices"] == expected["choices"]
        assert complete(client, repetition_penalty=1.0, top_k=-1)["choices"] == other["choices"]
        assert complete(client, max_tokens=9)["usage"]["completion_tokens"] == 9
        chat = client.post("/v1/chat/completions", json={"messages": CHAT, "ignore_eos": True}).json()
        assert chat["usage"]["completion_tokens"] == 5
    with running(tmp_path, num_blocks=64, generation_config="vllm") as unread, unread.client() as client:
        assert complete(client, temperature=0)["choices"] == default["choices"]
    assert expected["choices"] != other["choices"]
