"""Attention from first principles: dense, and the same result in one pass over blocks of keys (online softmax).

Layout everywhere: query `[..., num_queries, num_heads, head_dim]`, key and value `[..., num_keys, num_kv_heads,
head_dim]`; the leading dimensions, if any, are a batch. Arithmetic is float32 (float64 for float64 inputs) whatever
the inputs are, and the result has the query's number type.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """softmax(Q Kᵀ · scale) V (Vaswani et al. 2017, equation 1); same shape as `query`.

    Args:
        mask: True where a query may attend; broadcasts to [..., num_heads, num_queries, num_keys]. A row with no True
            gives NaN.
        scale: 1 / sqrt(head_dim) unless given.
    """
    scores = attention_scores(query, key, scale)
    if mask is not None:
        scores = scores.masked_fill(~mask.to(scores.device), float("-inf"))
    weights = scores.softmax(dim=-1)
    return torch.einsum("...hqk,...khd->...qhd", weights, _heads_of(value, query)).to(query.dtype)


def attention_scores(query: Tensor, key: Tensor, scale: float | None = None) -> Tensor:
    """Q Kᵀ · scale: [..., num_heads, num_queries, num_keys]."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return torch.einsum("...qhd,...khd->...hqk", _exact(query), _heads_of(key, query)) * scale


def repeat_kv(x: Tensor, num_heads: int) -> Tensor:
    """Grouped-query attention: query head h uses KV head h // (num_heads / num_kv_heads), so each is repeated in place.

    [..., num_kv_heads, head_dim] to [..., num_heads, head_dim] (Ainslie et al. 2023, section 2.2).
    """
    return x.repeat_interleave(num_heads // x.shape[-2], dim=-2)


def _exact(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _heads_of(x: Tensor, query: Tensor) -> Tensor:
    return repeat_kv(_exact(x), query.shape[-2])


@dataclass
class OnlineSoftmax:
    """A softmax-weighted sum of values, built from keys that arrive a few at a time.

    Of all scores s_j and values v_j seen so far it holds three things (Milakov & Gimelshein 2018, algorithm 3;
    FlashAttention, Dao et al. 2022, algorithm 1):

        maximum      m = max_j s_j                  [...]
        denominator  l = sum_j exp(s_j - m)         [...]
        numerator    a = sum_j exp(s_j - m) v_j     [..., head_dim]

    so that the result is a / l; the leading dimensions are rows of queries, and heads if you like. When a later score
    raises m, BOTH sums stand relative to the old maximum and must be multiplied by exp(m_old - m_new). Leaving the
    numerator out is the classic mistake.
    """

    maximum: Tensor
    denominator: Tensor
    numerator: Tensor

    @classmethod
    def empty(cls, shape: tuple[int, ...], head_dim: int, like: Tensor) -> OnlineSoftmax:
        """Nothing seen yet: maximum -inf, both sums 0."""
        return cls(
            like.new_full(shape, float("-inf")),
            like.new_zeros(shape),
            like.new_zeros((*shape, head_dim)),
        )

    def update(self, scores: Tensor, values: Tensor) -> OnlineSoftmax:
        """The state after n more keys: `scores` [..., rows, n] and their `values` [..., n, head_dim].

        A score of -inf is a masked key. A single query may leave out the rows: [n] and [n, head_dim].
        """
        maximum = torch.maximum(self.maximum, scores.amax(dim=-1))
        rescale = _exp_difference(self.maximum, maximum)
        weights = _exp_difference(scores, maximum[..., None])
        return OnlineSoftmax(
            maximum,
            self.denominator * rescale + weights.sum(dim=-1),
            self.numerator * rescale[..., None] + weights @ values,
        )

    def merge(self, other: OnlineSoftmax) -> OnlineSoftmax:
        """The state over both sets of keys: how parts of a long context, computed apart, become one (split-KV)."""
        maximum = torch.maximum(self.maximum, other.maximum)
        mine, theirs = _exp_difference(self.maximum, maximum), _exp_difference(other.maximum, maximum)
        return OnlineSoftmax(
            maximum,
            self.denominator * mine + other.denominator * theirs,
            self.numerator * mine[..., None] + other.numerator * theirs[..., None],
        )

    @property
    def result(self) -> Tensor:
        """The attention output [..., head_dim]."""
        return self.numerator / self.denominator[..., None]


def _exp_difference(x: Tensor, maximum: Tensor) -> Tensor:
    # While every score so far is masked, both are -inf and their difference is NaN; its weight is 0.
    return torch.where(x == float("-inf"), torch.zeros_like(x), (x - maximum).exp())


def blockwise_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
    block_size: int = 16,
) -> Tensor:
    """`attention` that never holds a whole row of scores: `block_size` keys at a time. Same arguments and result."""
    num_keys = key.shape[-3]
    rows = (*query.shape[:-3], query.shape[-2], query.shape[-3])
    state = OnlineSoftmax.empty(rows, value.shape[-1], like=_exact(query))
    for start in range(0, num_keys, block_size):
        block = slice(start, min(start + block_size, num_keys))
        scores = attention_scores(query, key[..., block, :, :], scale)
        if mask is not None:
            allowed = mask.to(scores.device).expand(*scores.shape[:-1], num_keys)[..., block]
            scores = scores.masked_fill(~allowed, float("-inf"))
        values = _heads_of(value[..., block, :, :], query).movedim(-3, -2)
        state = state.update(scores, values)
    return state.result.movedim(-3, -2).to(query.dtype)
