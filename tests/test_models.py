"""Our decoder against transformers on random checkpoints: all four architectures, all options; and every refusal."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from safetensors.torch import load_file, save_file
from tiny_models import (
    CONFIG_CLASSES,
    ROPE_PARAMETERS,
    SHAPE,
    dense_attention,
    edit_config,
    load_oracle,
    make_tiny_model,
    oracle_logits,
)
from torch import Tensor
from transformers import AutoModelForCausalLM

from pagedlab.basics import masks
from pagedlab.basics.attention import attention
from pagedlab.errors import ConfigError, ModelError
from pagedlab.model_authoring.models import loader
from pagedlab.model_authoring.models.checkpoint import Checkpoint
from pagedlab.model_authoring.models.config import ModelConfig
from pagedlab.model_authoring.models.layers import Linear
from pagedlab.model_authoring.models.loader import expected_tensors, load_model
from pagedlab.model_authoring.models.packing import packing_works
from pagedlab.model_authoring.models.registry import ARCHITECTURES
from pagedlab.model_authoring.models.transformer import CausalLM

NAMES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def load(path: Path, dtype: torch.dtype = torch.float32, **options: Any) -> CausalLM:
    return load_model(path, dtype=dtype, device="cpu", **options)


@torch.inference_mode()
def sequence_logits(model: CausalLM, token_ids: Tensor) -> Tensor:
    return model.compute_logits(model(token_ids, torch.arange(len(token_ids)), dense_attention))


def random_tokens(length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, SHAPE["vocab_size"], (length,), generator=torch.Generator().manual_seed(seed))


def assert_same_logits(path: Path, length: int = 40, **options: Any) -> None:
    tokens = random_tokens(length)
    torch.testing.assert_close(
        sequence_logits(load(path, **options), tokens), oracle_logits(path, tokens), rtol=0, atol=1e-4
    )


@st.composite
def tiny_options(draw: st.DrawFn) -> dict[str, Any]:
    architecture = draw(st.sampled_from(sorted(CONFIG_CLASSES)))
    kv_heads = draw(st.sampled_from([1, 2, 3]))
    heads = kv_heads * draw(st.sampled_from([1, 2, 3, 5]))
    options: dict[str, Any] = {
        "architecture": architecture,
        "seed": draw(st.integers(0, 99)),
        "std": 0.2,  # not more: sharp softmaxes would magnify the last bit of float32 beyond 1e-4
        "rope_type": draw(st.sampled_from(sorted(ROPE_PARAMETERS))),
        "num_key_value_heads": kv_heads,
        "num_attention_heads": heads,
        "head_dim": draw(st.sampled_from([2, 8, 10, 32])),
        "hidden_size": heads * draw(st.sampled_from([4, 7])),
        "intermediate_size": draw(st.sampled_from([30, 64])),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "tie_word_embeddings": draw(st.booleans()),
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-5])),
        "hidden_act": draw(st.sampled_from(["silu", "silu", "gelu", "gelu_pytorch_tanh"])),
        "dtype": draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16])),
        "max_shard_size": draw(st.sampled_from([10_000, "5GB"])),
    }
    if architecture in ("llama", "qwen3"):
        options["attention_bias"] = draw(st.booleans())
    if architecture == "llama":
        options["mlp_bias"] = draw(st.booleans())
    if architecture != "llama" and draw(st.booleans()):
        options["sliding_window"] = draw(st.integers(1, 20))
    if architecture.startswith("qwen") and "sliding_window" in options:
        options["use_sliding_window"] = True
        options["max_window_layers"] = draw(st.integers(0, 2))
    return options


@settings(derandomize=True, deadline=None, max_examples=60)
@given(options=tiny_options(), length=st.integers(1, 60))
def test_float32_logits_are_those_of_transformers(options: dict[str, Any], length: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        assert_same_logits(make_tiny_model(directory, **options), length)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("architecture", CONFIG_CLASSES)
def test_16_bit_logits_are_no_further_from_float32_than_those_of_transformers(
    architecture: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    path = make_tiny_model(tmp_path, architecture, dtype=dtype, rope_type="yarn")
    tokens = random_tokens(60)
    exact = oracle_logits(path, tokens)
    with torch.no_grad():
        theirs = load_oracle(path, dtype=dtype).forward(tokens[None]).logits[0].float()
    ours = sequence_logits(load(path, dtype), tokens)
    assert ours.dtype == torch.float32
    # Both are noise of the same size; a missing float32 step (norm, angles) costs far more than half as much again.
    assert (ours - exact).norm() < 1.5 * (theirs - exact).norm()


@pytest.mark.parametrize("length", [1, 109])
def test_logits_of_the_default_model_are_those_of_transformers(length: int, default_model_path: Path) -> None:
    from transformers import AutoTokenizer

    text = "In physics, a black hole is a region of space where gravity is so strong that nothing can escape. " * 6
    tokens = torch.tensor(AutoTokenizer.from_pretrained(default_model_path)(text).input_ids[:length])
    ours, theirs = sequence_logits(load(default_model_path), tokens), oracle_logits(default_model_path, tokens)
    # Logits reach 35 here, and transformers' own are up to 2e-4 from its float64 ones: hence 1e-5 of their size too.
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("architecture", ["mistral", "qwen3"])
def test_a_sequence_fed_in_chunks_gives_the_logits_of_the_whole(architecture: str, tmp_path: Path) -> None:
    qwen_only = {"use_sliding_window": True, "max_window_layers": 1} if architecture == "qwen3" else {}
    options: dict[str, Any] = {"sliding_window": 7, **qwen_only}
    path = make_tiny_model(tmp_path, architecture, **options)
    model, tokens = load(path), random_tokens(30)
    cache: dict[int, tuple[Tensor, Tensor]] = {}

    def cached(layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, sliding_window: int | None):  # type: ignore[no-untyped-def]
        if layer in cache:
            key, value = (torch.cat(pair) for pair in zip(cache[layer], (key, value), strict=True))
        cache[layer] = key, value
        mask = masks.sliding_window(len(key) - len(query), len(query), sliding_window or len(key))
        return attention(query, key, value, mask, scale)

    with torch.inference_mode():
        pieces = [
            model.compute_logits(model(tokens[start:stop], torch.arange(start, stop), cached))
            for start, stop in [(0, 11), (11, 12), (12, 13), (13, 30)]
        ]
    torch.testing.assert_close(torch.cat(pieces), oracle_logits(path, tokens), rtol=0, atol=1e-4)


def test_rows_of_different_sequences_do_not_touch_each_other(tmp_path: Path) -> None:
    model = load(make_tiny_model(tmp_path, "qwen2"))
    lengths = [5, 1, 9]
    tokens = random_tokens(15)

    def apart(layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, sliding_window: int | None):  # type: ignore[no-untyped-def]
        return attention(query, key, value, masks.block_diagonal(lengths) & masks.causal(15), scale)

    positions = torch.cat([torch.arange(length) for length in lengths])
    with torch.inference_mode():
        together = model.compute_logits(model(tokens, positions, apart))
    alone = torch.cat([sequence_logits(model, piece) for piece in tokens.split(lengths)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)


def test_attention_is_asked_once_a_layer_with_that_layers_window(tmp_path: Path) -> None:
    path = make_tiny_model(
        tmp_path, "qwen3", head_dim=10, num_attention_heads=6, num_hidden_layers=3, hidden_size=30,
        use_sliding_window=True, sliding_window=5,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )  # fmt: skip
    calls = []

    def record(layer: int, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        calls.append((layer, query.shape, key.shape, value.shape, options))
        return query

    load(path)(random_tokens(4), torch.arange(4), record)
    shapes = ((4, 6, 10), (4, 2, 10), (4, 2, 10))
    assert calls == [
        (layer, *shapes, {"scale": 10**-0.5, "sliding_window": window}) for layer, window in enumerate([5, None, 5])
    ]
    assert ModelConfig.from_directory(path).sliding_windows == (5, None, 5)
    assert_same_logits(path)


# Configs


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
]


@pytest.mark.parametrize(("changes", "message"), REFUSED_CONFIGS, ids=lambda value: str(value)[:40])
def test_a_config_that_cannot_run_is_refused_with_a_reason(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ModelConfig.from_dict({**MINIMAL, **changes})


@pytest.mark.parametrize(("content", "message"), [(None, "cannot be read"), ("{", "not valid JSON"), ("[]", "object")])
def test_an_unreadable_config_is_refused_with_a_reason(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=message):
        load(tmp_path)


# Weights


def rewrite(path: Path, change: Any) -> Path:
    """Change the tensors of a one-file checkpoint in place."""
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def test_sharded_weights_are_read_like_whole_ones(tmp_path: Path) -> None:
    whole = make_tiny_model(tmp_path / "whole", "qwen3")
    shards = make_tiny_model(tmp_path / "shards", "qwen3", max_shard_size=20_000)
    assert len(list(shards.glob("*.safetensors"))) > 3
    tokens = random_tokens(20)
    assert torch.equal(sequence_logits(load(whole), tokens), sequence_logits(load(shards), tokens))


def test_files_without_an_index_and_mistrals_second_copy(tmp_path: Path) -> None:
    path = make_tiny_model(tmp_path, "mistral")
    (path / "model.safetensors").rename(path / "weights.safetensors")
    save_file({"tok_embeddings.weight": torch.zeros(2, 2)}, path / "consolidated.safetensors")
    sequence_logits(load(path), random_tokens(3))


def only_the_head(tensors: dict[str, Tensor]) -> None:
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")


def both_and_equal(tensors: dict[str, Tensor]) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()


def both_and_different(tensors: dict[str, Tensor]) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].flip(0).contiguous()


def with_frequencies(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)


@pytest.mark.parametrize("change", [only_the_head, both_and_equal, both_and_different, with_frequencies])
def test_unusual_but_readable_checkpoints_are_read_as_transformers_reads_them(change: Any, tmp_path: Path) -> None:
    assert_same_logits(rewrite(make_tiny_model(tmp_path, tie_word_embeddings=True), change))


def drop(tensors: dict[str, Tensor]) -> None:
    del tensors["model.layers.1.self_attn.k_proj.weight"]


def extra(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.0.self_attn.q_norm.weight"] = torch.ones(16)


def reshape(tensors: dict[str, Tensor]) -> None:
    tensors["model.norm.weight"] = torch.ones(32)


def integers(tensors: dict[str, Tensor]) -> None:
    tensors["model.norm.weight"] = torch.ones(64, dtype=torch.int8)


REFUSED_WEIGHTS = [
    (drop, r"lacks 1 tensor \(model.layers.1.self_attn.k_proj.weight\)"),
    (extra, r"holds 1 tensor \(model.layers.0.self_attn.q_norm.weight\), which LlamaForCausalLM does not have"),
    (reshape, r"model.norm.weight has the shape \[32\] where config.json asks for \[64\]"),
    (integers, r"model.norm.weight is stored as I8"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED_WEIGHTS)
def test_weights_that_do_not_fit_the_config_are_refused_by_name(change: Any, message: str, tmp_path: Path) -> None:
    path = rewrite(make_tiny_model(tmp_path), change)
    with pytest.raises(ModelError, match=message):
        load(path)


def test_a_missing_or_damaged_file_is_refused_by_name(tmp_path: Path) -> None:
    path = make_tiny_model(tmp_path, max_shard_size=20_000)
    shard = sorted(path.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ModelError, match=f"{shard.name} is missing or damaged.*download it again"):
        load(path)
    shard.unlink()
    with pytest.raises(ModelError, match=f"{shard.name} is missing or damaged.*download it again"):
        load(path)


def test_weights_in_other_formats_are_refused_with_the_way_out(tmp_path: Path) -> None:
    path = make_tiny_model(tmp_path)
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no \.safetensors file.*convert.*save_pretrained"):
        load(path)


def test_each_matrix_is_packed_before_the_next_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not packing_works(torch.float32):
        pytest.skip("no packed products on this processor")
    path, models, waiting = make_tiny_model(tmp_path, "qwen2"), [], []

    class Watched(CausalLM):
        def __init__(self, config: ModelConfig) -> None:
            super().__init__(config)
            models.append(self)

    read_into = Checkpoint.read_into

    def spy(checkpoint: Checkpoint, name: str, target: Tensor) -> None:
        linears = [module for module in models[-1].modules() if isinstance(module, Linear)]
        waiting.append(sum(layer.weight is not None and not layer.weight.is_meta for layer in linears))
        read_into(checkpoint, name, target)

    monkeypatch.setattr(loader, "CausalLM", Watched)
    monkeypatch.setattr(Checkpoint, "read_into", spy)
    load(path)
    assert len(waiting) == len(load_file(path / "model.safetensors"))
    assert max(waiting) == 1  # a matrix whose bias comes next


def test_an_unknown_load_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="load_format must be auto, safetensors or dummy, got 'pt'"):
        load(make_tiny_model(tmp_path), load_format="pt")


# Dummy weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("architecture", CONFIG_CLASSES)
def test_dummy_weights_need_nothing_but_a_config(architecture: str, dtype: torch.dtype, tmp_path: Path) -> None:
    path = make_tiny_model(tmp_path, architecture)
    (path / "model.safetensors").unlink()
    logits = [
        sequence_logits(load(path, dtype, load_format="dummy", seed=seed), random_tokens(5)) for seed in (1, 1, 2)
    ]
    assert logits[0].shape == (5, SHAPE["vocab_size"]) and logits[0].isfinite().all()
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", CONFIG_CLASSES)
def test_logits_on_a_gpu_are_those_on_the_cpu(architecture: str, tmp_path: Path) -> None:
    path = make_tiny_model(tmp_path, architecture, rope_type="llama3", tie_word_embeddings=True)
    tokens, model = random_tokens(50), load_model(path, dtype=torch.float32, device="cuda")
    with torch.inference_mode():
        hidden = model(tokens.cuda(), torch.arange(50).cuda(), dense_attention)
        logits = model.compute_logits(hidden)
    assert {parameter.device.type for parameter in model.parameters()} == {"cuda"}
    torch.testing.assert_close(logits.cpu(), oracle_logits(path, tokens), rtol=0, atol=1e-3)
