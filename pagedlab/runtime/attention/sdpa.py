"""SdpaBackend: paged attention in plain PyTorch, fast on a CPU and correct anywhere."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, scaled_dot_product_attention

from pagedlab.runtime.attention.base import AttentionBackend, AttentionMetadata
from pagedlab.runtime.attention.sdpa_plan import PIECE, Chunk, DecodeGroup, SdpaPlan


class SdpaBackend(AttentionBackend):
    """Chunks of prompts go through SDPA one by one; all sequences that decode go together, without SDPA.

    A chunk has work enough for SDPA's fused kernel, and its keys are gathered once for many queries. A decoding row
    has next to no work: what counts is how often its context is moved. See `attend_decodes`.
    """

    name: ClassVar[str] = "sdpa"

    def plan(self, metadata: AttentionMetadata, *, block_size: int, sliding_window: int | None) -> SdpaPlan:
        return SdpaPlan(metadata, block_size, sliding_window)

    def attend(
        self, query: Tensor, kv_cache: Tensor, metadata: AttentionMetadata, *, scale: float, sliding_window: int | None
    ) -> Tensor:
        plan = metadata.plan.layer(query, kv_cache.shape[3])
        output = torch.empty_like(query)
        for group in plan.decodes:
            output.index_copy_(0, group.rows, attend_decodes(query.index_select(0, group.rows), kv_cache, group, scale))
        for chunk in plan.chunks:
            output[chunk.rows] = attend_chunk(query[chunk.rows], kv_cache, chunk, scale)
        return output


def attend_chunk(query: Tensor, kv_cache: Tensor, chunk: Chunk, scale: float) -> Tensor:
    """Several rows of one sequence: gather its blocks, then SDPA. [query_len, num_heads, head_dim]."""
    keys, values = kv_cache.index_select(1, chunk.blocks).flatten(1, 2)[:, chunk.keys].transpose(1, 2)
    return scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        keys[None],
        values[None],
        attn_mask=chunk.mask,
        is_causal=chunk.mask is None,
        scale=scale,
        enable_gqa=True,
    )[0].transpose(0, 1)


def attend_decodes(query: Tensor, kv_cache: Tensor, group: DecodeGroup, scale: float) -> Tensor:
    """One row of each of n sequences, [n, num_heads, head_dim]: scores, softmax, weighted sum.

    Scores: the keys are copied out in pieces of PIECE positions, and the query heads that share a KV head are the rows
    of one small product with each piece. No sequence is padded to the length of another.

    Softmax: the scores of a sequence's pieces are laid side by side in `group.scores`, in float32.

    Weighted sum: `embedding_bag` sums rows of a table, by index and weight. The value cache is such a table, and a
    block table is such an index: values are read where they lie, and never copied.
    """
    num_seqs, num_heads, head_dim = query.shape
    num_kv_heads = kv_cache.shape[3]
    key_table, value_table = kv_cache.view(2, -1, head_dim)

    keys = torch.index_select(key_table, 0, group.key_rows, out=group.keys).float().view(-1, PIECE, head_dim)
    queries = query.float().index_select(0, group.owner).view(-1, num_heads // num_kv_heads, head_dim)
    scores = torch.baddbmm(group.mask, queries, keys.transpose(1, 2), alpha=scale)

    group.scores.index_copy_(0, group.place, scores.view(-1, PIECE))
    weights = group.scores.view(num_seqs * num_heads, -1).softmax(dim=-1).view(-1, PIECE).index_select(0, group.order)

    output = embedding_bag(
        group.value_rows,
        value_table,
        group.bag_starts,
        mode="sum",
        per_sample_weights=weights.flatten().to(value_table.dtype),
    )
    return output.view(num_seqs, num_heads, head_dim)
