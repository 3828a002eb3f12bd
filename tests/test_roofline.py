"""FLOPs against PyTorch's FlopCounterMode on real transformers models, sizes against published ones, and properties."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, LlamaConfig, OPTConfig, Qwen2Config, Qwen3Config

from pagedlab.basics.kv_size import layout_of
from pagedlab.basics.published_configs import PUBLISHED
from pagedlab.bench.shapes import SHAPES
from pagedlab.errors import ConfigError
from pagedlab.simulate.devices import DEVICES, Device, device, measure_this_cpu
from pagedlab.simulate.roofline import (
    Chunk,
    ModelShape,
    activation_bytes_per_token,
    causal_pairs,
    decode,
    forward,
    inference_memory,
    prefill,
    square_pairs,
    training_memory,
    training_step,
)

few = settings(max_examples=40, deadline=None, derandomize=True)
LLAMA_7B = ModelShape.from_config(PUBLISHED["Llama-2-7B"])

TINY = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 100,
}


def tiny(config_class: type = LlamaConfig, **overrides):
    config = config_class(**{**TINY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **overrides})
    return config, AutoModelForCausalLM.from_config(config, attn_implementation="eager")


@pytest.fixture(scope="module")
def llama():
    config, model = tiny()
    return ModelShape.from_config(config.to_dict()), model


def random_ids(batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, TINY["vocab_size"], (batch, length))


# ---- sizes -------------------------------------------------------------------------------------------------------

# Parameters in the checkpoints, as the model pages on the Hugging Face hub give them (safetensors metadata).
PARAMETERS = {
    "GPT-2 small": 124_439_808,
    "Llama-2-7B": 6_738_415_616,
    "Llama-2-13B": 13_015_864_320,
    "Llama-2-70B": 68_976_648_192,
    "Mistral-7B": 7_241_732_096,
    "Llama-3-8B": 8_030_261_248,
    "Llama-3.1-70B": 70_553_706_496,
    "Qwen3-0.6B": 596_049_920,
    "SmolLM2-135M": 134_515_008,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_of_published_models(name):
    assert ModelShape.from_config(PUBLISHED[name]).num_parameters == PARAMETERS[name]


@pytest.mark.parametrize("name", sorted(set(PUBLISHED) - {"DeepSeek-V3"}))
def test_transformers_builds_the_same_number_of_parameters(name):
    """The whole model, on the device that allocates nothing."""
    fields = dict(PUBLISHED[name])
    fields.pop("position_rows", None)
    if name == "OPT-13B":
        fields |= {"ffn_dim": fields["intermediate_size"], "word_embed_proj_dim": fields["hidden_size"]}
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert ModelShape.from_config(PUBLISHED[name]).num_parameters == sum(p.numel() for p in model.parameters())


def test_the_default_model_is_the_published_one(default_model_path: Path):
    fields = AutoConfig.from_pretrained(default_model_path).to_dict()
    published = PUBLISHED["SmolLM2-135M"]
    assert {name: fields[name] for name in published if name in fields} == {
        name: value for name, value in published.items() if name in fields
    }
    assert ModelShape.from_config(fields) == ModelShape.from_config(published)


def test_shapes_of_the_benchmark_agree_with_the_published_ones():
    ours, bench = PUBLISHED["Qwen3-0.6B"], SHAPES["qwen3-0.6b"]
    assert {key: bench[key] for key in ours if key in bench} == {key: ours[key] for key in ours if key in bench}


@pytest.mark.parametrize("config_class", [Qwen2Config, Qwen3Config, LlamaConfig])
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_of_a_tiny_model_of_each_family(config_class, tied):
    # Qwen2 has no head_dim of its own.
    shape = {"num_attention_heads": 3, "head_dim": 16} if config_class is Qwen2Config else {}
    shape |= {"num_key_value_heads": 1} if config_class is Qwen2Config else {}
    config, model = tiny(config_class, tie_word_embeddings=tied, **shape)
    assert ModelShape.from_config(config.to_dict()).num_parameters == sum(p.numel() for p in model.parameters())


SMALL: Any = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 101}
WITH_IDS: Any = {"bos_token_id": 1, "eos_token_id": 2}


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SMALL, intermediate_size=96, num_key_value_heads=2, attention_bias=True),
        LlamaConfig(**SMALL, intermediate_size=96, mlp_bias=True),
        Qwen3Config(**SMALL, intermediate_size=96, num_key_value_heads=2, head_dim=16, attention_bias=True),
        OPTConfig(**SMALL, ffn_dim=96, word_embed_proj_dim=64),
        GPT2Config(n_embd=64, n_layer=3, n_head=4, vocab_size=101, **WITH_IDS),
        GPT2Config(n_embd=64, n_layer=3, n_head=4, n_inner=80, n_positions=99, vocab_size=101, **WITH_IDS),
    ],
    ids=["llama, attention bias", "llama, mlp bias", "qwen3, attention bias", "opt", "gpt2", "gpt2, n_inner"],
)
def test_biases_and_the_names_of_gpt2_and_opt_are_read_as_transformers_reads_them(config):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert ModelShape.from_config(config.to_dict()).num_parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", sorted(set(PUBLISHED) - {"DeepSeek-V3"}))
def test_kv_bytes_are_those_of_the_layout(name):
    layout = layout_of(PUBLISHED[name])
    assert ModelShape.from_config(PUBLISHED[name]).kv_bytes_per_token() == layout.bytes_per_token()


def test_kv_bytes_of_deepseek_v3():
    # arXiv 2412.19437: 61 layers keep 512 + 64 numbers a token.
    assert layout_of(PUBLISHED["DeepSeek-V3"]).bytes_per_token() == 61 * 576 * 2


# ---- FLOPs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 17), (3, 24)])
def test_prefill_counts_what_pytorch_counts(llama, batch, length):
    shape, model = llama
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=random_ids(batch, length), logits_to_keep=1)
    assert prefill(shape, length, batch, pairs=square_pairs).flops == counter.get_total_flops()


@pytest.mark.parametrize(("batch", "context"), [(1, 1), (1, 20), (4, 9)])
def test_decode_with_a_cache_counts_what_pytorch_counts(llama, batch, context):
    shape, model = llama
    with torch.no_grad():
        cache = model(input_ids=random_ids(batch, context), use_cache=True).past_key_values
        with FlopCounterMode(display=False) as counter:
            model(input_ids=random_ids(batch, 1), past_key_values=cache, use_cache=True)
    # A decode has one query: the causal mask hides nothing, so both ways of counting are the same.
    assert decode(shape, context, batch).flops == counter.get_total_flops()
    assert decode(shape, context, batch, pairs=square_pairs).flops == counter.get_total_flops()


def test_a_chunk_behind_a_cache_counts_what_pytorch_counts(llama):
    shape, model = llama
    with torch.no_grad():
        cache = model(input_ids=random_ids(1, 11), use_cache=True).past_key_values
        with FlopCounterMode(display=False) as counter:
            model(input_ids=random_ids(1, 5), past_key_values=cache, use_cache=True, logits_to_keep=1)
    assert forward(shape, [Chunk(5, 11)], pairs=square_pairs).flops == counter.get_total_flops()


@pytest.mark.parametrize(("batch", "length"), [(1, 16), (3, 10)])
def test_a_training_step_counts_what_pytorch_counts(llama, batch, length):
    shape, model = llama
    ids = random_ids(batch, length)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    work = training_step(shape, length, batch, pairs=square_pairs)
    assert work.flops == counter.get_total_flops()
    assert work.flops == 3 * prefill(shape, length, batch, logit_rows=batch * length, pairs=square_pairs).flops


@pytest.mark.parametrize("config_class", [GPT2Config, OPTConfig])
def test_models_with_two_mlp_matrices_count_what_pytorch_counts(config_class):
    fields = {"vocab_size": 100, "max_position_embeddings": 64, "num_hidden_layers": 2, "num_attention_heads": 3}
    fields |= {"hidden_size": 48, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    fields |= {"ffn_dim": 96, "word_embed_proj_dim": 48} if config_class is OPTConfig else {"n_inner": 96}
    model = AutoModelForCausalLM.from_config(config_class(**fields), attn_implementation="eager")
    rows = 66 if config_class is OPTConfig else 64
    kind = {"model_type": config_class.model_type, "intermediate_size": 96, "position_rows": rows}
    shape = ModelShape.from_config({**fields, **kind, "tie_word_embeddings": True})
    assert shape.num_parameters == sum(p.numel() for p in model.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=random_ids(2, 12), logits_to_keep=1)
    assert prefill(shape, 12, 2, pairs=square_pairs).flops == counter.get_total_flops()


chunks = st.builds(Chunk, st.integers(1, 60), st.integers(0, 80))


@few
@given(chunk=chunks)
def test_causal_pairs_are_the_true_entries_of_the_mask(chunk):
    brute = sum(1 for q in range(chunk.new) for k in range(chunk.past + chunk.new) if k <= chunk.past + q)
    assert causal_pairs(chunk) == brute
    assert square_pairs(chunk) == chunk.new * (chunk.past + chunk.new)


@few
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=5), past=st.integers(0, 60))
def test_chunks_of_a_prompt_do_the_work_of_the_whole(lengths, past):
    whole = forward(LLAMA_7B, [Chunk(sum(lengths), past)], logit_rows=1)
    parts, start = [], past
    for length in lengths:
        parts.append(forward(LLAMA_7B, [Chunk(length, start)], logit_rows=0))
        start += length
    head = 2 * LLAMA_7B.head_matrix
    assert sum(part.attention_flops for part in parts) == whole.attention_flops
    assert sum(part.linear_flops for part in parts) + head == whole.linear_flops
    assert sum(part.bytes for part in parts) >= whole.bytes  # each chunk reads the weights and the past again


@few
@given(mix=st.lists(chunks, min_size=1, max_size=6))
def test_a_mixed_batch_shares_the_weights_and_nothing_else(mix):
    together, alone = forward(LLAMA_7B, mix), [forward(LLAMA_7B, [chunk]) for chunk in mix]
    assert together.flops == sum(work.flops for work in alone)
    assert together.cache_bytes == sum(work.cache_bytes for work in alone)
    assert together.weight_bytes < sum(work.weight_bytes for work in alone) or len(mix) == 1
    assert together.intensity >= min(work.intensity for work in alone)


# ---- bytes, memory, time -----------------------------------------------------------------------------------------


def test_bytes_of_a_decode_step_by_hand():
    read_twice = decode(LLAMA_7B, 1000)
    embedding = 32000 * 4096
    # Every weight but the embedding table, of which one row is looked up; 1,001 tokens of 512 KiB of keys and values.
    assert read_twice.weight_bytes == 2 * (6_738_415_616 - embedding + 4096)
    assert read_twice.cache_bytes == 1001 * 524_288
    assert decode(LLAMA_7B, 1000, 8).weight_bytes == 2 * (6_738_415_616 - embedding + 8 * 4096)


def test_a_tied_embedding_is_read_once_as_the_head():
    shape = ModelShape.from_config(PUBLISHED["SmolLM2-135M"])
    assert decode(shape, 10, bytes_per_element=4).weight_bytes == 4 * 134_515_008


def test_training_keeps_16_bytes_a_parameter():
    # Rajbhandari et al. 2020, section 3.1: a model of 1.5 B parameters needs at least 24 GB.
    memory = training_memory(LLAMA_7B, 1)
    assert sum(memory.values()) - memory["activations"] == 16 * 6_738_415_616
    assert inference_memory(LLAMA_7B, 1000, 4) == {"weights": 13_476_831_232, "KV cache": 4000 * 524_288}


def test_activations_are_of_the_size_that_autograd_saves():
    """Not less than the model keeps: unfused code saves more, so it is a lower bound, and not a distant one."""
    config, model = tiny(hidden_size=96, intermediate_size=256, num_hidden_layers=4, vocab_size=50, head_dim=16)
    length = 32
    ids = torch.randint(0, 50, (2, length))
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, int] = {}

    def note(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in weights and x.is_floating_point():
            saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    assert loss.requires_grad
    shape = ModelShape.from_config(config.to_dict())
    # Eager attention keeps the scores' softmax too, which fused attention does not.
    scores = 4 * config.num_hidden_layers * config.num_attention_heads * ids.shape[0] * length**2
    counted = ids.numel() * activation_bytes_per_token(shape, bytes_per_element=4)
    assert counted <= sum(saved.values()) <= 2.5 * (counted + scores)


def test_ridges_of_published_devices():
    ridges = {name: round(one.ridge, 1) for name, one in DEVICES.items()}
    assert ridges == {"RTX 4090": 163.9, "A100 40GB": 200.6, "A100 80GB": 153.0, "H100": 295.2, "H200": 206.0}
    assert all(one.source for one in DEVICES.values())


def test_time_is_the_longer_of_arithmetic_and_traffic():
    one = Device("one", 100.0, 10.0, 1, "made up")
    assert one.ridge == 10
    assert one.seconds(1000, 10) == 10 and one.seconds(10, 1000) == 100
    assert [one.attainable(x) for x in (1, 10, 50)] == [10, 100, 100]


@few
@given(flops=st.floats(1, 1e15), num_bytes=st.floats(1, 1e12))
def test_attainable_rate_times_floor_is_the_work(flops, num_bytes):
    for one in DEVICES.values():
        rate = one.attainable(flops / num_bytes)
        assert math.isclose(rate * one.seconds(flops, num_bytes), flops, rel_tol=1e-9)


def test_decode_is_under_the_memory_roof_and_a_long_prompt_under_the_other():
    card = device("RTX 4090")
    assert decode(LLAMA_7B, 500).bound_by(card) == "memory"
    assert prefill(LLAMA_7B, 100).bound_by(card) == "memory"
    assert prefill(LLAMA_7B, 1000).bound_by(card) == "compute"
    assert prefill(LLAMA_7B, 100).seconds(card) == pytest.approx(13.2e-3, rel=0.01)


def test_this_cpu_can_be_measured():
    threads = torch.get_num_threads()
    measured = measure_this_cpu(repeats=1)
    assert torch.get_num_threads() == threads
    assert 1e8 < measured.flops_per_second < 1e14 and 1e7 < measured.bytes_per_second < 1e13
    assert measured.ridge > 0 and "measured" in measured.source


# ---- refusals ----------------------------------------------------------------------------------------------------


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(ConfigError, match="dense models"):
        ModelShape.from_config(PUBLISHED["DeepSeek-V3"])
    with pytest.raises(ConfigError, match="intermediate_size"):
        ModelShape.from_config({"num_attention_heads": 4, "hidden_size": 64})
    with pytest.raises(ConfigError, match="narrow embedding"):
        ModelShape.from_config(OPTConfig(**SMALL, ffn_dim=96, word_embed_proj_dim=32).to_dict())
    with pytest.raises(ConfigError, match="at least one chunk"):
        forward(LLAMA_7B, [])
    with pytest.raises(ConfigError, match="1 token or more"):
        Chunk(0)
    with pytest.raises(ConfigError, match="RTX 4090"):
        device("RTX 9999")
    with pytest.raises(ConfigError, match="above 0"):
        Device("broken", 0, 1, 1, "")
