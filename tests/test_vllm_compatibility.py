"""Scripts for vLLM's offline API run when their import line is changed: the calls of its examples, its options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import make_tiny_model
from transformers import AutoModelForCausalLM

from pagedlab import (
    LLM,
    ConfigError,
    GenerationError,
    InvalidRequestError,
    LLMEngine,
    ModelError,
    SamplingParams,
    TextPrompt,
    TokensPrompt,
)
from pagedlab.config import EngineConfig
from pagedlab.interfaces.sampling_options import bad_word_ids
from pagedlab.interfaces.vllm_options import engine_config

PROMPTS = ["Hello, my name is", "The capital of France is", "The future of AI is"]


@pytest.fixture(scope="module")
def llm(default_model_path: Path) -> LLM:
    return LLM(num_blocks=200)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def greedy(max_tokens: int | None = 8, **options: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens, **options)


# ---- the examples of vLLM's repository (examples/offline_inference/basic): their calls and attributes ----------------


def test_generate_sets_fields_of_the_models_default_params(llm: LLM) -> None:
    sampling_params = llm.get_default_sampling_params()
    assert sampling_params == SamplingParams()  # the default model advises nothing
    sampling_params.max_tokens = 5
    sampling_params.temperature = 0
    outputs = llm.generate(PROMPTS, sampling_params)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [5, 5, 5]
    assert outputs[1].outputs[0].text.startswith(" Paris")


def test_chat_takes_one_conversation_or_many_and_a_template(llm: LLM) -> None:
    conversation = [
        {"role": "system", "content": "You are a helpful assistant"},
        {"role": "user", "content": "Hello"},
    ]
    alone = llm.chat(conversation, greedy(), use_tqdm=False)
    many = llm.chat([conversation] * 3, greedy(), use_tqdm=False)
    assert [output.outputs[0].token_ids for output in many] == [alone[0].outputs[0].token_ids] * 3
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ mood }}"
    options = {"chat_template": template, "chat_template_kwargs": {"mood": "Glad"}}
    other = llm.chat(conversation, greedy(), use_tqdm=False, **options)
    assert other[0].prompt == "system: You are a helpful assistant\nuser: Hello\nGlad"


def test_chat_goes_on_within_the_last_message_and_shows_tools(llm: LLM) -> None:
    begun = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "1, 2, 3,"}]
    output = llm.chat(begun, greedy(3), use_tqdm=False, add_generation_prompt=False, continue_final_message=True)[0]
    assert output.prompt is not None and output.prompt.endswith("1, 2, 3,")
    assert output.outputs[0].text == " 4,"
    with pytest.raises(InvalidRequestError, match="continue_final_message"):
        llm.chat(begun, greedy(3), use_tqdm=False, continue_final_message=True)
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    template = "{{ tools[0].function.name }}?"
    assert llm.chat(begun[:1], greedy(1), False, chat_template=template, tools=tools)[0].prompt == "weather?"


def test_embed_returns_lists_of_numbers(llm: LLM) -> None:
    outputs = llm.embed(PROMPTS, use_tqdm=False)
    for output, same in zip(outputs, llm.encode(PROMPTS, use_tqdm=False), strict=True):
        assert output.outputs.embedding == same.outputs.data.tolist()
        assert output.outputs.hidden_size == len(output.outputs.embedding) == 576
        assert sum(x * x for x in output.outputs.embedding) == pytest.approx(1)


def test_prompts_may_be_vllms_typed_dictionaries(llm: LLM) -> None:
    ids = llm.get_tokenizer().encode(PROMPTS[1])
    prompts = [TextPrompt(prompt=PROMPTS[1]), TokensPrompt(prompt_token_ids=ids)]
    first, second = llm.generate(prompts, greedy(), use_tqdm=False)
    assert first.outputs[0].token_ids == second.outputs[0].token_ids


def test_llm_takes_vllms_options(tiny: Path) -> None:
    small = LLM(
        model=str(tiny),
        tokenizer_mode="auto",
        skip_tokenizer_init=True,
        trust_remote_code=True,
        tensor_parallel_size=1,
        dtype=torch.float32,
        quantization=None,
        seed=None,
        gpu_memory_utilization=0.5,
        enforce_eager=True,
        enable_chunked_prefill=True,
        num_gpu_blocks_override=33,
        disable_log_stats=True,
        max_model_len=64,
    )
    assert small.stats().num_total_blocks == 32
    assert small.generate([[1, 2, 3]], greedy(2), use_tqdm=False)[0].outputs[0].token_ids


# ---- options of LLM ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tensor_parallel_size": 2}, "tensor_parallel_size must be 1, got 2: pagedlab runs on one device"),
        ({"quantization": "awq"}, "quantization must be None, got 'awq'"),
        ({"enable_chunked_prefill": False}, "enable_chunked_prefill must be True or None, got False"),
        ({"num_block": 5}, "There is no option 'num_block': do you mean 'num_blocks'?"),
        ({"xyzzy": 5}, r"There is no option 'xyzzy': help\(pagedlab.EngineConfig\)"),
        ({"num_blocks": 5, "num_gpu_blocks_override": 5}, "num_gpu_blocks_override is another name of num_blocks"),
        ({"dtype": "float8"}, "dtype must be one of"),
        ({"generation_config": "model"}, "generation_config must be one of auto, vllm"),
    ],
)
def test_what_pagedlab_does_not_have_is_refused_by_name(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        LLM(**options)


@pytest.mark.parametrize(
    ("dtype", "name"), [("half", "float16"), ("float", "float32"), (torch.bfloat16, "bfloat16"), ("auto", "auto")]
)
def test_a_number_type_may_have_vllms_name_or_be_torchs(dtype: Any, name: str) -> None:
    assert engine_config(None, {"dtype": dtype}).dtype == name


def test_every_field_of_engine_config_is_an_option() -> None:
    given = {name: getattr(EngineConfig(), name) for name in EngineConfig.__dataclass_fields__ if name != "model"}
    assert engine_config(None, given) == EngineConfig()


# ---- the model's own sampling defaults -----------------------------------------------------------------------------


def advise(model: Path, tmp_path: Path, advice: dict[str, Any]) -> Path:
    for file in model.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    (tmp_path / "generation_config.json").write_text(json.dumps(advice))
    return tmp_path


def test_generation_config_is_what_requests_without_params_get(tiny: Path, tmp_path: Path) -> None:
    advice = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "max_new_tokens": 7, "eos_token_id": 2}
    model = advise(tiny, tmp_path, advice)
    small = LLM(model, skip_tokenizer_init=True, num_blocks=40)
    expected = SamplingParams(temperature=0.6, top_k=20, top_p=0.95, max_tokens=7)
    assert small.get_default_sampling_params() == expected
    explicit, silent = (small.generate([[5, 6, 7]] * 20, params, use_tqdm=False) for params in (expected, None))
    assert all(len(output.outputs[0].token_ids) <= 7 for output in silent)
    assert any(len(output.outputs[0].token_ids) == 7 for output in explicit + silent)
    unread = LLM(model, skip_tokenizer_init=True, num_blocks=40, generation_config="vllm")
    assert unread.get_default_sampling_params() == SamplingParams()


@pytest.mark.parametrize("advice", [{"temperature": -1}, {"top_p": "0.9"}, {"max_new_tokens": 0}])
def test_advice_that_makes_no_sense_is_refused(tiny: Path, tmp_path: Path, advice: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"generation_config.json: .* pass generation_config='vllm'"):
        LLM(advise(tiny, tmp_path, advice), skip_tokenizer_init=True, num_blocks=40)


# ---- options of SamplingParams --------------------------------------------------------------------------------------


def test_bad_words_are_those_of_transformers(llm: LLM, default_model_path: Path) -> None:
    """Greedy, three times: each time the first word written is added to the words that must not be."""
    model = AutoModelForCausalLM.from_pretrained(default_model_path, dtype=torch.float32)
    tokenizer = llm.get_tokenizer()
    ids = torch.tensor([tokenizer.encode(PROMPTS[1])])
    words: list[str] = []
    for _ in range(3):
        output = llm.generate(PROMPTS[1], greedy(bad_words=words or None), use_tqdm=False)[0].outputs[0]
        banned = [list(tokens) for tokens in bad_word_ids(words, tokenizer)]
        options = {"max_new_tokens": 8, "do_sample": False, "bad_words_ids": banned or None}
        expected = model.generate(ids, **options)[0, ids.shape[1] :]
        assert output.token_ids == expected.tolist()
        assert not any(word in output.text.split() for word in words)
        words.append(output.text.split()[0].strip(".,"))
    assert len(set(words)) == 3


def test_a_bad_word_of_several_tokens_is_cut_at_its_last_one(llm: LLM) -> None:
    free = llm.generate(PROMPTS[1], greedy(), use_tqdm=False)[0].outputs[0]
    phrase = llm.get_tokenizer().decode(free.token_ids[:2]).strip()
    assert llm.get_tokenizer().encode(" " + phrase) == free.token_ids[:2]
    output = llm.generate(PROMPTS[1], greedy(bad_words=[phrase]), use_tqdm=False)[0].outputs[0]
    assert output.token_ids[0] == free.token_ids[0] and output.token_ids[1] != free.token_ids[1]
    several = llm.generate(PROMPTS[1], SamplingParams(n=4, seed=1, bad_words=[phrase]), use_tqdm=False)[0]
    assert all(phrase not in one.text for one in several.outputs)


def test_allowed_tokens_are_all_that_is_sampled(llm: LLM) -> None:
    allowed = llm.get_tokenizer().encode(" yes no")
    for params in (greedy(allowed_token_ids=allowed), SamplingParams(seed=2, allowed_token_ids=allowed)):
        output = llm.generate(PROMPTS, params, use_tqdm=False)
        assert {token for one in output for token in one.outputs[0].token_ids} <= set(allowed)
    with pytest.raises(InvalidRequestError, match="allowed_token_ids names token 99999999"):
        llm.generate(PROMPTS, greedy(allowed_token_ids=[1, 99_999_999]), use_tqdm=False)


def test_the_one_allowed_token_may_be_one_that_min_tokens_bans(llm: LLM) -> None:
    params = greedy(allowed_token_ids=[2], stop_token_ids=[2], min_tokens=2, ignore_eos=True)
    with pytest.raises(GenerationError, match="min_tokens"):
        llm.generate(PROMPTS[0], params, use_tqdm=False)
    assert llm.generate(PROMPTS[0], greedy(1), use_tqdm=False)[0].finished  # the engine goes on


def test_without_detokenize_there_are_token_ids_alone(llm: LLM) -> None:
    with_text = llm.generate(PROMPTS[1], greedy(logprobs=1, prompt_logprobs=1), use_tqdm=False)[0]
    params = greedy(logprobs=1, prompt_logprobs=1, detokenize=False)
    without = llm.generate(PROMPTS[1], params, use_tqdm=False)[0]
    assert without.outputs[0].token_ids == with_text.outputs[0].token_ids and without.outputs[0].text == ""
    entries = [*(without.outputs[0].logprobs or []), *(without.prompt_logprobs or [])[1:]]
    assert entries and all(one.decoded_token is None for entry in entries for one in (entry or {}).values())


@pytest.mark.parametrize("num_blocks", [5, 200])
def test_max_tokens_none_goes_on_to_the_end_of_the_room(tiny: Path, num_blocks: int) -> None:
    small = LLM(tiny, skip_tokenizer_init=True, num_blocks=num_blocks, max_model_len=100)
    output = small.generate([[5, 6, 7]], greedy(None, ignore_eos=True), use_tqdm=False)[0].outputs[0]
    room = min(100, 16 * (num_blocks - 1) + 1)
    assert len(output.token_ids) == room - 3 and output.finish_reason == "length"
    with pytest.raises(InvalidRequestError, match="maximum context length is 100"):
        small.generate([[5] * 100], greedy(None), use_tqdm=False)


def test_what_is_set_after_a_request_was_made_changes_nothing_for_it(tiny: Path) -> None:
    engine = LLMEngine(EngineConfig(model=tiny, skip_tokenizer_init=True, num_blocks=40))
    params = greedy(6, ignore_eos=True)
    engine.add_request("one", [5, 6, 7], params)
    params.max_tokens, params.temperature = 1, "hot"  # type: ignore[assignment]
    outputs: list[Any] = []
    while engine.has_unfinished_requests():
        outputs = engine.step() or outputs
    assert len(outputs[0].outputs[0].token_ids) == 6
    with pytest.raises(InvalidRequestError, match="temperature"):
        engine.add_request("two", [5, 6, 7], params)
    assert not engine.has_unfinished_requests()
