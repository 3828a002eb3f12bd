"""Shapes of ten published models, and of the default one: the entries of config.json that FLOPs and bytes depend on.

Keys have Hugging Face's names, also where the model's own file has older ones (GPT-2's `n_embd` is `hidden_size` here),
so that `pagedlab.basics.kv_size.layout_of` and `pagedlab.simulate.roofline` read every entry alike. `position_rows` is
the number of rows of a learned position table (GPT-2, OPT); the others rotate queries and keys and have none.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

PUBLISHED: dict[str, MappingProxyType[str, Any]] = {}
"""Name -> a read-only mapping of Hugging Face keys."""


def _publish(name: str, **fields: Any) -> None:
    PUBLISHED[name] = MappingProxyType(fields)


# Radford et al. 2019, table 2 (smallest model), https://huggingface.co/openai-community/gpt2
_publish(
    "GPT-2 small",
    model_type="gpt2",
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    num_key_value_heads=12,
    head_dim=64,
    vocab_size=50257,
    position_rows=1024,
    max_position_embeddings=1024,
    tie_word_embeddings=True,
)
# Touvron et al. 2023 (arXiv 2307.09288), table 1, https://huggingface.co/meta-llama/Llama-2-7b-hf
_publish(
    "Llama-2-7B",
    model_type="llama",
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    head_dim=128,
    vocab_size=32000,
    max_position_embeddings=4096,
    tie_word_embeddings=False,
)
# https://huggingface.co/meta-llama/Llama-2-13b-hf
_publish(
    "Llama-2-13B",
    model_type="llama",
    hidden_size=5120,
    intermediate_size=13824,
    num_hidden_layers=40,
    num_attention_heads=40,
    num_key_value_heads=40,
    head_dim=128,
    vocab_size=32000,
    max_position_embeddings=4096,
    tie_word_embeddings=False,
)
# The one Llama 2 with grouped-query attention (table 1), https://huggingface.co/meta-llama/Llama-2-70b-hf
_publish(
    "Llama-2-70B",
    model_type="llama",
    hidden_size=8192,
    intermediate_size=28672,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=32000,
    max_position_embeddings=4096,
    tie_word_embeddings=False,
)
# Zhang et al. 2022 (arXiv 2205.01068), table 1, https://huggingface.co/facebook/opt-13b; two position rows are padding.
_publish(
    "OPT-13B",
    model_type="opt",
    hidden_size=5120,
    intermediate_size=20480,
    num_hidden_layers=40,
    num_attention_heads=40,
    num_key_value_heads=40,
    head_dim=128,
    vocab_size=50272,
    position_rows=2050,
    max_position_embeddings=2048,
    tie_word_embeddings=True,
)
# Jiang et al. 2023 (arXiv 2310.06825), table 1, https://huggingface.co/mistralai/Mistral-7B-v0.1
_publish(
    "Mistral-7B",
    model_type="mistral",
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=32000,
    max_position_embeddings=32768,
    sliding_window=4096,
    tie_word_embeddings=False,
)
# Grattafiori et al. 2024 (arXiv 2407.21783), table 3, https://huggingface.co/meta-llama/Meta-Llama-3-8B
_publish(
    "Llama-3-8B",
    model_type="llama",
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=128256,
    max_position_embeddings=8192,
    tie_word_embeddings=False,
)
# arXiv 2407.21783, table 3, https://huggingface.co/meta-llama/Llama-3.1-70B
_publish(
    "Llama-3.1-70B",
    model_type="llama",
    hidden_size=8192,
    intermediate_size=28672,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=128256,
    max_position_embeddings=131072,
    tie_word_embeddings=False,
)
# Qwen team 2025 (arXiv 2505.09388), table 1, https://huggingface.co/Qwen/Qwen3-0.6B; heads * head_dim != hidden_size.
_publish(
    "Qwen3-0.6B",
    model_type="qwen3",
    hidden_size=1024,
    intermediate_size=3072,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=151936,
    max_position_embeddings=40960,
    tie_word_embeddings=True,
)
# Allal et al. 2025 (arXiv 2502.02737), https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct
_publish(
    "SmolLM2-135M",
    model_type="llama",
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    vocab_size=49152,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
)
# DeepSeek-AI 2024 (arXiv 2412.19437), section 4.2, https://huggingface.co/deepseek-ai/DeepSeek-V3. Latent attention: of
# a token one vector of kv_lora_rank and one rotated key of qk_rope_head_dim are kept. head_dim is the paper's per-head
# dimension (of values, and of the part of keys that is not rotated); transformers gives this name to the rotated part.
_publish(
    "DeepSeek-V3",
    model_type="deepseek_v3",
    hidden_size=7168,
    intermediate_size=18432,
    num_hidden_layers=61,
    num_attention_heads=128,
    num_key_value_heads=128,
    head_dim=128,
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    moe_intermediate_size=2048,
    n_routed_experts=256,
    n_shared_experts=1,
    num_experts_per_tok=8,
    first_k_dense_replace=3,
    vocab_size=129280,
    max_position_embeddings=163840,
    tie_word_embeddings=False,
)
