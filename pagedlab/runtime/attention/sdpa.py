"""SdpaBackend: paged attention in plain PyTorch."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pagedlab.basics import masks
from pagedlab.runtime.attention.base import AttentionBackend, AttentionMetadata
from pagedlab.runtime.attention.reference import gather


class SdpaBackend(AttentionBackend):
    """One SDPA call a sequence over gathered keys and values."""

    name: ClassVar[str] = "sdpa"

    def attend(
        self, query: Tensor, kv_cache: Tensor, metadata: AttentionMetadata, *, scale: float, sliding_window: int | None
    ) -> Tensor:
        output = torch.empty_like(query)
        first_row = 0
        for seq, (query_len, seq_len) in enumerate(zip(metadata.query_lens_host, metadata.seq_lens_host, strict=True)):
            key, value = gather(kv_cache, metadata.block_tables[seq], seq_len).transpose(1, 2).unsqueeze(1)
            context = seq_len - query_len
            mask = masks.chunk(context, query_len)
            if sliding_window is not None:
                mask = masks.sliding_window(context, query_len, sliding_window)
            rows = slice(first_row, first_row + query_len)
            result = scaled_dot_product_attention(
                query[rows].transpose(0, 1)[None],
                key,
                value,
                mask.to(query.device),
                scale=scale,
                enable_gqa=True,
            )
            output[rows] = result[0].transpose(0, 1)
            first_row += query_len
        return output
