"""The architectures that pagedlab knows, as data: one decoder (transformer.py), and how each family departs from it.

Llama, Mistral, Qwen2 and Qwen3 share everything that matters: pre-norm with RMSNorm, rotary positions, grouped-query
attention, a gated MLP. What is left fits into one row each. A new family of the same kind is a new row; one with
another kind of layer is refused by name.

Sources: Touvron et al., arXiv 2302.13971 (Llama); Jiang et al., arXiv 2310.06825 (Mistral); Yang et al., arXiv
2407.10671 (Qwen2) and 2505.09388 (Qwen3); field names and defaults as in transformers' config classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from pagedlab.errors import ModelError


class Window(Enum):
    """Which layers attend through a sliding window."""

    NONE = "none"
    ALL = "every layer, if config.json has a sliding_window"
    BY_LAYER = "the layers that layer_types or max_window_layers name, if use_sliding_window is set"


@dataclass(frozen=True)
class Architecture:
    """How one family departs from the common decoder.

    A bias is True or False where the family decides, and the name of the deciding config.json field where it does not.

    Attributes:
        qkv_bias: of the query, key and value projections.
        attention_output_bias: of the projection after attention.
        mlp_bias: of the three projections of the MLP.
        qk_norm: RMSNorm over each head of q and k, before rotation.
        window: which layers attend through a sliding window.
        defaults: what a field means that config.json leaves out.
    """

    qkv_bias: bool | str = False
    attention_output_bias: bool | str = False
    mlp_bias: bool | str = False
    qk_norm: bool = False
    window: Window = Window.NONE
    defaults: Mapping[str, Any] = field(default_factory=dict)


ARCHITECTURES: dict[str, Architecture] = {
    "LlamaForCausalLM": Architecture(
        qkv_bias="attention_bias",
        attention_output_bias="attention_bias",
        mlp_bias="mlp_bias",
        defaults={"max_position_embeddings": 2048},
    ),
    "MistralForCausalLM": Architecture(
        window=Window.ALL,
        defaults={"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
    ),
    "Qwen2ForCausalLM": Architecture(
        qkv_bias=True,
        window=Window.BY_LAYER,
        defaults={"max_position_embeddings": 32768, "num_key_value_heads": 32, "sliding_window": 4096},
    ),
    "Qwen3ForCausalLM": Architecture(
        qkv_bias="attention_bias",
        attention_output_bias="attention_bias",
        qk_norm=True,
        window=Window.BY_LAYER,
        defaults={
            "max_position_embeddings": 32768,
            "num_key_value_heads": 32,
            "head_dim": 128,
            "sliding_window": 4096,
        },
    ),
}


def find_architecture(names: list[str]) -> tuple[str, Architecture]:
    """The first of config.json's `architectures` that is known, with its name.

    Raises:
        ModelError: none is.
    """
    for name in names:
        if name in ARCHITECTURES:
            return name, ARCHITECTURES[name]
    given = ", ".join(names) if names else "no architecture"
    raise ModelError(
        f"The model's config.json names {given}, which pagedlab does not know: choose a model of "
        f"{', '.join(ARCHITECTURES)}."
    )
