"""How many bytes a token's keys and values take: MHA, GQA, MQA, MLA, from numbers or from a model's config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class KVLayout:
    """What one token leaves in the cache of each layer.

    Attributes:
        kind: MHA, GQA, MQA or MLA
        num_layers: layers that keep a cache
        elements_per_layer: numbers stored for one token in one layer
    """

    kind: str
    num_layers: int
    elements_per_layer: int

    def bytes_per_token(self, bytes_per_element: int = 2) -> int:
        """Bytes of one token over all layers; 2 bytes an element is float16 or bfloat16."""
        return self.num_layers * self.elements_per_layer * bytes_per_element

    def tokens_in(self, num_bytes: int, bytes_per_element: int = 2) -> int:
        """Whole tokens that fit in `num_bytes`."""
        return num_bytes // self.bytes_per_token(bytes_per_element)


def kv_layout(num_layers: int, num_heads: int, num_kv_heads: int, head_dim: int) -> KVLayout:
    """A key and a value for each KV head.

    With as many KV heads as query heads this is multi-head attention (MHA), with one it is multi-query attention (MQA,
    Shazeer 2019), in between grouped-query attention (GQA, Ainslie et al. 2023).
    """
    kind = "MHA" if num_kv_heads == num_heads else "MQA" if num_kv_heads == 1 else "GQA"
    return KVLayout(kind, num_layers, 2 * num_kv_heads * head_dim)


def mla_layout(num_layers: int, kv_lora_rank: int, qk_rope_head_dim: int) -> KVLayout:
    """Multi-head latent attention (DeepSeek-V2, section 2.1): one compressed vector from which every head's key and
    value are rebuilt, and one rotated key that all heads share. The number of heads does not enter."""
    return KVLayout("MLA", num_layers, kv_lora_rank + qk_rope_head_dim)


def layout_of(config: Mapping[str, Any]) -> KVLayout:
    """The layout of a Hugging Face `config.json`, as a mapping (`AutoConfig(...).to_dict()` is one).

    Every layer is counted in full: a sliding window bounds how many tokens are kept, not the bytes of each.

    Raises:
        KeyError: a needed entry is missing.
    """
    num_layers, num_heads = config["num_hidden_layers"], config["num_attention_heads"]
    if config.get("kv_lora_rank"):
        return mla_layout(num_layers, config["kv_lora_rank"], config["qk_rope_head_dim"])
    head_dim = config.get("head_dim") or config["hidden_size"] // num_heads
    return kv_layout(num_layers, num_heads, config.get("num_key_value_heads") or num_heads, head_dim)
