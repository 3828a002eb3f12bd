"""ReferenceBackend: paged attention as its definition says it, one sequence after another. Every other backend is
tested against it."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from pagedlab.basics import masks
from pagedlab.basics.attention import attention
from pagedlab.runtime.attention.base import AttentionBackend, AttentionMetadata


class ReferenceBackend(AttentionBackend):
    """Gathers each sequence's keys and values by its block table, then attends densely (chapter 07). Any device and
    dtype; the softmax is float32."""

    name: ClassVar[str] = "reference"

    def attend(
        self, query: Tensor, kv_cache: Tensor, metadata: AttentionMetadata, *, scale: float, sliding_window: int | None
    ) -> Tensor:
        output = torch.empty_like(query)
        first_row = 0
        for seq, (query_len, seq_len) in enumerate(zip(metadata.query_lens_host, metadata.seq_lens_host, strict=True)):
            key, value = gather(kv_cache, metadata.block_tables[seq], seq_len)
            context = seq_len - query_len
            mask = masks.chunk(context, query_len)
            if sliding_window is not None:
                mask = masks.sliding_window(context, query_len, sliding_window)
            rows = slice(first_row, first_row + query_len)
            output[rows] = attention(query[rows], key, value, mask, scale)
            first_row += query_len
        return output


def gather(kv_cache: Tensor, block_table: Tensor, seq_len: int) -> Tensor:
    """One sequence's keys and values, in order: [2, seq_len, num_kv_heads, head_dim] copied out of the paged cache."""
    block_size = kv_cache.shape[2]
    num_blocks = -(-seq_len // block_size)
    return kv_cache[:, block_table[:num_blocks].long()].flatten(1, 2)[:, :seq_len]
