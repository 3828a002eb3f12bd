"""Attention layers that differ in what they keep of a token: MHA, GQA, MQA and MLA behind one call.

    output, cache = layer(hidden, cache)

`hidden` is [new, hidden_size]; `cache` is None or what the last call returned, one row a token: [past, elements]. The
result is [new, hidden_size] and a cache of [past + new, elements]. Whole sequence at once or token by token: the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pagedlab.basics import masks
from pagedlab.basics.attention import attention
from pagedlab.basics.kv_size import KVLayout, kv_layout, mla_layout
from pagedlab.errors import ConfigError


class Variant(nn.Module):
    """The interface; `layout` says what one token leaves in the cache of one layer."""

    layout: KVLayout

    def forward(self, hidden: Tensor, cache: Tensor | None = None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class GroupedAttention(Variant):
    """Keys and values for `num_kv_heads` heads, each shared by num_heads / num_kv_heads query heads.

    As many as query heads: multi-head attention (Vaswani et al. 2017). One: multi-query (Shazeer 2019). In between:
    grouped-query (Ainslie et al. 2023). Positions are rotated in (RoPE), as in Llama.

    Raises:
        ConfigError: the query heads do not divide evenly among the KV heads.
    """

    def __init__(
        self, hidden_size: int, num_heads: int, num_kv_heads: int, head_dim: int, rope_theta: float = 10_000.0
    ) -> None:
        super().__init__()
        if num_heads % num_kv_heads:
            raise ConfigError(f"{num_heads} query heads do not divide evenly among {num_kv_heads} KV heads.")
        self.layout = kv_layout(1, num_heads, num_kv_heads, head_dim)
        self.head_dim, self.rope_theta = head_dim, rope_theta
        self.q_proj = nn.Linear(hidden_size, num_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(hidden_size, num_kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(hidden_size, num_kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(num_heads * head_dim, hidden_size, bias=False)

    def forward(self, hidden: Tensor, cache: Tensor | None = None) -> tuple[Tensor, Tensor]:
        positions = next_positions(hidden, cache)
        query = rotate(self._heads(self.q_proj(hidden)), positions, self.rope_theta)
        key = rotate(self._heads(self.k_proj(hidden)), positions, self.rope_theta)
        value = self.v_proj(hidden)
        cache = append(cache, torch.cat([key.flatten(-2), value], dim=-1))
        all_keys, all_values = (self._heads(half) for half in cache.chunk(2, dim=-1))
        output = attention(query, all_keys, all_values, masks.chunk(int(positions[0]), len(hidden)))
        return self.o_proj(output.flatten(-2)), cache

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim))


class LatentAttention(Variant):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1), without compression of queries.

    Of a token it keeps one latent vector, from which every head's key and value are rebuilt, and one rotated key that
    all heads share: position must stay outside the latent, or the product below could not be taken apart.

    Two forms of the same function. `forward` rebuilds the keys and values of all heads from the latents. `absorbed`
    moves the rebuilding matrices to the other side of the product: (W_k c)·q = c·(W_kᵀ q). The cache itself then
    serves as one key and one value for all heads, so decode is multi-query attention over latents.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        kv_lora_rank: int,
        qk_nope_head_dim: int,
        qk_rope_head_dim: int,
        v_head_dim: int,
        rope_theta: float = 10_000.0,
    ) -> None:
        super().__init__()
        self.layout = mla_layout(1, kv_lora_rank, qk_rope_head_dim)
        self.num_heads, self.rope_theta = num_heads, rope_theta
        self.parts_of_cache = [kv_lora_rank, qk_rope_head_dim]
        self.parts_of_query = [qk_nope_head_dim, qk_rope_head_dim]
        self.q_proj = nn.Linear(hidden_size, num_heads * sum(self.parts_of_query), bias=False)
        self.kv_down = nn.Linear(hidden_size, sum(self.parts_of_cache), bias=False)
        self.kv_norm = nn.RMSNorm(kv_lora_rank, eps=1e-6)
        self.k_up = nn.Linear(kv_lora_rank, num_heads * qk_nope_head_dim, bias=False)
        self.v_up = nn.Linear(kv_lora_rank, num_heads * v_head_dim, bias=False)
        self.o_proj = nn.Linear(num_heads * v_head_dim, hidden_size, bias=False)

    def forward(self, hidden: Tensor, cache: Tensor | None = None) -> tuple[Tensor, Tensor]:
        query, query_rotated, cache, mask = self._prepare(hidden, cache)
        latent, key_rotated = cache.split(self.parts_of_cache, dim=-1)
        key = self._heads(self.k_up(latent))
        value = self._heads(self.v_up(latent))
        shared = key_rotated[:, None].expand(-1, self.num_heads, -1)
        output = attention(
            torch.cat([query, query_rotated], dim=-1), torch.cat([key, shared], dim=-1), value, mask, self.scale
        )
        return self.o_proj(output.flatten(-2)), cache

    def absorbed(self, hidden: Tensor, cache: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The same result; no key or value of any head is ever made."""
        query, query_rotated, cache, mask = self._prepare(hidden, cache)
        k_up, v_up = (layer.weight.unflatten(0, (self.num_heads, -1)) for layer in (self.k_up, self.v_up))
        query = torch.einsum("qhd,hdr->qhr", query, k_up)
        latent = cache[:, None, : self.parts_of_cache[0]]
        seen = attention(torch.cat([query, query_rotated], dim=-1), cache[:, None], latent, mask, self.scale)
        output = torch.einsum("qhr,hdr->qhd", seen, v_up)
        return self.o_proj(output.flatten(-2)), cache

    @property
    def scale(self) -> float:
        return sum(self.parts_of_query) ** -0.5

    def _prepare(self, hidden: Tensor, cache: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What both forms share: the query's two parts, the longer cache, the mask."""
        positions = next_positions(hidden, cache)
        query, query_rotated = self._heads(self.q_proj(hidden)).split(self.parts_of_query, dim=-1)
        query_rotated = rotate(query_rotated, positions, self.rope_theta)
        latent, key_rotated = self.kv_down(hidden).split(self.parts_of_cache, dim=-1)
        key_rotated = rotate(key_rotated[:, None], positions, self.rope_theta)[:, 0]
        cache = append(cache, torch.cat([self.kv_norm(latent), key_rotated], dim=-1))
        return query, query_rotated, cache, masks.chunk(int(positions[0]), len(hidden))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1))


def rotate(x: Tensor, positions: Tensor, theta: float = 10_000.0) -> Tensor:
    """Rotary position embedding (Su et al. 2021), halves paired as in Llama: [tokens, heads, head_dim], same shape.

    Dimensions i and i + head_dim/2 turn together by position · theta^(-2i / head_dim), so that the product of a query
    and a key depends on their distance alone. A key is rotated once, by its own position: cached, it stays right.
    """
    half = x.shape[-1] // 2
    frequencies = theta ** (-torch.arange(half, dtype=torch.float32) / half)
    angles = (positions[:, None] * frequencies)[:, None]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def next_positions(hidden: Tensor, cache: Tensor | None) -> Tensor:
    """Positions of the new tokens: they follow those in the cache."""
    past = 0 if cache is None else len(cache)
    return torch.arange(past, past + len(hidden))


def append(cache: Tensor | None, rows: Tensor) -> Tensor:
    """The cache, longer by `rows`; no earlier row is touched."""
    return rows if cache is None else torch.cat([cache, rows])
