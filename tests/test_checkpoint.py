"""Weights: every layout of safetensors that is in use, streamed into place; misfits refused by name; dummies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import CONFIG_CLASSES, SHAPE, assert_same_logits, load, make_tiny_model, random_tokens, sequence_logits
from torch import Tensor

from pagedlab.errors import ConfigError, ModelError
from pagedlab.model_authoring.models import loader
from pagedlab.model_authoring.models.checkpoint import INDEX, Checkpoint
from pagedlab.model_authoring.models.config import ModelConfig
from pagedlab.model_authoring.models.layers import Linear
from pagedlab.model_authoring.models.packing import packing_works
from pagedlab.model_authoring.models.provision import is_complete
from pagedlab.model_authoring.models.transformer import CausalLM


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


def test_a_whole_file_goes_before_the_index_of_an_earlier_sharded_save(tmp_path: Path) -> None:
    path = make_tiny_model(tmp_path, seed=1)
    whole = (path / "model.safetensors").read_bytes()
    make_tiny_model(path, seed=2, max_shard_size=20_000)
    (path / "model.safetensors").write_bytes(whole)
    assert (path / INDEX).is_file()
    assert_same_logits(path)
    (path / "model-00001-of-00014.safetensors").unlink()
    assert is_complete(path)
    assert_same_logits(path)


@pytest.mark.parametrize("weight_map", [{"a": 5}, {"a": ["x"]}, {"a": "../x.safetensors"}, {}, ["x"]], ids=str)
def test_an_index_that_gives_no_files_is_refused(weight_map: Any, tmp_path: Path) -> None:
    path = make_tiny_model(tmp_path, max_shard_size=20_000)
    (path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert not is_complete(path)
    with pytest.raises(ModelError, match="has no weight_map that gives each tensor's file"):
        load(path)


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
