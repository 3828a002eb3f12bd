"""A client that wants to harm the others: what it sends costs the server little, and the others nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError
from server_tools import RunningServer, check_error, make_tiny_chat_model, running

from pagedlab.interfaces.openai_server.protocol import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    EmbeddingBody,
    TokenizeBody,
)

JSON = {"Content-Type": "application/json"}


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
