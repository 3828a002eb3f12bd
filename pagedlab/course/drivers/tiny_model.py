"""A model of two layers with random weights, so that a run takes milliseconds: its shape, and how it is drawn."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pagedlab.model_authoring.models.config import ModelConfig
from pagedlab.model_authoring.models.transformer import CausalLM

SHAPE: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
}


def tiny_model(seed: int) -> CausalLM:
    """Weights so large that greedy outputs wander instead of repeating one token."""
    model = CausalLM(ModelConfig.from_dict({"architectures": ["LlamaForCausalLM"], **SHAPE})).eval()
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for key, empty in list(module.named_parameters(recurse=False)):
            noise = torch.randn(empty.shape, generator=generator)
            weight = 1 + 0.2 * noise if empty.dim() == 1 else 0.3 * noise
            setattr(module, key, nn.Parameter(weight, requires_grad=False))
    return model
