"""The public API with text, on the default model: vLLM's names, streaming, stop strings, chat, failures."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import make_tiny_model

from pagedlab import LLM, EngineConfig, InvalidRequestError, LLMEngine, ModelError, RequestOutput, SamplingParams
from pagedlab.errors import BackendError, ConfigError
from pagedlab.sampling_params import RequestOutputKind


@pytest.fixture(scope="module")
def llm(default_model_path: Path) -> LLM:
    return LLM(num_blocks=200)


def greedy(max_tokens: int = 12, **options: object) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens, **options)  # type: ignore[arg-type]


def test_vllms_basic_offline_example_runs_with_its_import_changed(llm: LLM) -> None:
    """The calls and attributes of vLLM's examples/offline_inference/basic."""
    prompts = ["Hello, my name is", "The president of the United States is", "The capital of France is"]
    sampling_params = SamplingParams(temperature=0.8, top_p=0.95)
    outputs = llm.generate(prompts, sampling_params)
    for prompt, output in zip(prompts, outputs, strict=True):
        assert output.prompt == prompt
        assert isinstance(output.outputs[0].text, str) and output.outputs[0].text
        assert output.finished and len(output.outputs[0].token_ids) <= 16


def test_a_prompt_may_be_text_ids_or_vllms_dictionaries(llm: LLM) -> None:
    text = "The capital of France is"
    ids = llm.get_tokenizer().encode(text)
    forms = [text, ids, {"prompt": text}, {"prompt_token_ids": ids}]
    one_by_one = [llm.generate(form, greedy(), use_tqdm=False)[0] for form in forms]
    together = llm.generate(forms, greedy(), use_tqdm=False)
    assert len({output.outputs[0].text for output in one_by_one + together}) == 1
    assert all(output.prompt_token_ids == ids for output in together)
    assert " Paris" in together[0].outputs[0].text


def test_streamed_pieces_add_up_to_the_text_of_generate(llm: LLM) -> None:
    for prompt in ("Write an emoji: 🙂 and", "1, 2, 3,", "北京是中国的"):
        params = SamplingParams(temperature=1.0, seed=3, max_tokens=24)
        whole = llm.generate([prompt], params, use_tqdm=False)[0].outputs[0].text
        assert "".join(llm.stream(prompt, params)) == whole


def test_a_stream_that_is_closed_early_frees_its_blocks(llm: LLM) -> None:
    stream = llm.stream("Once upon a time", greedy(100))
    next(stream)
    stream.close()
    stats = llm.stats()
    assert stats.num_running == stats.num_waiting == 0 and stats.num_free_blocks == stats.num_total_blocks


def test_a_stop_string_that_straddles_tokens_ends_the_text_before_it(llm: LLM) -> None:
    full = llm.generate(["The capital of France is"], greedy(12), use_tqdm=False)[0].outputs[0].text
    stop = full[3:9]  # starts and ends inside tokens
    assert len(llm.get_tokenizer().encode(stop)) > 1
    for include in (False, True):
        params = greedy(12, stop=["never", stop], include_stop_str_in_output=include)
        completion = llm.generate(["The capital of France is"], params, use_tqdm=False)[0].outputs[0]
        cut = full.index(stop) + (len(stop) if include else 0)
        assert completion.text == full[:cut]
        assert (completion.finish_reason, completion.stop_reason) == ("stop", stop)
        assert "".join(llm.stream("The capital of France is", params)) == completion.text
    stats = llm.stats()
    assert stats.num_free_blocks == stats.num_total_blocks


def test_a_stop_token_ends_the_text_and_is_no_part_of_it(llm: LLM) -> None:
    free = llm.generate(["The capital of France is"], greedy(6), use_tqdm=False)[0].outputs[0]
    stop = free.token_ids[1]
    params = greedy(6, stop_token_ids=[stop])
    completion = llm.generate(["The capital of France is"], params, use_tqdm=False)[0].outputs[0]
    assert completion.token_ids == free.token_ids[:2]
    assert completion.text == llm.get_tokenizer().decode(free.token_ids[:1])
    assert (completion.finish_reason, completion.stop_reason) == ("stop", stop)


def test_chat_uses_the_models_template_and_ends_at_its_end_of_turn(llm: LLM) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    output = llm.chat(messages, greedy(40), use_tqdm=False)[0]
    expected = llm.get_tokenizer().apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert output.prompt_token_ids == list(expected)
    assert "Paris" in output.outputs[0].text and "<|im_end|>" not in output.outputs[0].text
    assert output.outputs[0].finish_reason == "stop" and output.outputs[0].stop_reason is None
    many = llm.chat([messages, messages], greedy(40), use_tqdm=False)
    assert [o.outputs[0].text for o in many] == [output.outputs[0].text] * 2


def test_n_completions_of_one_prompt_differ_and_repeat_with_the_seed(llm: LLM) -> None:
    params = SamplingParams(n=4, temperature=1.0, seed=11, max_tokens=10, logprobs=1)
    first, second = (llm.generate(["Once upon a time"], params, use_tqdm=False)[0] for _ in range(2))
    texts = [completion.text for completion in first.outputs]
    assert [c.index for c in first.outputs] == [0, 1, 2, 3] and len(set(texts)) > 1
    assert texts == [completion.text for completion in second.outputs]
    for completion in first.outputs:
        assert completion.logprobs is not None and completion.cumulative_logprob is not None
        chosen = [entry[token].logprob for token, entry in zip(completion.token_ids, completion.logprobs, strict=True)]
        assert completion.cumulative_logprob == pytest.approx(sum(chosen))


def test_engine_outputs_are_cumulative_delta_or_final_as_asked(default_model_path: Path) -> None:
    engine = LLMEngine(EngineConfig(num_blocks=100, enable_trace=True))
    for kind in RequestOutputKind:
        engine.add_request(kind.name, "The capital of France is", greedy(8, output_kind=kind))
    seen: dict[str, list[RequestOutput]] = {kind.name: [] for kind in RequestOutputKind}
    while engine.has_unfinished_requests():
        for output in engine.step():
            assert isinstance(output, RequestOutput)
            seen[output.request_id].append(output)
    final = seen["FINAL_ONLY"][0].outputs[0]
    assert len(seen["FINAL_ONLY"]) == 1 and len(seen["CUMULATIVE"]) == 8
    assert seen["CUMULATIVE"][-1].outputs[0].text == final.text
    assert "".join(output.outputs[0].text for output in seen["DELTA"]) == final.text
    assert [t for output in seen["DELTA"] for t in output.outputs[0].token_ids] == final.token_ids
    names = [event.name for event in engine.tracer.of_request("DELTA")]
    assert names[0] == "add_request" and names[-2:] == ["finish", "output"]
    rows = engine.tracer.chrome_trace()["traceEvents"]
    assert {row["ph"] for row in rows} == {"M", "X", "i"} and any(row["name"] == "forward" for row in rows)


def test_a_refused_prompt_among_many_leaves_nothing_behind(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="empty"):
        llm.generate(["fine", [], "fine too"], greedy(), use_tqdm=False)
    assert llm.stats().num_waiting == 0
    with pytest.raises(InvalidRequestError, match="2 prompts and 3 parameters"):
        llm.generate(["a", "b"], [greedy()] * 3, use_tqdm=False)
    assert llm.generate(["fine"], greedy(2), use_tqdm=False)[0].finished


def test_an_interrupt_leaves_the_engine_empty_and_usable(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = llm.llm_engine
    step, calls = engine.step, []

    def interrupted() -> list:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step()

    with monkeypatch.context() as patch:
        patch.setattr(engine, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(["Once upon a time"] * 3, greedy(30), use_tqdm=False)
    stats = llm.stats()
    assert stats.num_running == stats.num_waiting == 0 and stats.num_free_blocks == stats.num_total_blocks
    assert llm.generate(["fine"], greedy(2), use_tqdm=False)[0].finished


def test_no_prompts_give_no_outputs(llm: LLM) -> None:
    assert llm.generate([], greedy()) == []


def test_messages_that_are_no_messages_are_refused(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="role"):
        llm.chat([{"text": "hello"}], greedy())


def test_a_model_without_chat_template_refuses_chat(tmp_path: Path) -> None:
    base = LLM(make_tiny_model(tmp_path), skip_tokenizer_init=True, num_blocks=10)
    with pytest.raises(InvalidRequestError, match="no chat template"):
        base.chat([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"model": "/nowhere/at/all"}, ModelError, "nowhere"),
        ({"dtype": "float8"}, ConfigError, "dtype must be one of"),
        ({"device": "cuda"}, ConfigError, "no CUDA GPU"),
        ({"device": "tpu"}, ConfigError, "device must be"),
        ({"block_size": 0}, ConfigError, "block_size"),
        ({"num_blocks": 1}, ConfigError, "num_blocks"),
        ({"scheduling_policy": "lifo"}, ConfigError, "fcfs, priority, sjf"),
        ({"attention_backend": "flash"}, ConfigError, "attention_backend"),
        ({"attention_backend": "triton"}, (ConfigError, BackendError), "."),
        ({"max_model_len": 10**6}, ConfigError, "max_model_len"),
        ({"kv_cache_memory": 1000}, ConfigError, "kv_cache_memory"),
        ({"swap_space": -1.0}, ConfigError, "swap_space"),
        ({"num_blocks": 10**9}, ConfigError, "num_blocks"),
    ],
)
def test_an_engine_that_cannot_be_built_says_what_to_change(
    default_model_path: Path, options: dict, error: type[Exception], words: str
) -> None:
    import torch

    if options.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(error, match=words) as caught:
        LLM(skip_tokenizer_init=True, **options)
    assert "\n" not in str(caught.value)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(ConfigError, match="There is no option 'blok_size': do you mean 'block_size'"):
        LLM(blok_size=16)


def test_dummy_weights_need_a_config_alone(tmp_path: Path) -> None:
    path = make_tiny_model(tmp_path)
    (path / "model.safetensors").unlink()
    outputs = [
        LLM(path, load_format="dummy", skip_tokenizer_init=True, num_blocks=20, seed=seed)
        .generate([[1, 2, 3]], greedy(8, ignore_eos=True), use_tqdm=False)[0]
        .outputs[0]
        .token_ids
        for seed in (1, 1, 2)
    ]
    assert outputs[0] == outputs[1] and len(outputs[0]) == 8


def test_a_learners_function_can_be_the_attention(tmp_path: Path) -> None:
    import torch

    def attention(query, key_cache, value_cache, block_tables, query_starts, seq_lens, *, scale, sliding_window):  # type: ignore[no-untyped-def]
        output = torch.empty_like(query)
        group = query.shape[1] // key_cache.shape[2]
        for i, length in enumerate(seq_lens.tolist()):
            start, end = query_starts[i], query_starts[i + 1]
            keys = key_cache[block_tables[i].long()].flatten(0, 1)[:length].repeat_interleave(group, 1)
            values = value_cache[block_tables[i].long()].flatten(0, 1)[:length].repeat_interleave(group, 1)
            scores = torch.einsum("qhd,khd->hqk", query[start:end], keys) * scale
            rows = torch.arange(length - (end - start), length)
            scores.masked_fill_(torch.arange(length) > rows[:, None], float("-inf"))
            output[start:end] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)
        return output

    path = make_tiny_model(tmp_path)
    prompts = [[1, 2, 3, 4, 5] * 4, [7, 8, 9]]
    params = greedy(10, ignore_eos=True)
    options = {"skip_tokenizer_init": True, "num_blocks": 40}
    mine = LLM(path, attention_backend=attention, **options).generate(prompts, params, use_tqdm=False)
    theirs = LLM(path, attention_backend="reference", **options).generate(prompts, params, use_tqdm=False)
    assert [o.outputs[0].token_ids for o in mine] == [o.outputs[0].token_ids for o in theirs]
