"""Attention masks: boolean tensors, True where a query may attend to a key. Rows are queries, columns are keys.

Masks combine with `&`: a packed batch of prompts is `block_diagonal(lengths) & causal(sum(lengths))`. Every row needs
at least one True: the softmax over nothing is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def causal(num_tokens: int) -> Tensor:
    """[num_tokens, num_tokens]: a token sees itself and what came before it (lower triangle)."""
    position = torch.arange(num_tokens)
    return position[None, :] <= position[:, None]


def padding(lengths: Sequence[int], width: int | None = None) -> Tensor:
    """[batch, 1, 1, width]: of each padded row of a batch only the first `lengths[i]` keys are real.

    The two middle dimensions stand for heads and queries, so that it combines with a causal mask by broadcasting.
    `width` is the longest length unless given.
    """
    width = max(lengths) if width is None else width
    return (torch.arange(width) < torch.tensor(lengths)[:, None])[:, None, None, :]


def block_diagonal(query_lengths: Sequence[int], key_lengths: Sequence[int] | None = None) -> Tensor:
    """[sum of query lengths, sum of key lengths]: in a packed batch every sequence sees its own keys alone.

    `key_lengths` are the query lengths unless given.
    """
    key_lengths = query_lengths if key_lengths is None else key_lengths
    query_owner = torch.arange(len(query_lengths)).repeat_interleave(torch.tensor(query_lengths))
    key_owner = torch.arange(len(key_lengths)).repeat_interleave(torch.tensor(key_lengths))
    return query_owner[:, None] == key_owner[None, :]


def chunk(start: int, num_queries: int) -> Tensor:
    """[num_queries, start + num_queries]: queries at positions start, start + 1, ...; the keys before are in the cache.

    These are rows `start` to `start + num_queries` of the causal mask of the whole sequence. `chunk(0, n)` is
    `causal(n)`; `chunk(n, 1)` is one step of decoding: all True.
    """
    return torch.arange(start + num_queries)[None, :] <= torch.arange(start, start + num_queries)[:, None]


def sliding_window(start: int, num_queries: int, window: int) -> Tensor:
    """[num_queries, start + num_queries]: a chunk's mask in which a query sees `window` keys at most, its own included.

    Longformer (Beltagy et al. 2020), Mistral 7B (Jiang et al. 2023, section 2).
    """
    distance = torch.arange(start, start + num_queries)[:, None] - torch.arange(start + num_queries)[None, :]
    return (distance >= 0) & (distance < window)
