"""Attention masks: boolean tensors, True where a query may attend to a key. Rows are queries, columns are keys.

Masks combine with `&`: a packed batch of prompts is `block_diagonal(lengths) & causal(sum(lengths))`; what has no name
here is a rule for `from_rule`. Every row needs at least one True: the softmax over nothing is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pagedlab.errors import CourseError


def from_rule(rule: Callable[[Tensor, Tensor], Tensor], num_queries: int, num_keys: int, start: int = 0) -> Tensor:
    """[num_queries, num_keys]: any mask, from a rule on two positions. `lambda q, k: k <= q` is the causal one.

    Args:
        rule: called once, with the positions of all queries [num_queries, 1] and of all keys [1, num_keys], so it is
            written with tensor operators (`&`, `|`, `~`). PyTorch's FlexAttention takes its masks in the same form.
        start: position of the first query; the keys before it are in the cache.

    Raises:
        CourseError: the rule gives no truth values, or not one for each pair.
    """
    query = torch.arange(start, start + num_queries)[:, None]
    key = torch.arange(num_keys)[None, :]
    allowed = torch.as_tensor(rule(query, key))
    if allowed.dtype != torch.bool:
        raise CourseError(f"A mask's rule must give True or False, such as k <= q; this one gives {allowed.dtype}.")
    try:
        return allowed.expand(num_queries, num_keys).clone()
    except RuntimeError:
        raise CourseError(
            f"A mask's rule must give one answer a pair, [{num_queries}, {num_keys}], not {list(allowed.shape)}: "
            "compute it from the two positions it is called with."
        ) from None


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


def empty_rows(mask: Tensor) -> list[int]:
    """Queries of a [num_queries, num_keys] mask that may attend to nothing: their softmax is NaN."""
    return (~mask.any(dim=-1)).nonzero()[:, 0].tolist()
