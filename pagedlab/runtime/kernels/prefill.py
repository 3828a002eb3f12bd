"""Paged prefill attention: ragged rows of new tokens, each sequence against its cached context and its own new tokens.

Algorithm   FlashAttention-2 (Dao 2023, algorithm 1) over pages. A program takes one KV head and one tile of BLOCK_M
            rows: BLOCK_Q = BLOCK_M // group consecutive tokens of one sequence times the `group` query heads that
            share the KV head (row m is token m // group, head m % group), so a K/V tile is loaded once for all of
            them. It walks the context in tiles of BLOCK_N positions, in two loops of the same body: first the tiles
            that every row sees whole, without masks, then the few on the diagonal. With a sliding window the walk
            begins at the first position that any row sees, and all tiles are masked.
Shapes      query, out [num_tokens, num_heads, head_dim]; kv_cache [2, num_blocks, block_size, num_kv_heads, head_dim];
            block_tables [num_seqs, any width] int32; query_starts [num_seqs + 1], seq_lens [num_seqs] int32.
            Row r of sequence i stands at position seq_lens[i] - query_len[i] + r, and its K and V are in the cache.
FLOPs       4 * head_dim * num_heads * (number of visible query-key pairs); about 2 * n**2 * head_dim * num_heads for a
            causal prompt of n tokens. The diagonal tiles add (BLOCK_N + BLOCK_Q) / 2 wasted keys a row.
Bytes       Q and the output once, K and V once for each tile of BLOCK_Q tokens, mostly from L2. A tile does
            BLOCK_M FLOPs for each byte of K and V in 16 bits, so with BLOCK_M = 128 the matrix units are the limit.
Grid        (num_kv_heads, num_tokens // BLOCK_Q + num_seqs): an upper bound on the tiles that depends on the batch's
            shape only. Each program finds its sequence from `query_starts`; those past a sequence's end, and those of
            sequences with one row (decodes of a mixed batch have their own kernel), return at once. Tiles run from
            the last to the first: late tiles of a prompt see the most keys, and the longest jobs should start first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from pagedlab.runtime.kernels.launch import launch, next_power_of_2
from pagedlab.runtime.kernels.paging import cache_rows, granule_of, head_dim_parts, load_block_ids

SEARCH_CHUNK = 256
"""Sequences that a program compares with its tile in one load."""


@triton.jit
def find_sequence(query_starts_ptr, tile, num_seqs, BLOCK_Q: tl.constexpr, CHUNK: tl.constexpr):
    """The sequence that owns `tile`.

    Sequence i owns tiles query_starts[i] // BLOCK_Q + i up to those of sequence i + 1: at least as many as it needs,
    and known without a prefix sum. That start grows strictly, so the owner is the last one at or before `tile`; we
    count in one wide load instead of bisecting in log2(num_seqs) loads that wait for each other.
    """
    owner = num_seqs * 0 - 1
    for first in range(0, num_seqs, CHUNK):
        seqs = first + tl.arange(0, CHUNK)
        starts = tl.load(query_starts_ptr + seqs, mask=seqs < num_seqs, other=0)
        owner += tl.sum(((starts // BLOCK_Q + seqs <= tile) & (seqs < num_seqs)).to(tl.int32), 0)
    return owner


@triton.jit
def attend_tiles(
    acc,
    acc_tail,
    peak,
    total,
    query,
    query_tail,
    positions,
    key_ptr,
    value_ptr,
    table_ptr,
    scale,
    start,
    stop,
    first_key,
    MASKED: tl.constexpr,
    ROW: tl.constexpr,
    MAIN: tl.constexpr,
    TAIL: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GRANULE: tl.constexpr,
    WINDOW: tl.constexpr,
):
    """Online softmax over the tiles of positions [start, stop); MASKED where some row may not see some position.

    Returns the four accumulators. Without a tail, `acc_tail` and `query_tail` stand for nothing and pass through.
    """
    dims = tl.arange(0, MAIN)[None, :]
    ids = load_block_ids(table_ptr, start, stop, BLOCK_SIZE, BLOCK_N, GRANULE)
    for tile in range(start, stop, BLOCK_N):
        rows = cache_rows(ids, tile, BLOCK_SIZE, BLOCK_N, GRANULE)[:, None] * ROW
        ids = load_block_ids(table_ptr, tile + BLOCK_N, stop, BLOCK_SIZE, BLOCK_N, GRANULE)
        key_positions = tile + tl.arange(0, BLOCK_N)
        live = ((key_positions >= first_key) & (key_positions < stop))[:, None]
        keys = load_rows(key_ptr + rows + dims, live, MASKED)
        values = load_rows(value_ptr + rows + dims, live, MASKED)
        scores = tl.dot(query, tl.trans(keys), input_precision="ieee")
        if TAIL > 0:
            tail_dims = MAIN + tl.arange(0, TAIL)[None, :]
            keys_tail = load_rows(key_ptr + rows + tail_dims, live, MASKED)
            values_tail = load_rows(value_ptr + rows + tail_dims, live, MASKED)
            scores = tl.dot(query_tail, tl.trans(keys_tail), scores, input_precision="ieee")

        if MASKED:
            visible = key_positions[None, :] <= positions[:, None]
            if WINDOW > 0:
                visible = visible & (key_positions[None, :] > positions[:, None] - WINDOW)
            scores = tl.where(visible, scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1) * scale)
        base = new_peak
        if WINDOW > 0:  # a row may see nothing of the first tiles: -inf - -inf would be NaN
            base = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        shrink = tl.exp2(peak - base)
        weights = tl.exp2(scores * scale - base[:, None])  # one fused multiply-add and one exp2 an element
        total = total * shrink + tl.sum(weights, 1)
        weights = weights.to(values.dtype)
        acc = tl.dot(weights, values, acc * shrink[:, None], input_precision="ieee")
        if TAIL > 0:
            acc_tail = tl.dot(weights, values_tail, acc_tail * shrink[:, None], input_precision="ieee")
        peak = new_peak
    return acc, acc_tail, peak, total


@triton.jit
def load_rows(pointers, live, MASKED: tl.constexpr):
    """A tile of K or V; rows that no query row sees read as 0 where MASKED.

    V needs the mask as much as K: a weight of 0 times a NaN left in an unused slot would still be NaN.
    """
    if MASKED:
        return tl.load(pointers, mask=live, other=0.0)
    else:
        return tl.load(pointers)


@triton.jit(do_not_specialize=["table_stride", "num_blocks", "num_seqs"])
def paged_prefill_kernel(
    out_ptr,
    query_ptr,
    cache_ptr,
    tables_ptr,
    query_starts_ptr,
    seq_lens_ptr,
    scale,
    query_stride,
    table_stride,
    num_blocks,
    num_seqs,
    GROUP: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    MAIN: tl.constexpr,
    TAIL: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GRANULE: tl.constexpr,
    WINDOW: tl.constexpr,
    CHUNK: tl.constexpr,
):
    HEAD_DIM: tl.constexpr = MAIN + TAIL
    ROW: tl.constexpr = NUM_KV_HEADS * HEAD_DIM
    kv_head = tl.program_id(0)
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    seq = find_sequence(query_starts_ptr, tile, num_seqs, BLOCK_Q, CHUNK)
    row = tl.load(query_starts_ptr + seq)
    query_len = tl.load(query_starts_ptr + seq + 1) - row
    first_token = (tile - row // BLOCK_Q - seq) * BLOCK_Q
    if (query_len <= 1) | (first_token >= query_len):
        return
    context = tl.load(seq_lens_ptr + seq) - query_len

    members = tl.arange(0, BLOCK_M)
    tokens = first_token + members // GROUP
    positions = context + tokens
    # BLOCK_M need not be a multiple of the group: the rows left over belong to the next tile.
    mask = ((members < BLOCK_Q * GROUP) & (tokens < query_len))[:, None]
    dims = tl.arange(0, MAIN)[None, :]
    offsets = ((kv_head * GROUP + members % GROUP) * HEAD_DIM)[:, None]
    rows = (row + tokens).to(tl.int64)[:, None]
    query = tl.load(query_ptr + rows * query_stride + offsets + dims, mask=mask, other=0.0)
    acc = tl.zeros((BLOCK_M, MAIN), tl.float32)
    query_tail = query
    acc_tail = 0.0
    if TAIL > 0:
        tail_dims = MAIN + tl.arange(0, TAIL)[None, :]
        query_tail = tl.load(query_ptr + rows * query_stride + offsets + tail_dims, mask=mask, other=0.0)
        acc_tail = tl.zeros((BLOCK_M, TAIL), tl.float32)
    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)

    key_ptr = cache_ptr + kv_head * HEAD_DIM
    value_ptr = key_ptr + num_blocks.to(tl.int64) * (BLOCK_SIZE * ROW)
    table_ptr = tables_ptr + seq.to(tl.int64) * table_stride
    stop = context + tl.minimum(first_token + BLOCK_Q, query_len)
    if WINDOW > 0:
        first_key = tl.maximum(context + first_token + 1 - WINDOW, 0)
        diagonal = first_key // BLOCK_N * BLOCK_N
    else:
        first_key = 0
        diagonal = (context + first_token + 1) // BLOCK_N * BLOCK_N
        acc, acc_tail, peak, total = attend_tiles(
            acc, acc_tail, peak, total, query, query_tail, positions, key_ptr, value_ptr, table_ptr, scale,
            0, diagonal, 0, False, ROW, MAIN, TAIL, BLOCK_SIZE, BLOCK_N, GRANULE, WINDOW,
        )  # fmt: skip
    acc, acc_tail, peak, total = attend_tiles(
        acc, acc_tail, peak, total, query, query_tail, positions, key_ptr, value_ptr, table_ptr, scale,
        diagonal, stop, first_key, True, ROW, MAIN, TAIL, BLOCK_SIZE, BLOCK_N, GRANULE, WINDOW,
    )  # fmt: skip
    divisor = tl.where(total > 0, total, 1.0)[:, None]  # only rows that are not stored can have seen nothing
    out = out_ptr + rows * (NUM_KV_HEADS * GROUP * HEAD_DIM) + offsets
    tl.store(out + dims, (acc / divisor).to(out_ptr.dtype.element_ty), mask=mask)
    if TAIL > 0:
        tl.store(out + tail_dims, (acc_tail / divisor).to(out_ptr.dtype.element_ty), mask=mask)


@dataclass(frozen=True, slots=True)
class PrefillConfig:
    """Tile and launch options of the prefill kernel: rows and positions a tile."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def prefill_config(
    head_dim: int, itemsize: int, max_rows: int, max_context: int, capability: tuple[int, int]
) -> PrefillConfig:
    """`max_rows`: query rows of the longest chunk times the group; `max_context`: positions of the longest context.

    Long contexts repay large tiles, which use all of a multiprocessor's shared memory for one program. In short ones
    the wait at a program's start (table, then keys) counts, and two smaller programs hide each other's.
    """
    if itemsize > 2:
        return PrefillConfig(block_m=32, block_n=32, num_warps=4, num_stages=1)
    if capability < (9, 0):
        if head_dim > 128:
            return PrefillConfig(block_m=64, block_n=32, num_warps=8, num_stages=2)
        if max_rows <= 64 or 64 < head_dim < 128:
            return PrefillConfig(block_m=64, block_n=64 if head_dim == 80 else 32, num_warps=4, num_stages=2)
        return PrefillConfig(block_m=128, block_n=64 if head_dim <= 64 else 32, num_warps=8, num_stages=2)
    if head_dim > 128:
        if max_rows <= 64:
            return PrefillConfig(block_m=64, block_n=32, num_warps=4, num_stages=2)
        return PrefillConfig(block_m=128, block_n=64, num_warps=8, num_stages=2)
    if max_rows <= 64 or (head_dim > 96 and max_context <= 4096):
        return PrefillConfig(block_m=64, block_n=64, num_warps=4, num_stages=3)
    if head_dim > 96:
        return PrefillConfig(block_m=128, block_n=128, num_warps=8, num_stages=3)
    return PrefillConfig(block_m=128, block_n=64, num_warps=8 if head_dim > 80 else 4, num_stages=3)


def paged_prefill(
    out: Tensor,
    query: Tensor,
    kv_cache: Tensor,
    block_tables: Tensor,
    query_starts: Tensor,
    seq_lens: Tensor,
    *,
    scale: float,
    sliding_window: int | None,
    config: PrefillConfig,
) -> None:
    """Write the rows of `out` that belong to sequences with more than one query row. No host synchronisation.

    Shapes as at the top of this file; the caller has checked them (`TritonBackend.attend` does).
    """
    num_seqs = seq_lens.shape[0]
    num_tokens, num_heads, head_dim = query.shape
    _, num_blocks, block_size, num_kv_heads, _ = kv_cache.shape
    group = num_heads // num_kv_heads
    block_m = max(config.block_m, next_power_of_2(group))  # a tile holds one token's rows at least
    block_q = block_m // group
    main, tail = head_dim_parts(head_dim)
    launch(
        paged_prefill_kernel,
        (num_kv_heads, num_tokens // block_q + num_seqs, 1),
        (
            out,
            query,
            kv_cache,
            block_tables,
            query_starts,
            seq_lens,
            scale * math.log2(math.e),
            query.stride(0),
            block_tables.stride(0),
            num_blocks,
            num_seqs,
        ),
        {
            "GROUP": group,
            "NUM_KV_HEADS": num_kv_heads,
            "MAIN": main,
            "TAIL": tail,
            "BLOCK_SIZE": block_size,
            "BLOCK_M": block_m,
            "BLOCK_Q": block_q,
            "BLOCK_N": config.block_n,
            "GRANULE": granule_of(block_size, config.block_n),
            "WINDOW": sliding_window or 0,
            "CHUNK": SEARCH_CHUNK,
        },
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
