"""The HTTP contract, line by line; what the server answers is what the offline LLM generates."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from server_tools import VOCABULARY, RunningServer, check_error, chunks, events, make_tiny_chat_model, running

from pagedlab import LLM, SamplingParams

PROMPTS = ["the quick brown fox", "a block", "1 2 3 4 5 6 7", "one emoji 🙂 and"]
CHAT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "the quick brown fox?"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_chat_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def llm(model: Path) -> LLM:
    return LLM(model, num_blocks=512)


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[RunningServer]:
    with running(model, num_blocks=512, served_model_name=["tiny", "alias"]) as server:
        yield server


@pytest.fixture
def client(server: RunningServer) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client
    server.wait_idle()


def complete(client: httpx.Client, **body: Any) -> dict[str, Any]:
    response = client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def chat(client: httpx.Client, **body: Any) -> dict[str, Any]:
    response = client.post("/v1/chat/completions", json={"messages": CHAT, **body})
    assert response.status_code == 200, response.text
    return response.json()


# ---- completions ----------------------------------------------------------------------------------------------------

OPTIONS: list[dict[str, Any]] = [
    {"temperature": 0, "max_tokens": 20},
    {"temperature": 1.0, "seed": 5, "max_tokens": 20},
    {"temperature": 1.3, "top_p": 0.8, "top_k": 20, "min_p": 0.01, "seed": 6, "max_tokens": 20},
    {"temperature": 0, "presence_penalty": 1.5, "frequency_penalty": 0.7, "repetition_penalty": 1.2, "max_tokens": 20},
    {"temperature": 0, "logit_bias": {65: 100.0, 66: -100.0}, "max_tokens": 5},
    {"temperature": 0, "stop": ["ck"], "max_tokens": 40},
    {"temperature": 0, "stop": ["ck"], "include_stop_str_in_output": True, "max_tokens": 40},
    {"temperature": 1.0, "seed": 9, "min_tokens": 10, "stop_token_ids": list(range(100)), "max_tokens": 40},
    {"temperature": 1.0, "seed": 10, "ignore_eos": True, "skip_special_tokens": False, "max_tokens": 40},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options))
def test_a_completion_is_what_the_offline_llm_generates(client: httpx.Client, llm: LLM, options: dict) -> None:
    expected = [output.outputs[0] for output in llm.generate(PROMPTS, SamplingParams(**options), use_tqdm=False)]
    answer = complete(client, prompt=PROMPTS, **json.loads(json.dumps(options)))
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    for choice, completion in zip(answer["choices"], expected, strict=True):
        assert choice["text"] == completion.text.encode("utf-8", "replace").decode()
        assert (choice["finish_reason"], choice["stop_reason"]) == (completion.finish_reason, completion.stop_reason)
    assert answer["usage"]["completion_tokens"] == sum(len(completion.token_ids) for completion in expected)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options))
def test_the_streamed_text_is_the_whole_text(client: httpx.Client, options: dict) -> None:
    whole = complete(client, prompt=PROMPTS, **options)
    body = {"prompt": PROMPTS, "stream": True, "stream_options": {"include_usage": True}, **options}
    found = chunks(client.post("/v1/completions", json=body))
    last = found.pop()
    assert last["choices"] == [] and last["usage"] | {"prompt_tokens_details": 0} == whole["usage"] | {
        "prompt_tokens_details": 0
    }
    for choice in whole["choices"]:
        mine = [one for chunk in found for one in chunk["choices"] if one["index"] == choice["index"]]
        assert "".join(one["text"] for one in mine) == choice["text"]
        assert [one["finish_reason"] for one in mine if one["finish_reason"]] == [choice["finish_reason"]]
        assert mine[-1]["stop_reason"] == choice["stop_reason"]
    assert len({chunk["id"] for chunk in found}) == 1


def test_a_prompt_may_be_text_texts_ids_or_lists_of_ids(client: httpx.Client, llm: LLM) -> None:
    ids = [llm.get_tokenizer().encode(prompt) for prompt in PROMPTS[:2]]
    options = {"temperature": 0, "max_tokens": 6}
    one = complete(client, prompt=PROMPTS[0], **options)["choices"]
    assert complete(client, prompt=ids[0], **options)["choices"] == one
    assert complete(client, prompt=[PROMPTS[0]], **options)["choices"] == one
    two = complete(client, prompt=PROMPTS[:2], **options)
    assert complete(client, prompt=ids, **options)["choices"] == two["choices"]
    assert two["choices"][0] == one[0]
    assert two["usage"]["prompt_tokens"] == sum(map(len, ids))


def test_n_completions_of_each_prompt_are_numbered(client: httpx.Client, llm: LLM) -> None:
    options = {"n": 3, "temperature": 1.0, "seed": 3, "max_tokens": 8}
    expected = llm.generate(PROMPTS[:2], SamplingParams(**options), use_tqdm=False)
    texts = [completion.text for output in expected for completion in output.outputs]
    answer = complete(client, prompt=PROMPTS[:2], **options)
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    assert [choice["text"] for choice in answer["choices"]] == texts
    assert answer["usage"]["completion_tokens"] == sum(len(c.token_ids) for o in expected for c in o.outputs)
    streamed = [""] * 6
    for chunk in chunks(client.post("/v1/completions", json={"prompt": PROMPTS[:2], "stream": True, **options})):
        for choice in chunk["choices"]:
            streamed[choice["index"]] += choice["text"]
    assert streamed == texts


def test_echo_puts_the_prompt_first(client: httpx.Client, llm: LLM) -> None:
    options = {"temperature": 0, "max_tokens": 5}
    plain = complete(client, prompt=PROMPTS[0], **options)["choices"][0]["text"]
    assert complete(client, prompt=PROMPTS[0], echo=True, **options)["choices"][0]["text"] == PROMPTS[0] + plain
    ids = llm.get_tokenizer().encode(PROMPTS[0])
    assert complete(client, prompt=ids, echo=True, **options)["choices"][0]["text"] == PROMPTS[0] + plain
    body = {"prompt": PROMPTS[0], "echo": True, "stream": True, **options}
    found = chunks(client.post("/v1/completions", json=body))
    assert "".join(chunk["choices"][0]["text"] for chunk in found) == PROMPTS[0] + plain


@pytest.mark.parametrize("stream", [False, True])
def test_echo_of_nothing_but_the_prompt_gives_its_logprobs(client: httpx.Client, llm: LLM, stream: bool) -> None:
    body = {"prompt": PROMPTS[0], "echo": True, "max_tokens": 0, "logprobs": 1, "stream": stream}
    if stream:
        answer = chunks(client.post("/v1/completions", json=body))[0]
    else:
        answer = complete(client, **body)
        assert answer["usage"]["completion_tokens"] == 0
    (choice,) = answer["choices"]
    assert choice["text"] == PROMPTS[0] and choice["finish_reason"] == "length"
    expected = llm.generate([PROMPTS[0]], SamplingParams(max_tokens=1, prompt_logprobs=1), use_tqdm=False)[0]
    ids = expected.prompt_token_ids
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert choice["logprobs"]["token_logprobs"][1:] == pytest.approx(
        [entry[token].logprob for entry, token in zip(expected.prompt_logprobs[1:], ids[1:], strict=True)]
    )
    assert "".join(choice["logprobs"]["tokens"]) == PROMPTS[0]
    offsets = choice["logprobs"]["text_offset"]
    assert offsets == [len("".join(choice["logprobs"]["tokens"][:i])) for i in range(len(offsets))]


@pytest.mark.parametrize("num", [None, 0, 5, 20])
@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_of_completions(client: httpx.Client, llm: LLM, num: int | None, stream: bool) -> None:
    options = {"temperature": 0, "max_tokens": 6, "logprobs": num}
    output = llm.generate([PROMPTS[0]], SamplingParams(**options), use_tqdm=False)[0].outputs[0]
    body = {"prompt": PROMPTS[0], "stream": stream, **options}
    if stream:
        pieces = [c["logprobs"] for k in chunks(client.post("/v1/completions", json=body)) for c in k["choices"]]
        if num is None:
            assert not any(pieces)
            return
        logprobs = {name: [x for piece in pieces for x in piece[name]] for name in pieces[0]}
    else:
        logprobs = complete(client, **body)["choices"][0]["logprobs"]
        if num is None:
            assert logprobs is None
            return
    chosen = [entry[token] for entry, token in zip(output.logprobs, output.token_ids, strict=True)]
    assert logprobs["token_logprobs"] == pytest.approx([one.logprob for one in chosen], abs=1e-5)
    assert logprobs["tokens"] == [one.decoded_token for one in chosen]
    for top, entry in zip(logprobs["top_logprobs"], output.logprobs, strict=True):
        # several tokens may decode to the same text (bytes of no character): fewer names then
        assert len(top) == len({one.decoded_token for one in entry.values()}) <= max(1, num)
    starts = [sum(map(len, logprobs["tokens"][:i])) for i in range(len(logprobs["tokens"]))]
    assert logprobs["text_offset"] == starts


# ---- chat -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options))
def test_a_chat_answer_is_what_the_offline_llm_says(client: httpx.Client, llm: LLM, options: dict) -> None:
    output = llm.chat(CHAT, SamplingParams(**options), use_tqdm=False)[0]
    answer = chat(client, **json.loads(json.dumps(options)))
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": output.outputs[0].text}
    assert choice["finish_reason"] == output.outputs[0].finish_reason
    usage = answer["usage"]
    assert usage["prompt_tokens"] == len(output.prompt_token_ids)
    assert usage["completion_tokens"] == len(output.outputs[0].token_ids)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    found = chunks(client.post("/v1/chat/completions", json={"messages": CHAT, "stream": True, **options}))
    assert found[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(c["delta"].get("content", "") for k in found for c in k["choices"]) == output.outputs[0].text


def test_chat_n_gives_indices_0_to_2_streamed_or_not(client: httpx.Client) -> None:
    options = {"n": 3, "temperature": 1.0, "seed": 11, "max_tokens": 7}
    answer = chat(client, **options)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    texts, reasons, roles = [""] * 3, [[] for _ in range(3)], [0] * 3
    for chunk in chunks(client.post("/v1/chat/completions", json={"messages": CHAT, "stream": True, **options})):
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "")
            roles[choice["index"]] += "role" in choice["delta"]
            reasons[choice["index"]] += [choice["finish_reason"]] if choice["finish_reason"] else []
    assert texts == [choice["message"]["content"] for choice in answer["choices"]]
    assert reasons == [[choice["finish_reason"]] for choice in answer["choices"]] and roles == [1, 1, 1]


@pytest.mark.parametrize("num", [None, 0, 5])
def test_logprobs_of_chats(client: httpx.Client, llm: LLM, num: int | None) -> None:
    options = {"temperature": 0, "max_tokens": 5, "logprobs": num is not None, "top_logprobs": num}
    params = SamplingParams(temperature=0, max_tokens=5, logprobs=num)
    output = llm.chat(CHAT, params, use_tqdm=False)[0].outputs[0]
    body = {"messages": CHAT, "stream": True, **options}
    streamed = [
        c["logprobs"]
        for k in chunks(client.post("/v1/chat/completions", json=body))
        for c in k["choices"][:1]
        if c.get("logprobs")
    ]
    logprobs = chat(client, **options)["choices"][0]["logprobs"]
    if num is None:
        assert logprobs is None and streamed == []
        return
    assert [one for piece in streamed for one in piece["content"]] == logprobs["content"]
    for one, entry, token in zip(logprobs["content"], output.logprobs, output.token_ids, strict=True):
        assert one["token"] == entry[token].decoded_token
        assert bytes(one["bytes"]).decode("utf-8", "replace") == one["token"]
        assert one["logprob"] == pytest.approx(entry[token].logprob, abs=1e-5)
        best = sorted((e.logprob for e in entry.values()), reverse=True)[:num]
        assert [top["logprob"] for top in one["top_logprobs"]] == pytest.approx(best, abs=1e-5)


def test_parts_developers_and_answers_sent_back_are_messages(client: httpx.Client) -> None:
    plain = chat(client, temperature=0, max_tokens=4)
    parts = [{"type": "text", "text": "the quick "}, {"type": "text", "text": "brown fox?"}]
    same = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]
    assert chat(client, messages=same, temperature=0, max_tokens=4)["choices"] == plain["choices"]
    back = {**plain["choices"][0]["message"], "refusal": None, "tool_calls": None, "annotations": []}
    chat(client, messages=[*CHAT, back, {"role": "user", "content": "go on"}], max_tokens=2)


def test_without_max_tokens_a_chat_may_fill_the_context(client: httpx.Client, llm: LLM) -> None:
    answer = chat(client, temperature=1.0, seed=1, logit_bias={"2": 5})
    assert answer["choices"][0]["finish_reason"] == "stop"
    short = chat(client, temperature=0, max_completion_tokens=3)
    assert short["usage"]["completion_tokens"] == 3 and short["choices"][0]["finish_reason"] == "length"


# ---- embeddings, tokens, models -------------------------------------------------------------------------------------


def test_embeddings_are_those_of_encode(client: httpx.Client, llm: LLM) -> None:
    expected = [output.outputs.data.numpy() for output in llm.encode(PROMPTS[:2], use_tqdm=False)]
    answer = client.post("/v1/embeddings", json={"input": PROMPTS[:2]}).json()
    assert [one["index"] for one in answer["data"]] == [0, 1]
    for one, vector in zip(answer["data"], expected, strict=True):
        np.testing.assert_allclose(one["embedding"], vector, atol=1e-5)
        assert np.linalg.norm(one["embedding"]) == pytest.approx(1, abs=1e-5)
    raw = client.post("/v1/embeddings", json={"input": PROMPTS[0], "encoding_format": "base64"}).json()
    vector = np.frombuffer(base64.b64decode(raw["data"][0]["embedding"]), dtype=np.float32)
    np.testing.assert_allclose(vector, expected[0], atol=1e-5)
    tokens = sum(len(llm.get_tokenizer().encode(prompt)) for prompt in PROMPTS[:2])
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] == tokens
    check_error(client.post("/v1/embeddings", json={"input": "a", "dimensions": 7}), 400)
    check_error(client.post("/v1/embeddings", json={"input": []}), 400)


def test_tokenize_and_detokenize_are_inverse(client: httpx.Client, llm: LLM) -> None:
    tokenizer = llm.get_tokenizer()
    for text in [*PROMPTS, "", "x" * 5000]:
        answer = client.post("/tokenize", json={"prompt": text, "return_token_strs": True}).json()
        assert answer["tokens"] == tokenizer.encode(text) and answer["count"] == len(answer["tokens"])
        assert answer["max_model_len"] == 12_288
        assert answer["token_strs"] == tokenizer.convert_ids_to_tokens(answer["tokens"])
        assert client.post("/detokenize", json={"tokens": answer["tokens"]}).json() == {"prompt": text}
    answer = client.post("/tokenize", json={"messages": CHAT}).json()
    assert answer["tokens"] == llm.chat(CHAT, use_tqdm=False)[0].prompt_token_ids
    check_error(client.post("/tokenize", json={"prompt": "a", "messages": CHAT}), 400)
    check_error(client.post("/detokenize", json={"tokens": [VOCABULARY]}), 400)


def test_models_health_version_and_openapi(client: httpx.Client) -> None:
    cards = client.get("/v1/models").json()
    assert [card["id"] for card in cards["data"]] == ["tiny", "alias"]
    assert all(card["max_model_len"] == 12_288 and card["object"] == "model" for card in cards["data"])
    assert client.get("/v1/models/alias").json() == cards["data"][1]
    assert client.get("/health").status_code == 200
    assert client.get("/version").json()["version"]
    paths = client.get("/openapi.json").json()["paths"]
    assert "/v1/completions" in paths and "422" not in paths["/v1/completions"]["post"]["responses"]
    for name in ("tiny", "alias"):
        assert complete(client, model=name, prompt="a", max_tokens=1)["model"] == name


# ---- refusals -------------------------------------------------------------------------------------------------------

TOO_LONG = [1] * 12_000

BAD_COMPLETIONS: list[tuple[dict[str, Any], str]] = [
    ({}, "prompt"),
    ({"prompt": ""}, "empty"),
    ({"prompt": []}, "empty"),
    ({"prompt": ["a", ""]}, "empty"),
    ({"prompt": [VOCABULARY]}, "out of vocabulary"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": {"a": 1}}, "prompt"),
    ({"prompt": [True]}, "prompt"),
    ({"prompt": ["a"] * 257}, "256"),
    ({"prompt": "\ud800"}, "surrogate"),
    ({"prompt": TOO_LONG, "max_tokens": 500}, "maximum context length is 12288 tokens. However, you requested 12500"),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
    ({"prompt": "a", "max_tokens": -1}, "max_tokens"),
    ({"prompt": "a", "max_tokens": "5"}, "max_tokens"),
    ({"prompt": "a", "max_tokens": 1.5}, "max_tokens"),
    ({"prompt": "a", "temperature": 2.1}, "temperature"),
    ({"prompt": "a", "temperature": float("nan")}, "temperature"),
    ({"prompt": "a", "temperature": float("inf")}, "temperature"),
    ({"prompt": "a", "top_p": 0}, "top_p"),
    ({"prompt": "a", "n": 0}, "n"),
    ({"prompt": "a", "n": 129}, "128"),
    ({"prompt": "a", "n": 2, "temperature": 0}, "greedy"),
    ({"prompt": "a", "logprobs": 21}, "20"),
    ({"prompt": "a", "logprobs": -1}, "logprobs"),
    ({"prompt": "a", "stop": ["x"] * 17}, "16"),
    ({"prompt": "a", "stop": [""]}, "stop"),
    ({"prompt": "a", "stop_token_ids": [VOCABULARY]}, "out of vocabulary"),
    ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias"),
    ({"prompt": "a", "logit_bias": {"1": 101}}, "logit_bias"),
    ({"prompt": "a", "logit_bias": {str(VOCABULARY): 1}}, "out of vocabulary"),
    ({"prompt": "a", "logit_bias": {str(i): 0 for i in range(1025)}}, "1024"),
    ({"prompt": "a", "min_tokens": 9, "max_tokens": 3}, "min_tokens"),
    ({"prompt": "a", "seed": 2**63}, "seed"),
    ({"prompt": "a", "best_of": 2}, "best_of"),
    ({"prompt": "a", "suffix": "b"}, "suffix"),
    ({"prompt": "a", "stream_options": {"include_usage": True}}, "stream"),
    ({"prompt": "a", "no_such_option": 1}, "no_such_option"),
]


@pytest.mark.parametrize(("body", "said"), BAD_COMPLETIONS, ids=lambda value: str(value)[:40])
def test_a_bad_completion_is_refused_with_400(client: httpx.Client, body: dict, said: str) -> None:
    data = json.dumps(body)
    error = check_error(client.post("/v1/completions", content=data, headers={"content-type": "application/json"}), 400)
    assert said in error["message"] and error["type"] == "invalid_request_error"
    assert complete(client, prompt="a", max_tokens=1)["choices"], "the server goes on"


BAD_CHATS: list[tuple[dict[str, Any], str]] = [
    ({}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [{"role": "robot", "content": "a"}]}, "role"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "this model reads text"),
    ({"messages": [{"role": "user", "content": "a"}] * 1025}, "1024"),
    ({"messages": CHAT, "top_logprobs": 2}, "logprobs"),
    ({"messages": CHAT, "logprobs": True, "top_logprobs": 21}, "20"),
    ({"messages": CHAT, "max_tokens": 0}, "max_tokens"),
    ({"messages": CHAT, "response_format": {"type": "json_object"}}, "response_format"),
    ({"messages": CHAT, "tools": [{"type": "function"}]}, "tools"),
    ({"messages": CHAT, "chat_template": "{{ 1 }}"}, "chat_template"),
    ({"messages": CHAT, "stream_options": {}}, "stream"),
    ({"messages": [{"role": "user", "content": "xy" * 12_300}]}, "maximum context length is 12288 tokens"),
]


@pytest.mark.parametrize(("body", "said"), BAD_CHATS, ids=lambda value: str(value)[:40])
def test_a_bad_chat_is_refused_with_400(client: httpx.Client, body: dict, said: str) -> None:
    error = check_error(client.post("/v1/chat/completions", json=body), 400)
    assert said in error["message"]


def test_a_refused_stream_is_a_400_and_no_stream(client: httpx.Client) -> None:
    check_error(client.post("/v1/completions", json={"prompt": [VOCABULARY], "stream": True}), 400)


def test_an_over_length_prompt_has_openais_code(client: httpx.Client) -> None:
    error = check_error(client.post("/v1/completions", json={"prompt": TOO_LONG, "max_tokens": 500}), 400)
    assert error["code"] == "context_length_exceeded"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/tokenize"])
def test_an_unknown_model_is_a_404(client: httpx.Client, path: str) -> None:
    body = {"model": "other", "prompt": "a", "messages": CHAT, "input": "a"}
    needed = {"/v1/completions": ["prompt"], "/v1/chat/completions": ["messages"], "/v1/embeddings": ["input"]}
    wanted = ["model", *needed.get(path, ["prompt"])]
    error = check_error(client.post(path, json={name: body[name] for name in wanted}), 404)
    assert error["code"] == "model_not_found" and error["param"] == "model"
    check_error(client.get("/v1/models/other"), 404)


def test_errors_of_routing_have_the_shape_too(client: httpx.Client) -> None:
    check_error(client.get("/nothing"), 404)
    check_error(client.get("/v1/completions"), 405)
    check_error(client.delete("/v1/models"), 405)
    check_error(client.post("/nothing", json={}), 404)


def test_a_lone_continuous_usage_counts_up(client: httpx.Client) -> None:
    body = {"prompt": "a", "max_tokens": 4, "stream": True, "stream_options": {"continuous_usage_stats": True}}
    found = chunks(client.post("/v1/completions", json={**body, "temperature": 0}))
    counts = [chunk["usage"]["completion_tokens"] for chunk in found]
    assert counts == sorted(counts) and counts[-1] == 4 and all(chunk["choices"] for chunk in found)


def test_every_stream_is_data_lines_alone(client: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": "line\nbreaks\r\n"}], "max_tokens": 30, "stream": True}
    response = client.post("/v1/chat/completions", json={**body, "temperature": 2.0, "seed": 4})
    assert len(events(response.text)) > 3 and response.headers["cache-control"] == "no-cache"
