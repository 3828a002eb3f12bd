"""ModelConfig means what transformers' configs mean, and refuses what cannot run with a reason."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_models import (
    CONFIG_CLASSES,
    NAMES,
    ROPE_PARAMETERS,
    SHAPE,
    assert_same_logits,
    edit_config,
    load,
    make_tiny_model,
    random_tokens,
    sequence_logits,
)
from transformers import AutoModelForCausalLM
from transformers.generation import LogitsProcessor

from pagedlab.errors import ModelError
from pagedlab.model_authoring.models.config import ModelConfig
from pagedlab.model_authoring.models.loader import expected_tensors
from pagedlab.model_authoring.models.registry import ARCHITECTURES
from pagedlab.model_authoring.models.rope import rope_frequencies
from pagedlab.model_authoring.models.transformer import CausalLM


@pytest.mark.parametrize("architecture", CONFIG_CLASSES)
@pytest.mark.parametrize("tied", [False, True])
def test_config_reads_what_transformers_wrote(architecture: str, tied: bool, tmp_path: Path) -> None:
    path = make_tiny_model(tmp_path, architecture, tie_word_embeddings=tied, dtype=torch.bfloat16, head_dim=24)
    config, oracle = ModelConfig.from_directory(path), AutoModelForCausalLM.from_pretrained(path)
    for name in (*SHAPE, "rms_norm_eps", "tie_word_embeddings", "hidden_act"):
        if hasattr(config, name):
            assert getattr(config, name) == getattr(oracle.config, name), name
    assert config.architecture == NAMES[architecture]
    assert config.dtype == torch.bfloat16
    assert config.num_parameters == oracle.num_parameters()
    shapes = dict(expected_tensors(CausalLM(config)))
    assert shapes == {name: tensor.shape for name, tensor in load_file(path / "model.safetensors").items()}


@pytest.mark.parametrize("architecture", CONFIG_CLASSES)
def test_a_field_left_out_means_what_it_means_in_transformers(architecture: str) -> None:
    needed = {name: SHAPE[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
    needed["num_attention_heads"] = 32
    oracle = CONFIG_CLASSES[architecture](**needed)
    config = ModelConfig.from_dict({"architectures": [NAMES[architecture]], **needed})
    for name in ("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "hidden_act", "tie_word_embeddings"):
        assert getattr(config, name) == getattr(oracle, name), name
    assert config.head_dim == (getattr(oracle, "head_dim", None) or oracle.hidden_size // oracle.num_attention_heads)
    assert config.rope_parameters["rope_theta"] == oracle.rope_parameters["rope_theta"]
    window = oracle.sliding_window if architecture == "mistral" else None
    assert config.sliding_windows == (window,) * config.num_hidden_layers


@pytest.mark.parametrize("use_sliding_window", [False, True])
@pytest.mark.parametrize("max_window_layers", [0, 1, 2, 40, None])
@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_windows_without_layer_types_begin_where_transformers_begins_them(
    architecture: str, max_window_layers: int | None, use_sliding_window: bool
) -> None:
    fields = {**SHAPE, "num_hidden_layers": 30, "use_sliding_window": use_sliding_window, "sliding_window": 64}
    if max_window_layers is not None:
        fields["max_window_layers"] = max_window_layers
    types = CONFIG_CLASSES[architecture](**fields).layer_types
    config = ModelConfig.from_dict({"architectures": [NAMES[architecture]], **fields})
    assert config.sliding_windows == tuple(64 if kind == "sliding_attention" else None for kind in types)


def test_a_sliding_window_of_null_is_none_and_not_mistrals_default() -> None:
    fields = {**SHAPE, "architectures": ["MistralForCausalLM"]}
    assert ModelConfig.from_dict({**fields, "sliding_window": None}).sliding_windows == (None, None)
    assert ModelConfig.from_dict(fields).sliding_windows == (4096, 4096)


def test_a_config_of_transformers_4_gives_the_same_model(tmp_path: Path) -> None:
    path = make_tiny_model(tmp_path, rope_type="llama3")
    before = sequence_logits(load(path), random_tokens(40))
    scaling = ROPE_PARAMETERS["llama3"].copy()
    theta = scaling.pop("rope_theta")
    edit_config(path, rope_parameters=None, rope_theta=theta, rope_scaling=scaling, torch_dtype="float32", dtype=None)
    assert torch.equal(sequence_logits(load(path), random_tokens(40)), before)
    assert_same_logits(path)


def test_end_of_text_is_the_union_of_both_files(tmp_path: Path) -> None:
    path = make_tiny_model(tmp_path, eos_token_id=2)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 2]}))
    assert ModelConfig.from_directory(path).eos_token_ids == (2, 5)
    (path / "generation_config.json").unlink()
    assert ModelConfig.from_directory(path).eos_token_ids == (2,)
    edit_config(path, eos_token_id=None)
    assert ModelConfig.from_directory(path).eos_token_ids == ()


class Forced(LogitsProcessor):
    """Makes any model write these tokens."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = iter(tokens)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, next(self.tokens)] = 0
        return forced


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    ("in_config", "in_generation"), [("absent", None), ("absent", {}), (None, None), ("absent", {"eos_token_id": 7})]
)
def test_a_text_ends_where_transformers_ends_it(
    tmp_path: Path, architecture: str, in_config: Any, in_generation: Any
) -> None:
    """LlamaConfig's default of 2 ends nothing: transformers' generate() goes by what the files say."""
    path = make_tiny_model(tmp_path, architecture)
    edit_config(path, eos_token_id=in_config)
    fields = json.loads((path / "config.json").read_text())
    if in_config == "absent":
        del fields["eos_token_id"]
        (path / "config.json").write_text(json.dumps(fields))
    (path / "generation_config.json").unlink(missing_ok=True)
    if in_generation is not None:
        (path / "generation_config.json").write_text(json.dumps(in_generation))
    peer = AutoModelForCausalLM.from_pretrained(path)
    prompt = torch.tensor([[9, 9]])
    ends = set()
    for token in (2, 5, 7):
        forced: Any = [Forced([3, token, 3, 3])]
        options = {"max_new_tokens": 4, "pad_token_id": 0, "attention_mask": torch.ones_like(prompt)}
        if peer.generate(prompt, logits_processor=forced, **options).shape[1] == 4:
            ends.add(token)
    assert set(ModelConfig.from_directory(path).eos_token_ids) == ends


@given(
    st.sampled_from(["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim"]),
    st.integers(31, 70),
)
def test_a_size_that_is_no_models_is_a_sentence(name: str, bits: int) -> None:
    with pytest.raises(ModelError, match=f"{name} as an integer of at most|parameters, which no machine can hold"):
        ModelConfig.from_dict({**MINIMAL, name: 1 << bits})


@given(
    st.sampled_from(["default", "linear", "llama3", "yarn"]),
    st.dictionaries(
        st.sampled_from(["rope_theta", "factor", "beta_fast", "beta_slow", "attention_factor", "mscale_all_dim"]),
        st.sampled_from([1.0, 1, 2.0, 1 + 1e-16, 1e-320, 1e-30, 1e30, 1e308, 10**400]),
    ),
)
def test_rotary_numbers_give_finite_frequencies_or_a_sentence(rope_type: str, numbers: dict[str, float]) -> None:
    parameters = {"factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "mscale": 1.0, **numbers}
    try:
        config = ModelConfig.from_dict({**MINIMAL, "rope_parameters": {"rope_type": rope_type, **parameters}})
    except ModelError as error:
        assert "rope_type" in str(error) and "\n" not in str(error)
    else:
        frequencies, factor = rope_frequencies(config.head_dim, config.rope_parameters)
        assert frequencies.isfinite().all() and math.isfinite(factor)


def test_kv_bytes_of_a_13b_model_are_the_published_800_kilobytes() -> None:
    # Kwon et al., arXiv 2309.06180, section 3: 2 (key and value) x 5120 x 40 layers x 2 bytes.
    config = ModelConfig.from_dict(
        {"architectures": ["LlamaForCausalLM"], "vocab_size": 50272, "hidden_size": 5120, "intermediate_size": 20480,
         "num_hidden_layers": 40, "num_attention_heads": 40}
    )  # fmt: skip
    assert config.kv_bytes_per_token(torch.float16) == 800 * 1024


MINIMAL = {**SHAPE, "architectures": ["LlamaForCausalLM"]}
REFUSED_CONFIGS = [
    ({"architectures": ["GPT2LMHeadModel"]}, "names GPT2LMHeadModel.*" + ", ".join(ARCHITECTURES)),
    ({"architectures": None}, "names no architecture"),
    ({"architectures": "LlamaForCausalLM"}, "architectures as a list of names, got 'LlamaForCausalLM'"),
    ({"architectures": [5]}, r"architectures as a list of names, got \[5\]"),
    ({"rms_norm_eps": "small"}, "rms_norm_eps as a number of at least 0, got 'small'"),
    ({"rms_norm_eps": math.nan}, "rms_norm_eps as a number of at least 0, got nan"),
    ({"rms_norm_eps": 10**400}, "rms_norm_eps as a number of at least 0, got 1000"),
    ({"vocab_size": 2**62}, "vocab_size as an integer of at most 2147483647: download it again"),
    ({"vocab_size": 2**31 - 1, "hidden_size": 2**24}, "a model of [0-9]+ parameters, which no machine can hold"),
    (
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1.0}},
        "no frequencies for rope_type 'yarn': correct .*'rope_theta': 1.0",
    ),
    ({"eos_token_id": "</s>"}, "config.json must give eos_token_id as a token id or a list of them, got '</s>'"),
    ({"eos_token_id": [2, 0.5]}, r"eos_token_id as a token id or a list of them, got \[2, 0.5\]"),
    ({"quantization_config": {"bits": 4}}, "quantized"),
    ({"hidden_size": None}, "hidden_size as an integer of at least 1, got None"),
    ({"num_hidden_layers": 0}, "num_hidden_layers as an integer of at least 1, got 0"),
    ({"num_key_value_heads": 3}, "4 attention heads cannot share 3"),
    ({"hidden_act": "relu2"}, "hidden_act 'relu2' is unknown.*silu"),
    ({"dtype": "float64"}, "dtype 'float64' is unknown.*float32"),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic' is unknown.*yarn"),
    (
        {"architectures": ["Qwen2ForCausalLM"], "layer_types": ["sliding_attention", "full_attention"]},
        "set use_sliding_window and sliding_window",
    ),
    ({"architectures": ["Qwen3ForCausalLM"], "layer_types": ["full_attention"]}, "for each of 2 layers"),
    ({"architectures": ["Qwen3ForCausalLM"], "layer_types": 2}, "for each of 2 layers"),
    ({"architectures": ["Qwen3ForCausalLM"], "layer_types": [["full_attention"], 1]}, "for each of 2 layers"),
    (
        {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True, "max_window_layers": "all"},
        "max_window_layers as a number of layers, got 'all'",
    ),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED_CONFIGS, ids=lambda value: str(value)[:40])
def test_a_config_that_cannot_run_is_refused_with_a_reason(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ModelConfig.from_dict({**MINIMAL, **changes})


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), ("{", "not valid JSON"), ("[]", "object"), ("[" * 100_000, "not valid JSON")],
    ids=["missing", "cut off", "a list", "too deep"],
)
def test_an_unreadable_config_is_refused_with_a_reason(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=message):
        load(tmp_path)
