"""AttentionSocket: an attention backend made of a reader's mask, a reader's paged attention, or both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from pagedlab.basics.attention import attention as dense_attention
from pagedlab.course.capstone.watch import Watch
from pagedlab.runtime.attention.base import AttentionBackend, AttentionMetadata
from pagedlab.runtime.attention.reference import gather


class AttentionSocket(AttentionBackend):
    """Keys and values are written by the engine; attention over them is the reader's.

    Where the reader brings one of the two, the other is the course's own: causal mask, gather and dense attention.
    """

    name: ClassVar[str] = "capstone"

    def __init__(self, mask: Callable[..., Any] | None, attention: Callable[..., Any] | None, watch: Watch) -> None:
        self.mask_part = mask
        self.attention_part = attention
        self.watch = watch

    def attend(
        self, query: Tensor, kv_cache: Tensor, metadata: AttentionMetadata, *, scale: float, sliding_window: int | None
    ) -> Tensor:
        arguments = (
            query,
            kv_cache[0],
            kv_cache[1],
            metadata.block_tables.long(),
            metadata.query_starts.long(),
            metadata.seq_lens.long(),
            scale,
            self.mask,
        )
        if self.attention_part is None:
            return plain_attention(*arguments)
        before = self.watch.calls["mask"]
        output = self.watch.call("attention", "attention", self.attention_part, *arguments)
        if self.mask_part is not None and self.watch.calls["mask"] == before:
            self.watch.fail("attention", "it never called mask(query_positions, key_positions), so your mask is idle.")
        return self.checked_output(output, query)

    def mask(self, query_positions: Any, key_positions: Any) -> Tensor:
        """What the attention is given to call: the reader's mask, looked at before it is used."""
        queries, keys = (torch.as_tensor(positions).flatten() for positions in (query_positions, key_positions))
        if self.mask_part is None:
            return keys[None, :] <= queries[:, None]
        allowed = self.watch.call("mask", "mask", self.mask_part, queries, keys)
        if not isinstance(allowed, Tensor):
            allowed = torch.as_tensor(allowed) if hasattr(allowed, "__array__") or isinstance(allowed, list) else None
        if allowed is None or allowed.dtype != torch.bool:
            kind = "nothing a mask could be" if allowed is None else f"numbers of type {allowed.dtype}"
            self.watch.fail("mask", f"it returned {kind}: return truth values, True where a query may look.")
        if allowed.shape != (len(queries), len(keys)):
            self.watch.fail(
                "mask",
                f"it returned shape {list(allowed.shape)} for {len(queries)} queries and {len(keys)} keys: rows are "
                f"queries and columns are keys, [{len(queries)}, {len(keys)}].",
            )
        empty = (~allowed.any(dim=1)).nonzero().flatten().tolist()
        if empty:
            self.watch.fail(
                "mask",
                f"the query at position {int(queries[empty[0]])} may look at no key at all, not even its own: the "
                "softmax over nothing is NaN.",
            )
        return allowed

    def checked_output(self, output: Any, query: Tensor) -> Tensor:
        if not isinstance(output, Tensor):
            if not hasattr(output, "__array__"):
                self.watch.fail("attention", f"it returned a {type(output).__name__}: return a tensor like query.")
            output = torch.as_tensor(output)
        if output.shape != query.shape:
            self.watch.fail(
                "attention", f"it returned shape {list(output.shape)}: it must be that of query, {list(query.shape)}."
            )
        if not output.isfinite().all():
            row = int((~output.isfinite().flatten(1).all(dim=1)).nonzero()[0])
            self.watch.fail(
                "attention",
                f"row {row} of {len(query)} is not finite: a softmax over no key, over slots that nobody has written, "
                "or a row that was never filled in.",
            )
        return output.to(query.dtype)


def plain_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    query_starts: Tensor,
    seq_lens: Tensor,
    scale: float,
    mask: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Paged attention by its definition, one sequence after another (chapter 07), under whatever mask is given."""
    output = torch.empty_like(query)
    for seq, seq_len in enumerate(seq_lens.tolist()):
        rows = slice(int(query_starts[seq]), int(query_starts[seq + 1]))
        positions = torch.arange(seq_len - (rows.stop - rows.start), seq_len)
        key, value = gather(torch.stack([key_cache, value_cache]), block_tables[seq], seq_len)
        output[rows] = dense_attention(query[rows], key, value, mask(positions, torch.arange(seq_len)), scale)
    return output
