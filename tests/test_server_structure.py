"""One request's cost to the others: what the event loop would do in one go is bounded, or done beside it."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from server_tools import RunningServer, check_error, chunks, make_tiny_chat_model, running
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pagedlab import LLM, SamplingParams
from pagedlab.interfaces import output_processing
from pagedlab.interfaces.input_processing import Limits
from pagedlab.interfaces.openai_server import answer_size, body_structure, serving
from pagedlab.interfaces.openai_server.body_structure import check_structure, outside_strings
from pagedlab.interfaces.openai_server.errors import ApiError
from pagedlab.interfaces.openai_server.prompt_length import most_characters
from pagedlab.interfaces.openai_server.responses import ModelCard, ModelList, with_list
from pagedlab.interfaces.outputs import CompletionOutput, Logprob, RequestOutput
from pagedlab.sampling_params import RequestOutputKind

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_chat_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[RunningServer]:
    with running(model, num_blocks=256, served_model_name=['a"choices":[]', "tiny"]) as server:
        yield server
        server.wait_idle()


# ---- how much structure a body has ----------------------------------------------------------------------------------

TEXTS = st.text(st.sampled_from(list('"\\[]{}:,ab\n\u2200\u5b5b\u3a3a\U0001f642')))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
    max_leaves=20,
)


def structure_of(value: Any) -> tuple[int, int]:
    """(lists, objects and named values; values behind another one), found by walking through what was parsed."""
    if not isinstance(value, (list, dict)):
        return 0, 0
    inner = [structure_of(one) for one in (value.values() if isinstance(value, dict) else value)]
    own = 1 + (len(value) if isinstance(value, dict) else 0)
    return own + sum(one[0] for one in inner), max(0, len(value) - 1) + sum(one[1] for one in inner)


@given(VALUES, st.booleans(), st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]))
def test_structure_is_counted_as_the_parser_finds_it(value: Any, escaped: bool, encoding: str) -> None:
    """No text counts, whatever brackets, quotes and backslashes it holds, in no encoding that the parser knows."""
    text = json.dumps(value, ensure_ascii=escaped)
    body = text.encode(encoding)
    assert json.loads(body) == value
    left = outside_strings(body) if json.detect_encoding(body) != "utf-8" or '"' in text else body
    assert (sum(left.count(one) for one in b"[{:"), left.count(b",")) == structure_of(value)


@given(VALUES, st.integers(0, 40), st.integers(0, 40))
def test_a_body_is_refused_if_and_only_if_it_has_too_much(value: Any, most: int, entries: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(body_structure, "MAX_STRUCTURE", most)
        patch.setattr(body_structure, "MAX_ENTRIES", entries)
        structure, behind = structure_of(value)
        try:
            check_structure(json.dumps(value).encode())
        except ApiError as error:
            assert error.status == 400 and (structure > most or behind > entries)
        else:
            assert structure <= most and behind <= entries


@given(st.binary())
def test_what_is_no_json_is_left_to_the_parser(body: bytes) -> None:
    outside_strings(body)
    check_structure(body)


BODIES = {
    "empty lists": '{"prompt": [' + "[]," * 70_000 + "[]]}",
    "objects": '{"messages": [{"role": "user", "content": "a", "more": [' + "{}," * 70_000 + "{}]}]}",
    "names": "{" + ",".join(f'"{number}": 1' for number in range(70_000)) + "}",
    "nested": '{"prompt": ' + "[" * 70_000 + "]" * 70_000 + "}",
    "numbers": '{"prompt": [' + "1," * (1 << 19) + "1, 1]}",
    "not even JSON": "[" * 70_000,
}


@pytest.mark.parametrize("body", BODIES.values(), ids=list(BODIES))
def test_a_body_full_of_small_values_is_not_parsed(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    """A million empty lists kept every client waiting for 1.2 s, for the parser lets nobody in between."""
    parsed: list[int] = []
    real = json.loads

    def spy(text: Any, **options: Any) -> Any:
        parsed.append(len(text))
        return real(text, **options)

    monkeypatch.setattr("starlette.requests.json.loads", spy)
    with server.client() as client:
        answer = client.post("/v1/completions", content=body.encode(), headers=JSON)
    monkeypatch.undo()
    error = check_error(answer, 400)
    assert "send less" in error["message"] and not parsed


@pytest.mark.parametrize("text", ["1,2;[3]{4}: " * 30_000, '"\\\\"[{:' * 40_000])
def test_a_text_may_be_full_of_brackets(server: RunningServer, text: str) -> None:
    with server.client() as client:
        answer = client.post("/tokenize", json={"prompt": text})
        assert answer.status_code == 200
        assert client.post("/detokenize", json={"tokens": answer.json()["tokens"][:1000]}).json()["prompt"] in text


# ---- token ids ------------------------------------------------------------------------------------------------------


def test_a_long_list_of_ids_is_read_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking an abstract class about each id alone kept the event loop for 4 s: a body has room for 1.8 million."""

    class NobodyAsks:
        def __instancecheck__(self, instance: Any) -> bool:
            raise AssertionError("each id was looked at by itself")

    monkeypatch.setattr("pagedlab.interfaces.input_processing.Integral", NobodyAsks())
    from pagedlab.interfaces.input_processing import parse_prompt

    ids = list(range(1000))
    text, read = parse_prompt({"prompt": None, "prompt_token_ids": ids}, None)
    assert read == ids and read is not ids and text is None


# ---- texts that cannot fit ------------------------------------------------------------------------------------------


@given(st.text() | st.text(st.sampled_from("the quick brown"), max_size=200))
def test_no_text_has_fewer_tokens_than_its_characters_say(default_model_path: Path, text: str) -> None:
    tokenizer = load(default_model_path)
    most = most_characters(tokenizer)
    assert most and len(text) <= most * len(tokenizer.encode(text))


def test_the_bound_is_met_by_the_longest_token(default_model_path: Path) -> None:
    tokenizer = load(default_model_path)
    longest = max(tokenizer.get_vocab(), key=len)
    text = tokenizer.backend_tokenizer.decoder.decode([longest])
    assert len(text) == most_characters(tokenizer) and len(tokenizer.encode(text)) == 1


LOADED: dict[Path, Any] = {}


def load(path: Path) -> Any:
    if path not in LOADED:
        LOADED[path] = PreTrainedTokenizerFast.from_pretrained(path)
    return LOADED[path]


def with_normalizer(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Strip()


def of_whole_words(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()


def with_a_token_that_takes_spaces(tokenizer: Tokenizer) -> None:
    tokenizer.add_special_tokens([AddedToken("<x>", lstrip=True, special=True)])


@pytest.mark.parametrize("change", [with_normalizer, of_whole_words, with_a_token_that_takes_spaces])
def test_tokenizers_that_may_drop_text_have_no_bound(change: Any) -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "<x>": 1}, merges=[], unk_token="<x>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    assert most_characters(PreTrainedTokenizerFast(tokenizer_object=tokenizer)) == 3
    change(tokenizer)
    assert most_characters(PreTrainedTokenizerFast(tokenizer_object=tokenizer)) is None


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "the quick " * 100_000}),
        ("/v1/completions", {"prompt": ["a", "the quick " * 100_000]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "the quick " * 100_000}]}),
        ("/v1/embeddings", {"input": "the quick " * 100_000}),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_text_that_cannot_fit_is_not_tokenized(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, path: str, body: dict
) -> None:
    monkeypatch.setattr(server.serving.tokenizer, "encode", None)
    with server.client() as client:
        error = check_error(client.post(path, json=body), 400)
    assert error["code"] == "context_length_exceeded" and "maximum context length is 12288" in error["message"]


# ---- answers --------------------------------------------------------------------------------------------------------

TURN = {"role": "user", "content": "the"}
ASKED = [
    ("/v1/completions", {"prompt": ["the quick", "brown"], "logprobs": 20, "echo": True, "max_tokens": 8, "seed": 1}),
    ("/v1/completions", {"prompt": ["the"] * 200, "max_tokens": 2, "n": 2, "temperature": 1, "seed": 1}),
    (
        "/v1/chat/completions",
        {"messages": [TURN], "logprobs": True, "top_logprobs": 20, "max_tokens": 16, "seed": 1},
    ),
    ("/v1/embeddings", {"input": ["the quick", "brown", "fox", "jumps"] * 3}),
]


@pytest.mark.parametrize(("path", "body"), ASKED, ids=lambda value: str(value)[:60])
def test_a_long_answer_is_written_beside_the_event_loop(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, path: str, body: dict
) -> None:
    """20 alternatives for each of 4,000 tokens are 5 MB, which kept every stream waiting for a second."""
    threads: set[str] = set()
    real = with_list

    def spy(*arguments: Any) -> str:
        threads.add(threading.current_thread().name.split("_")[0])
        return real(*arguments)

    for module in ("completions", "chat", "embeddings"):
        monkeypatch.setattr(f"pagedlab.interfaces.openai_server.{module}.with_list", spy)
    found = []
    with server.client() as client:
        for short in (serving.SHORT_ANSWER, 1 << 60):  # the second is written on the loop
            monkeypatch.setattr(serving, "SHORT_ANSWER", short)
            answer = client.post(path, json={**body, "cache_salt": str(short)})
            assert answer.status_code == 200, answer.text
            found.append({**answer.json(), "id": "", "created": 0})
    assert threads == {"pagedlab-answers", server._thread.name.split("_")[0]}
    assert found[0] == found[1]
    document = server.server.config.app.openapi()  # type: ignore[union-attr]
    schema = document["paths"][path]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    fields = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]["properties"]
    assert set(found[0]) == set(fields), "a field that is stated is missing, or the other way round"


def test_a_list_is_written_into_its_place_whatever_the_names_say() -> None:
    name = 'x"data":[]y'
    cards = [ModelCard(id=f"{name}{i}", created=i, root=name, max_model_len=1) for i in range(3)]
    assert with_list(ModelList(data=[]), "data", cards) == ModelList(data=cards).model_dump_json()
    assert with_list(ModelList(data=[]), "data", []) == ModelList(data=[]).model_dump_json()


def test_an_answer_that_fails_while_it_is_written_is_an_error(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "SHORT_ANSWER", 0)
    with server.client() as client:
        error = check_error(client.post("/v1/embeddings", json={"input": "the", "dimensions": 7}), 400)
    assert error["param"] == "dimensions" and re.search(r"have \d+ dimensions", error["message"])


# ---- log-probabilities ----------------------------------------------------------------------------------------------

PROMPT = [5] * 10
TOO_MANY = [
    ("/v1/completions", {"prompt": [PROMPT] * 64, "logprobs": 20, "max_tokens": 4000}),
    ("/v1/completions", {"prompt": [[5] * 4000] * 64, "logprobs": 20, "max_tokens": 0, "echo": True}),
    ("/v1/completions", {"prompt": PROMPT, "logprobs": 20, "max_tokens": 2000, "n": 128, "stream": True}),
    ("/v1/chat/completions", {"messages": [TURN], "logprobs": True, "top_logprobs": 20, "n": 100}),
]


@pytest.mark.parametrize(("path", "body"), TOO_MANY, ids=lambda value: str(value)[-60:])
def test_log_probabilities_cannot_fill_the_memory(server: RunningServer, path: str, body: dict) -> None:
    """128 completions of 8,192 tokens with all of theirs would take 17 GB."""
    with server.client() as client:
        error = check_error(client.post(path, json=body), 400)
    assert error["param"] == "logprobs" and "log-probabilities, and 4194304 are allowed" in error["message"]
    assert not server.serving.engine.pending


@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=4),
    st.integers(1, 5),
    st.integers(0, 3),
    st.none() | st.integers(0, 3),
    st.integers(1, 3),
)
def test_the_size_that_is_checked_is_the_size_that_can_come(
    lengths: list[int], max_tokens: int, logprobs: int, prompt_logprobs: int | None, n: int
) -> None:
    """The limit is met exactly by an answer of that many entries, written out here one by one."""
    params = SamplingParams(n=n, max_tokens=max_tokens, logprobs=logprobs, prompt_logprobs=prompt_logprobs)
    entry = dict.fromkeys(range(1 + logprobs), Logprob(0.0))
    echoed = dict.fromkeys(range(1 + (prompt_logprobs or 0)), Logprob(0.0))
    outputs = [
        RequestOutput(
            "r",
            None,
            [],
            [CompletionOutput(i, "", [], logprobs=[entry] * max_tokens) for i in range(n)],
            True,
            prompt_logprobs=None if prompt_logprobs is None else [echoed] * length,
        )
        for length in lengths
    ]
    size = answer_size.answer_size(outputs) - n * len(lengths)  # less the choices themselves
    limits = Limits(vocab_size=10, max_model_len=100, block_size=16, num_blocks=10, max_num_seqs=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answer_size, "MAX_LOGPROB_ENTRIES", size)
        answer_size.check_answer_size(lengths, params, limits)
        patch.setattr(answer_size, "MAX_LOGPROB_ENTRIES", size - 1)
        with pytest.raises(ApiError):
            answer_size.check_answer_size(lengths, params, limits)


def test_a_streams_steps_do_not_go_through_the_prompt_again(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step of an echoed stream made every prompt token's entry anew: up to seconds, for all others too."""
    made = []
    real = output_processing.as_dict
    monkeypatch.setattr(output_processing, "as_dict", lambda *a: made.append(1) or real(*a))
    body = {"prompt": PROMPT * 10, "echo": True, "logprobs": 2, "max_tokens": 30, "stream": True, "ignore_eos": True}
    with server.client() as client:
        found = chunks(client.post("/v1/completions", json=body))
    tokens = [one for chunk in found for choice in chunk["choices"] for one in choice["logprobs"]["tokens"]]
    assert len(tokens) == 130 and len(made) == 129  # nothing predicts the first token


def test_cumulative_log_probabilities_are_the_sum(model: Path) -> None:
    llm = LLM(model, num_blocks=64)
    params = SamplingParams(max_tokens=40, logprobs=1, seed=3, ignore_eos=True, output_kind=RequestOutputKind.DELTA)
    llm.llm_engine.add_request("r", {"prompt_token_ids": PROMPT}, params)
    total = 0.0
    while llm.llm_engine.has_unfinished_requests():
        for output in llm.llm_engine.step():
            (one,) = output.outputs
            total = sum((next(iter(entry.values())).logprob for entry in one.logprobs or ()), total)
            assert one.cumulative_logprob == total
    assert total < 0


@pytest.mark.parametrize(("penalty", "status"), [(5e-324, 400), (1e-7, 400), (1e-6, 200), (100, 200)])
def test_a_penalty_that_makes_logits_infinite_is_the_clients_error(
    server: RunningServer, penalty: float, status: int
) -> None:
    with server.client() as client:
        answer = client.post("/v1/completions", json={"prompt": PROMPT, "repetition_penalty": penalty, "max_tokens": 4})
    assert answer.status_code == status, answer.text
