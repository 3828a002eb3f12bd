"""CausalLM: the decoder that Llama, Mistral, Qwen2 and Qwen3 share, over one ragged batch of tokens.

Rows are tokens of any number of sequences, without padding. Only attention knows which row belongs to whom: it is
handed in, and owns the KV cache. Modules carry the checkpoint's names, so that a weight's place is its name.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pagedlab.model_authoring.models import ops
from pagedlab.model_authoring.models.config import ModelConfig
from pagedlab.model_authoring.models.layers import Embedding, GatedMLP, Linear, RMSNorm
from pagedlab.model_authoring.models.rope import RotaryEmbedding

AttentionFunction = Callable[..., Tensor]
"""attention(layer, q, k, v, scale=, sliding_window=) -> output like q: runtime.attention.base.AttentionContext.

One that has `rotates` set takes the projection itself, and norms, rotates and stores it in one kernel.
"""


class Attention(nn.Module):
    """Projections, head norms and rotation around the attention that is handed in."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        self.scale = config.attention_scale
        self.sliding_window = config.sliding_windows[layer]
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        parts = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
        self.qkv_proj = Linear(config.hidden_size, parts, bias=config.attention_bias)
        self.o_proj = Linear(queries, {"o_proj": config.hidden_size}, bias=config.attention_output_bias)
        self.qk_norm, self.norm_eps = config.qk_norm, config.rms_norm_eps
        if config.qk_norm:
            self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor, attention: AttentionFunction) -> Tensor:
        num_rotated = self.num_heads + self.num_kv_heads
        heads = self.qkv_proj(hidden).view(len(hidden), num_rotated + self.num_kv_heads, self.head_dim)
        if ops.use_kernels and getattr(attention, "rotates", False):
            norms = (self.q_norm.weight, self.k_norm.weight) if self.qk_norm else None
            output = attention.from_projection(  # type: ignore[attr-defined]
                self.layer,
                heads,
                cos,
                sin,
                norms=norms,
                eps=self.norm_eps,
                scale=self.scale,
                sliding_window=self.sliding_window,
            )
            return self.o_proj(output.reshape(len(hidden), -1))
        # q and k are neighbours in the fused output: one rotation serves both, and v stays where it is.
        rotated, value = heads.split((num_rotated, self.num_kv_heads), dim=1)
        if self.qk_norm:
            query, key = rotated.split((self.num_heads, self.num_kv_heads), dim=1)
            rotated = torch.cat((self.q_norm(query), self.k_norm(key)), dim=1)
        query, key = ops.apply_rope(rotated, cos, sin).split((self.num_heads, self.num_kv_heads), dim=1)
        output = attention(self.layer, query, key, value, scale=self.scale, sliding_window=self.sliding_window)
        return self.o_proj(output.reshape(len(hidden), -1))


class DecoderLayer(nn.Module):
    """Attention, then MLP; each reads the norm of the residual stream and hands on an update to it."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GatedMLP(config)

    def forward(
        self, update: Tensor, residual: Tensor, cos: Tensor, sin: Tensor, attention: AttentionFunction
    ) -> Tensor:
        """Add the previous layer's `update` to `residual` (in place); return this layer's own last update.

        Handing on the update, not the sum, lets one kernel add and norm.
        """
        update = self.self_attn(self.input_layernorm.add(update, residual), cos, sin, attention)
        return self.mlp(self.post_attention_layernorm.add(update, residual))


class Decoder(nn.Module):
    """Embedding, layers, final norm. (Named `model` in checkpoints.)"""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = RotaryEmbedding(config.head_dim, config.rope_parameters)

    def forward(self, token_ids: Tensor, positions: Tensor, attention: AttentionFunction) -> Tensor:
        # The stream starts at zero, and the embedding is the first update: every layer is then alike.
        update = self.embed_tokens(token_ids)
        residual = torch.zeros_like(update)
        cos, sin = self.rotary_emb(positions, update.dtype)
        for layer in self.layers:
            update = layer(update, residual, cos, sin, attention)
        return self.norm.add(update, residual)


class CausalLM(nn.Module):
    """A language model over ragged batches; see loader.load_model for one with weights.

    Run it under torch.inference_mode(): weights ask for no gradients and the residual stream is updated in place.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = Linear(config.hidden_size, {"lm_head": config.vocab_size}, bias=False)

    def forward(self, token_ids: Tensor, positions: Tensor, attention: AttentionFunction) -> Tensor:
        """Hidden states [num_tokens, hidden_size] after the final norm.

        Args:
            token_ids: [num_tokens] int64
            positions: [num_tokens] int64, each token's place in its own sequence
            attention: called once a layer, in order, as attention(layer, q, k, v, scale=, sliding_window=) with
                q [num_tokens, num_heads, head_dim] and k, v [num_tokens, num_kv_heads, head_dim], which may be strided
                views; returns q's shape.
        """
        return self.model(token_ids, positions, attention)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """[num_rows, hidden_size] -> [num_rows, vocab_size] float32. Pass only the rows that need it."""
        return self.lm_head(hidden).float()
