"""Random tiny checkpoints of all four architectures, written by transformers itself, and both sides' logits on them.

Every parameter is random, biases and norm weights included, so that a forgotten one shows in the logits; weights are
large enough that greedy outputs wander instead of repeating one token.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.utils import logging

from pagedlab.basics import masks
from pagedlab.basics.attention import attention
from pagedlab.course.drivers import tiny_model
from pagedlab.model_authoring.models.loader import load_model
from pagedlab.model_authoring.models.transformer import CausalLM

logging.disable_progress_bar()

CONFIG_CLASSES: dict[str, type[PreTrainedConfig]] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
}

NAMES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""What config.json calls them."""

SHAPE: dict[str, Any] = {**tiny_model.SHAPE, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

ROPE_PARAMETERS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 128,
    },
}


def make_tiny_model(
    directory: str | os.PathLike[str],
    architecture: str = "llama",
    *,
    seed: int = 0,
    std: float = 0.3,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str | int = "5GB",
    rope_type: str = "default",
    **overrides: Any,
) -> Path:
    """Write a random model and return its directory.

    Args:
        directory: made if missing.
        architecture: llama, mistral, qwen2 or qwen3.
        seed: of the weights.
        std: standard deviation of matrices, embeddings and biases.
        dtype: of the checkpoint.
        max_shard_size: smaller than the model for a sharded checkpoint, for example 20_000.
        rope_type: default, linear, llama3 or yarn, with the parameters of ROPE_PARAMETERS.
        overrides: fields of transformers' config, such as num_key_value_heads, head_dim, tie_word_embeddings,
            attention_bias, sliding_window, use_sliding_window, layer_types, rope_parameters. Mistral and Qwen use full
            attention unless told otherwise.
    """
    path = Path(directory)
    options: dict[str, Any] = {**SHAPE, "rope_parameters": dict(ROPE_PARAMETERS[rope_type])}
    if architecture == "mistral":
        options["sliding_window"] = None
    config = CONFIG_CLASSES[architecture](**{**options, **overrides})
    torch_rng = torch.get_rng_state()
    model = AutoModelForCausalLM.from_config(config)
    torch.set_rng_state(torch_rng)
    randomize(model, seed, std)
    model.to(dtype).save_pretrained(path, max_shard_size=max_shard_size)
    return path


@torch.no_grad()
def randomize(model: PreTrainedModel, seed: int, std: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(1 + 0.2 * noise if "norm" in name else std * noise)


def edit_config(directory: Path, **changes: Any) -> None:
    """Change fields of a written config.json; None removes a field."""
    file = directory / "config.json"
    fields = json.loads(file.read_text())
    fields.update(changes)
    file.write_text(json.dumps({name: value for name, value in fields.items() if value is not None}))


def load_oracle(directory: Path, **options: Any) -> PreTrainedModel:
    """The same checkpoint in transformers, float32 unless told otherwise, eager attention."""
    options = {"dtype": torch.float32, "attn_implementation": "eager"} | options
    return AutoModelForCausalLM.from_pretrained(directory, local_files_only=True, **options).eval()


def dense_attention(
    layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, sliding_window: int | None = None
) -> Tensor:
    """What a model is handed in place of paged attention when its rows are one whole sequence."""
    num_tokens = len(query)
    mask = masks.sliding_window(0, num_tokens, sliding_window or num_tokens)
    return attention(query, key, value, mask, scale)


@torch.no_grad()
def oracle_logits(directory: Path, token_ids: list[int] | Tensor) -> Tensor:
    """transformers' float32 logits of one sequence: [len(token_ids), vocab_size]."""
    return load_oracle(directory).forward(torch.as_tensor(token_ids)[None]).logits[0]


@torch.no_grad()
def greedy_tokens(directory: Path, prompt: list[int], max_new_tokens: int) -> list[int]:
    """What transformers' logits add to a prompt greedily, each step from scratch; end of text does not end it."""
    model = load_oracle(directory)
    tokens = list(prompt)
    for _ in range(max_new_tokens):
        tokens.append(int(model.forward(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def load(path: Path, dtype: torch.dtype = torch.float32, **options: Any) -> CausalLM:
    """Our model of a checkpoint, on the CPU."""
    return load_model(path, dtype=dtype, device="cpu", **options)


@torch.inference_mode()
def sequence_logits(model: CausalLM, token_ids: Tensor) -> Tensor:
    """Our logits of one whole sequence: [len(token_ids), vocab_size]."""
    return model.compute_logits(model(token_ids, torch.arange(len(token_ids)), dense_attention))


def random_tokens(length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, SHAPE["vocab_size"], (length,), generator=torch.Generator().manual_seed(seed))


def assert_same_logits(path: Path, length: int = 40) -> None:
    """Ours and transformers' logits of a random sequence agree within 1e-4 in float32."""
    tokens = random_tokens(length)
    torch.testing.assert_close(sequence_logits(load(path), tokens), oracle_logits(path, tokens), rtol=0, atol=1e-4)
