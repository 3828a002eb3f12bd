"""Paged decode attention: one new token a sequence against its whole cached context (flash decoding over pages).

Algorithm   A program takes one sequence, one KV head and one split of the context. The `group` query heads that share
            the KV head are the rows of one matrix, so K and V are read once for all of them (GQA packing; rows and
            head_dim are padded to powers of two, in registers and shared memory only). It walks its split in tiles of
            BLOCK_N positions: block ids -> cache rows -> K, V -> scores = q K^T -> online softmax (running peak and
            total, Milakov & Gimelshein 2018) -> acc += p V.
            One split: the program writes the output. Several: it writes its normalised result and the base-2
            log-sum-exp of its scores, and a second kernel weighs the splits by 2**(lse - max lse) (Dao et al.,
            "Flash-Decoding", 2023). A context that fits one split skips both steps.
            Memory hands out lines of 128 bytes. Where a head's row is no whole number of lines
            (head_dim 80 or 96 in 16 bits), a program takes PACK = 2 neighbouring KV heads as if they were one head of
            twice the width, with zeros in the queries where a query head and the other KV head meet: no line is
            fetched for two programs.
Shapes      query, out [num_tokens, num_heads, head_dim]; kv_cache [2, num_blocks, block_size, num_kv_heads, head_dim];
            block_tables [num_seqs, any width] int32; query_starts [num_seqs + 1], seq_lens [num_seqs] int32;
            partial [num_seqs, num_splits, num_heads, head_dim] and lse [num_seqs, num_splits, num_heads] float32.
Bytes       K and V once: 2 * sum(seq_lens) * num_kv_heads * head_dim * itemsize. All else is small: splits add
            8 * head_dim bytes a query head and split, most of it still in L2 when the merge reads it.
FLOPs       4 * sum(seq_lens) * num_heads * head_dim, so `group` FLOPs a byte in 16 bits: an H100 would need a group
            above 200 before arithmetic, not memory, were the limit. The floor is bytes / copy bandwidth.
Grid        (num_kv_heads / PACK, num_splits, num_seqs). KV heads run fastest: their rows of one token lie side by side
            in memory. Lengths are read on the device, so a captured graph serves any lengths; sequences with other
            than one query row (prefill chunks of a mixed batch, padding) return at once, as do splits without a
            position.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from pagedlab.runtime.kernels.launch import launch, next_power_of_2
from pagedlab.runtime.kernels.paging import cache_rows, granule_of, load_block_ids
from pagedlab.runtime.kernels.splits import Splits, SplitWorkspace

TILE_BYTES = 16384
"""K (or V) bytes of one tile in shared memory."""

LINE_BYTES = 128
"""Bytes that memory hands out at once."""

STAGES = 3
"""Tiles of a program that are under way or in use: one computed on while two are fetched."""

MAX_REGISTERS = 168
"""Registers a thread may take: three programs of four warps, as many as fit by shared memory, have 170. Said aloud, or
the assembler aims at more programs than can ever fit, and spills for them."""

MERGE_CHUNK, MERGE_WARPS = 16, 1
"""Splits merged at a time, and warps a program of the merge."""


@triton.jit
def split_bounds(seq_len, split, num_splits, min_split, BLOCK_N: tl.constexpr, WINDOW: tl.constexpr):
    """First position and end of one split, and how many splits of this sequence hold a position.

    Splits are whole tiles and at least `min_split` positions: a short sequence uses fewer splits than the grid offers.
    """
    first = seq_len * 0
    if WINDOW > 0:
        first = tl.maximum(seq_len - WINDOW, 0) // BLOCK_N * BLOCK_N
    tiles = tl.cdiv(tl.cdiv(seq_len - first, num_splits), BLOCK_N)
    length = tl.maximum(tiles * BLOCK_N, min_split)
    start = first + split * length
    return start, tl.minimum(start + length, seq_len), tl.cdiv(seq_len - first, length)


@triton.jit(do_not_specialize=["table_stride", "num_blocks", "min_split"])
def paged_decode_kernel(
    out_ptr,
    partial_ptr,
    lse_ptr,
    query_ptr,
    cache_ptr,
    tables_ptr,
    query_starts_ptr,
    seq_lens_ptr,
    scale,
    query_stride,
    table_stride,
    num_blocks,
    min_split,
    GROUP: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PACK: tl.constexpr,
    HEADS_PAD: tl.constexpr,
    WIDTH_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GRANULE: tl.constexpr,
    WINDOW: tl.constexpr,
    SPLIT: tl.constexpr,
):
    kv_head = tl.program_id(0) * PACK
    split = tl.program_id(1)
    seq = tl.program_id(2)
    num_splits = tl.num_programs(1)

    row = tl.load(query_starts_ptr + seq)
    query_len = tl.load(query_starts_ptr + seq + 1) - row
    seq_len = tl.load(seq_lens_ptr + seq)
    start, end, used = split_bounds(seq_len, split, num_splits, min_split, BLOCK_N, WINDOW)
    # Split 0 stays even when the context is empty (padding of a captured batch): its row must be written.
    if (query_len != 1) | ((split > 0) & (start >= end)):
        return

    heads = tl.arange(0, HEADS_PAD)
    dims = tl.arange(0, WIDTH_PAD)
    head_mask = heads < PACK * GROUP
    dim_mask = dims < PACK * HEAD_DIM
    # Query head h belongs to KV head h // GROUP of the pack, whose dimensions begin at column (h // GROUP) * HEAD_DIM.
    row_mask = head_mask[:, None] & dim_mask[None, :]
    columns = dims[None, :]
    if PACK > 1:
        row_mask = row_mask & (heads[:, None] // GROUP == dims[None, :] // HEAD_DIM)
        columns = dims[None, :] % HEAD_DIM
    row_offsets = (kv_head * GROUP + heads)[:, None] * HEAD_DIM + columns
    query = tl.load(query_ptr + row.to(tl.int64) * query_stride + row_offsets, mask=row_mask, other=0.0)

    ROW: tl.constexpr = NUM_KV_HEADS * HEAD_DIM
    key_ptr = cache_ptr + kv_head * HEAD_DIM
    value_ptr = key_ptr + num_blocks.to(tl.int64) * (BLOCK_SIZE * ROW)
    table_ptr = tables_ptr + seq.to(tl.int64) * table_stride

    acc = tl.zeros((HEADS_PAD, WIDTH_PAD), tl.float32)
    peak = tl.full((HEADS_PAD,), float("-inf"), tl.float32)
    total = tl.zeros((HEADS_PAD,), tl.float32)

    ids = load_block_ids(table_ptr, start, end, BLOCK_SIZE, BLOCK_N, GRANULE)
    for tile in range(start, end, BLOCK_N):
        rows = cache_rows(ids, tile, BLOCK_SIZE, BLOCK_N, GRANULE)
        ids = load_block_ids(table_ptr, tile + BLOCK_N, end, BLOCK_SIZE, BLOCK_N, GRANULE)
        positions = tile + tl.arange(0, BLOCK_N)
        visible = positions < end
        if WINDOW > 0:
            visible = visible & (positions >= seq_len - WINDOW)
        # V is masked like K: a weight of 0 times a NaN left in an unused slot would still be NaN.
        mask = visible[:, None] & dim_mask[None, :]
        offsets = rows[:, None] * ROW + dims[None, :]
        keys = tl.load(key_ptr + offsets, mask=mask, other=0.0)
        values = tl.load(value_ptr + offsets, mask=mask, other=0.0)

        scores = tl.dot(query, tl.trans(keys), input_precision="ieee") * scale
        scores = tl.where(visible[None, :], scores, float("-inf"))
        # Every tile of a split holds a visible position, so the new peak is finite and -inf - -inf cannot arise.
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        shrink = tl.exp2(peak - new_peak)
        weights = tl.exp2(scores - new_peak[:, None])
        total = total * shrink + tl.sum(weights, 1)
        acc = tl.dot(weights.to(values.dtype), values, acc * shrink[:, None], input_precision="ieee")
        peak = new_peak

    acc = acc / tl.where(total > 0, total, 1.0)[:, None]  # an empty context gives zeros
    out = out_ptr + row.to(tl.int64) * (NUM_KV_HEADS * GROUP * HEAD_DIM) + row_offsets
    if SPLIT:
        if used > 1:
            first_head = (seq * num_splits + split).to(tl.int64) * (NUM_KV_HEADS * GROUP) + kv_head * GROUP
            partial = partial_ptr + first_head * HEAD_DIM + heads[:, None] * HEAD_DIM + columns
            tl.store(lse_ptr + first_head + heads, peak + tl.log2(total), mask=head_mask)
            tl.store(partial, acc, mask=row_mask)
        else:
            tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=row_mask)
    else:
        tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=row_mask)


@triton.jit(do_not_specialize=["num_splits", "min_split"])
def merge_splits_kernel(
    out_ptr,
    partial_ptr,
    lse_ptr,
    query_starts_ptr,
    seq_lens_ptr,
    num_splits,
    min_split,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_PAD: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Grid (num_heads, num_seqs): one head's splits, CHUNK at a time, by the same online softmax as within a split."""
    head = tl.program_id(0)
    seq = tl.program_id(1)
    num_heads = tl.num_programs(0)
    row = tl.load(query_starts_ptr + seq)
    query_len = tl.load(query_starts_ptr + seq + 1) - row
    seq_len = tl.load(seq_lens_ptr + seq)
    _, _, used = split_bounds(seq_len, 0, num_splits, min_split, BLOCK_N, WINDOW)
    if (query_len != 1) | (used <= 1):
        return

    dims = tl.arange(0, HEAD_DIM_PAD)
    dim_mask = dims < HEAD_DIM
    acc = tl.zeros((HEAD_DIM_PAD,), tl.float32)
    peak = tl.min(tl.full((CHUNK,), float("-inf"), tl.float32), 0)
    total = tl.sum(tl.zeros((CHUNK,), tl.float32), 0)
    for first in range(0, used, CHUNK):
        splits = first + tl.arange(0, CHUNK)
        rows = (seq * num_splits + splits).to(tl.int64) * num_heads + head
        lse = tl.load(lse_ptr + rows, mask=splits < used, other=float("-inf"))
        mask = (splits < used)[:, None] & dim_mask[None, :]
        part = tl.load(partial_ptr + rows[:, None] * HEAD_DIM + dims[None, :], mask=mask, other=0.0)
        new_peak = tl.maximum(peak, tl.max(lse, 0))
        shrink = tl.exp2(peak - new_peak)
        weights = tl.exp2(lse - new_peak)
        total = total * shrink + tl.sum(weights, 0)
        acc = acc * shrink + tl.sum(part * weights[:, None], 0)
        peak = new_peak
    acc = acc / total
    out_row = out_ptr + (row.to(tl.int64) * num_heads + head) * HEAD_DIM
    tl.store(out_row + dims, acc.to(out_ptr.dtype.element_ty), mask=dim_mask)


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """Tile and launch options of the decode kernel: positions a tile, and KV heads a program."""

    block_n: int
    num_warps: int
    num_stages: int
    pack: int = 1


def decode_config(head_dim: int, num_kv_heads: int, itemsize: int) -> DecodeConfig:
    """A tile of 16 KiB of K and as much of V: two programs of three stages keep a multiprocessor's memory port busy."""
    whole_lines = head_dim * itemsize % LINE_BYTES == 0
    pack = 1 if whole_lines or num_kv_heads % 2 or head_dim > 128 else 2
    row_bytes = next_power_of_2(pack * head_dim) * itemsize
    block_n = max(16, min(128, TILE_BYTES // row_bytes))
    return DecodeConfig(block_n, num_warps=4, num_stages=STAGES, pack=pack)


def resident_programs(num_multiprocessors: int, shared_memory: int) -> int:
    """Programs that the chip runs at once; `shared_memory` in bytes a multiprocessor. Each buffers STAGES - 1 tiles."""
    return num_multiprocessors * max(1, shared_memory // ((STAGES - 1) * 2 * TILE_BYTES + 4096))


def paged_decode(
    out: Tensor,
    query: Tensor,
    kv_cache: Tensor,
    block_tables: Tensor,
    query_starts: Tensor,
    seq_lens: Tensor,
    *,
    scale: float,
    sliding_window: int | None,
    splits: Splits,
    workspace: SplitWorkspace,
    config: DecodeConfig | None = None,
) -> None:
    """Write the rows of `out` that belong to sequences with exactly one query row. No host synchronisation.

    Shapes as at the top of this file; the caller has checked them (`TritonBackend.attend` does).
    """
    num_seqs = seq_lens.shape[0]
    _, num_heads, head_dim = query.shape
    _, num_blocks, block_size, num_kv_heads, _ = kv_cache.shape
    config = config or decode_config(head_dim, num_kv_heads, query.element_size())
    group = num_heads // num_kv_heads
    window = sliding_window or 0
    split = splits.count > 1
    partial, lse = out, out  # not touched by a launch without splits
    if split:
        partial, lse = workspace.reserve(num_seqs * splits.count * num_heads, head_dim, query.device)
    launch(
        paged_decode_kernel,
        (num_kv_heads // config.pack, splits.count, num_seqs),
        (
            out,
            partial,
            lse,
            query,
            kv_cache,
            block_tables,
            query_starts,
            seq_lens,
            scale * math.log2(math.e),
            query.stride(0),
            block_tables.stride(0),
            num_blocks,
            splits.shortest,
        ),
        {
            "GROUP": group,
            "NUM_KV_HEADS": num_kv_heads,
            "HEAD_DIM": head_dim,
            "PACK": config.pack,
            "HEADS_PAD": next_power_of_2(config.pack * group),
            "WIDTH_PAD": next_power_of_2(config.pack * head_dim),
            "BLOCK_SIZE": block_size,
            "BLOCK_N": config.block_n,
            "GRANULE": granule_of(block_size, config.block_n),
            "WINDOW": window,
            "SPLIT": split,
        },
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        maxnreg=MAX_REGISTERS,
    )
    if split:
        launch(
            merge_splits_kernel,
            (num_heads, num_seqs, 1),
            (
                out,
                partial,
                lse,
                query_starts,
                seq_lens,
                splits.count,
                splits.shortest,
            ),
            {
                "HEAD_DIM": head_dim,
                "HEAD_DIM_PAD": next_power_of_2(head_dim),
                "BLOCK_N": config.block_n,
                "WINDOW": window,
                "CHUNK": MERGE_CHUNK,
            },
            num_warps=MERGE_WARPS,
        )
