"""Which rows of the paged cache a step reads, and in what order: worked out once, used by every layer.

Nothing that a sequence does not own is ever read: where a shape must be padded, the sequence's own last token is
repeated, and masked. So neither stale slots nor the null block can spoil a result (0 * NaN would).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from pagedlab.basics import masks
from pagedlab.runtime.attention.base import AttentionMetadata

PIECE = 64
"""Positions of a piece: decoding contexts are cut into pieces of one size, so that one product serves them all."""

GROUP_TOKENS = 16384
"""Most sequences x longest context that share a group: bounds a group's scratch memory, and the padding in it."""


class Decode(NamedTuple):
    """A sequence with one new token: the context that it sees, in tokens; its number; its row of the query."""

    length: int
    seq: int
    row: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """A sequence with several new tokens.

    Attributes:
        rows: its rows of the query
        blocks: the blocks it sees, in order
        keys: where its visible keys stand in those blocks laid end to end
        mask: [query_len, num_keys], 0 or -inf; None where plain causality is all
    """

    rows: slice
    blocks: Tensor
    keys: slice
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Sequences with one new token each, cut into pieces: N pieces of n sequences, W pieces in the longest.

    A "cache row" is one token's vector of one KV head: row `slot * num_kv_heads + head` of the layer's keys or values
    seen as a matrix [rows, head_dim].

    Attributes:
        rows: [n] rows of the query
        owner: [N] the sequence of each piece, 0 to n - 1
        key_rows: [N * num_kv_heads * PIECE] cache rows, piece by piece and head by head
        mask: [N * num_kv_heads, 1, PIECE] float32, -inf beyond the sequence's end
        place: [N * num_heads] where the scores of a piece and head go in `scores`
        scores: [n * num_heads * W, PIECE] float32 scratch; what no piece fills is -inf, always
        keys: [N * num_kv_heads * PIECE, head_dim] scratch
        order: the places that are filled, in increasing order: sequence by sequence, head by head
        value_rows: [N * num_heads * PIECE] cache rows in that order
        bag_starts: [n * num_heads] where each sequence's head begins in `value_rows`
    """

    rows: Tensor
    owner: Tensor
    key_rows: Tensor
    mask: Tensor
    place: Tensor
    scores: Tensor
    keys: Tensor
    order: Tensor
    value_rows: Tensor
    bag_starts: Tensor


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """What layers of one shape share."""

    decodes: list[DecodeGroup]
    chunks: list[Chunk]


class SdpaPlan:
    """The index arithmetic of one step and one window; done when the first layer shows its shapes, then kept."""

    def __init__(self, metadata: AttentionMetadata, block_size: int, window: int | None) -> None:
        # A copy: metadata.plan will be this object, and a cycle keeps a step's masks until a garbage collection.
        self.metadata = replace(metadata, plan=None)
        self.block_size = block_size
        self.window = window
        self._layers: dict[tuple[torch.Size, int], LayerPlan] = {}

    def layer(self, query: Tensor, num_kv_heads: int) -> LayerPlan:
        """The plan of layers with `num_kv_heads`, and with the other dimensions of `query`."""
        shape = (query.shape, num_kv_heads)
        if shape not in self._layers:
            self._layers[shape] = self._build(query, num_kv_heads)
        return self._layers[shape]

    def _build(self, query: Tensor, num_kv_heads: int) -> LayerPlan:
        chunks: list[Chunk] = []
        decodes: list[Decode] = []
        row = 0
        for seq, query_len in enumerate(self.metadata.query_lens_host):
            if query_len == 1:
                seq_len = self.metadata.seq_lens_host[seq]
                decodes.append(Decode(seq_len if self.window is None else min(seq_len, self.window), seq, row))
            elif query_len > 1:
                chunks.append(self._chunk(seq, slice(row, row + query_len), query.dtype))
            row += query_len
        return LayerPlan([self._decode_group(group, query, num_kv_heads) for group in _grouped(decodes)], chunks)

    def _chunk(self, seq: int, rows: slice, dtype: torch.dtype) -> Chunk:
        window = self.window
        query_len, seq_len = rows.stop - rows.start, self.metadata.seq_lens_host[seq]
        context = seq_len - query_len
        start = 0 if window is None else max(0, context + 1 - window)
        first_block, last_block = start // self.block_size, -(-seq_len // self.block_size)
        table = self.metadata.block_tables[seq, first_block:last_block]
        offset = first_block * self.block_size
        mask = None
        if context or (window is not None and window < seq_len):
            seen = (
                masks.chunk(context, query_len) if window is None else masks.sliding_window(context, query_len, window)
            )
            # SDPA would turn a boolean mask into this one in every layer.
            mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, float("-inf"))[:, start:].to(table.device)
        return Chunk(rows, table.long(), slice(start - offset, seq_len - offset), mask)

    def _decode_group(self, group: list[Decode], query: Tensor, num_kv_heads: int) -> DecodeGroup:
        _, num_heads, head_dim = query.shape
        device = query.device
        lengths, seqs, rows = torch.tensor(group, device=device).unbind(1)  # a Decode's fields
        ends = self.metadata.seq_lens.long()[seqs]
        pieces = (lengths + PIECE - 1) // PIECE
        width = -(-group[0].length // PIECE)
        owner = torch.arange(len(group), device=device).repeat_interleave(pieces)
        index = torch.arange(len(owner), device=device) - (pieces.cumsum(0) - pieces)[owner]

        end = ends[owner, None]
        position = ((ends - lengths)[owner] + index * PIECE)[:, None] + torch.arange(PIECE, device=device)
        mask = torch.zeros(position.shape, device=device).masked_fill_(position >= end, float("-inf"))
        position = torch.minimum(position, end - 1)
        blocks = self.metadata.block_tables[seqs[owner, None], position // self.block_size].long()
        slots = blocks * self.block_size + position % self.block_size

        heads = torch.arange(num_heads, device=device)
        key_rows = slots[:, None] * num_kv_heads + torch.arange(num_kv_heads, device=device)[:, None]
        place = ((owner[:, None] * num_heads + heads) * width + index[:, None]).flatten()
        order, piece_of = place.sort()
        value_rows = key_rows[:, heads // (num_heads // num_kv_heads)].flatten(0, 1)[piece_of]
        bag_sizes = (pieces * PIECE).repeat_interleave(num_heads)
        return DecodeGroup(
            rows=rows,
            owner=owner,
            key_rows=key_rows.flatten(),
            mask=mask[:, None].expand(-1, num_kv_heads, -1).reshape(-1, 1, PIECE),
            place=place,
            scores=torch.full((len(group) * num_heads * width, PIECE), float("-inf"), device=device),
            keys=torch.empty((key_rows.numel(), head_dim), dtype=query.dtype, device=device),
            order=order,
            value_rows=value_rows.flatten(),
            bag_starts=bag_sizes.cumsum(0) - bag_sizes,
        )


def _grouped(decodes: list[Decode]) -> list[list[Decode]]:
    """Longest first, so that a group's members are of similar length."""
    groups: list[list[Decode]] = []
    for decode in sorted(decodes, reverse=True):
        if groups and (len(groups[-1]) + 1) * groups[-1][0].length <= GROUP_TOKENS:
            groups[-1].append(decode)
        else:
            groups.append([decode])
    return groups
