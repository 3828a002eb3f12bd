"""Real clients: the openai package, curl and LangChain, on the default model, with the offline LLM as the oracle."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from server_tools import RunningServer, running

from pagedlab import LLM, SamplingParams

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
KEY = "secret"


@pytest.fixture(scope="module")
def server(default_model_path: Path) -> Iterator[RunningServer]:
    with running(None, num_blocks=300, api_key=[KEY], served_model_name=["smol"]) as server:
        yield server
        server.wait_idle()


@pytest.fixture(scope="module")
def answer(default_model_path: Path) -> str:
    """What the offline LLM says to QUESTION."""
    return (
        LLM(num_blocks=64)
        .chat(QUESTION, SamplingParams(temperature=0, max_tokens=12), use_tqdm=False)[0]
        .outputs[0]
        .text
    )


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def test_openai_lists_the_model_and_chats(client: openai.OpenAI, answer: str) -> None:
    assert [model.id for model in client.models.list()] == ["smol"]
    assert client.models.retrieve("smol").id == "smol"
    found = client.chat.completions.create(model="smol", messages=QUESTION, max_tokens=12, temperature=0)  # type: ignore[arg-type]
    assert found.choices[0].message.content == answer == "The capital of France is Paris."
    assert found.usage is not None and found.usage.completion_tokens == 8
    again = [*QUESTION, found.choices[0].message, {"role": "user", "content": "And of Italy?"}]
    client.chat.completions.create(model="smol", messages=again, max_tokens=2)  # type: ignore[arg-type]


def test_openai_streams_chats(client: openai.OpenAI, answer: str) -> None:
    stream = client.chat.completions.create(
        model="smol",
        messages=QUESTION,  # type: ignore[arg-type]
        max_completion_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        logprobs=True,
        top_logprobs=2,
    )
    pieces, usage, reasons, num_logprobs = [], None, [], 0
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            pieces.append(choice.delta.content or "")
            reasons += [choice.finish_reason] if choice.finish_reason else []
            num_logprobs += len(choice.logprobs.content or ()) if choice.logprobs else 0
    assert "".join(pieces) == answer and reasons == ["stop"]
    assert usage is not None and usage.completion_tokens == num_logprobs == 8


def test_openai_completes_and_embeds(client: openai.OpenAI) -> None:
    found = client.completions.create(
        model="smol", prompt=["The capital of France is", "1, 2, 3,"], max_tokens=4, temperature=0, logprobs=1
    )
    assert " Paris" in found.choices[0].text and found.choices[1].text.startswith(" 4")
    vectors = client.embeddings.create(model="smol", input=["a cat", "a kitten", "tax law"]).data
    assert [one.index for one in vectors] == [0, 1, 2] and len(vectors[0].embedding) == 576
    assert sum(x * x for x in vectors[0].embedding) == pytest.approx(1, abs=1e-4)


def test_openai_async_clients_share_the_engine(server: RunningServer, answer: str) -> None:
    async def ask_all() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY) as client:

            async def ask(stream: bool) -> str | None:
                found = await client.chat.completions.create(
                    model="smol",
                    messages=QUESTION,  # type: ignore[arg-type]
                    max_tokens=12,
                    temperature=0,
                    stream=stream,
                )
                if not stream:
                    return found.choices[0].message.content  # type: ignore[union-attr]
                return "".join([c.delta.content or "" async for k in found for c in k.choices])  # type: ignore[union-attr]

            return await asyncio.gather(*(ask(number % 2 == 0) for number in range(6)))

    assert asyncio.run(ask_all()) == [answer] * 6


def test_openai_leaving_a_stream_aborts_the_request(server: RunningServer, client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model="smol",
        messages=QUESTION,  # type: ignore[arg-type]
        max_tokens=2000,
        stream=True,
        extra_body={"ignore_eos": True},
    ) as stream:
        next(iter(stream))
    server.wait_idle()


def test_openai_raises_the_exception_of_each_status(server: RunningServer, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as not_found:
        client.chat.completions.create(model="other", messages=QUESTION)  # type: ignore[arg-type]
    assert not_found.value.code == "model_not_found" and not_found.value.param == "model"
    with pytest.raises(openai.BadRequestError) as bad:
        client.completions.create(model="smol", prompt="a " * 9000, max_tokens=8)
    assert bad.value.code == "context_length_exceeded" and "maximum context length" in bad.value.message
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="smol", messages=[])
    wrong = openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        wrong.models.list()


def test_openai_retries_until_the_rate_limit_lets_it_in(default_model_path: Path) -> None:
    with running(None, num_blocks=64, rate_limit="1/second") as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=5)
        for _ in range(3):
            assert client.completions.create(model=server.serving.names[0], prompt="a", max_tokens=1).choices
        impatient = client.with_options(max_retries=0)
        deadline = time.monotonic() + 120  # a busy machine may not get to two requests in each second
        with pytest.raises(openai.RateLimitError) as refused:
            while time.monotonic() < deadline:
                impatient.completions.create(model=server.serving.names[0], prompt="a", max_tokens=1)
        assert refused.value.response.headers["retry-after"] == "1"


def test_openai_sees_503_as_a_server_error_and_tries_again(default_model_path: Path) -> None:
    with running(None, num_blocks=300, max_pending_requests=1) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)
        name = server.serving.names[0]
        stream = client.completions.create(
            model=name, prompt="a", max_tokens=2000, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        with pytest.raises(openai.InternalServerError) as refused:
            client.completions.create(model=name, prompt="a", max_tokens=1)
        assert refused.value.status_code == 503 and refused.value.code == "overloaded"
        stream.close()
        assert client.with_options(max_retries=5).completions.create(model=name, prompt="a", max_tokens=1).choices


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_posts_and_streams(server: RunningServer, answer: str) -> None:
    def curl(*arguments: str) -> str:
        command = ["curl", "-sS", "-N", "-H", f"Authorization: Bearer {KEY}", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout

    as_json = ["-H", "Content-Type: application/json", "-d"]
    body = {"messages": QUESTION, "max_tokens": 12, "temperature": 0}
    found = json.loads(curl(f"{server.url}/v1/chat/completions", *as_json, json.dumps(body)))
    assert found["choices"][0]["message"]["content"] == answer
    lines = curl(f"{server.url}/v1/chat/completions", *as_json, json.dumps({**body, "stream": True})).split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    # curl -d without a header says that it sends a form.
    assert "Content-Type" in curl(f"{server.url}/v1/chat/completions", "-d", json.dumps(body))


def test_langchain_invokes_streams_and_batches(server: RunningServer, answer: str) -> None:
    langchain_openai = pytest.importorskip("langchain_openai")
    chat = langchain_openai.ChatOpenAI(
        base_url=f"{server.url}/v1", api_key=KEY, model="smol", temperature=0, max_tokens=12
    )
    found = chat.invoke("What is the capital of France?")
    assert found.content == answer and found.usage_metadata["output_tokens"] == 8
    assert "".join(chunk.content for chunk in chat.stream("What is the capital of France?")) == answer
    assert [one.content for one in chat.batch(["What is the capital of France?"] * 2)] == [answer] * 2
    assert asyncio.run(chat.ainvoke("What is the capital of France?")).content == answer
