"""Rotary embedding of queries and keys, fused with the cache write (Su et al., "RoFormer", 2021).

Algorithm   One program a token. It rotates the query heads in place and writes the rotated keys, and the values, to
            the token's slot: the rotated key exists only in the cache, where attention reads it. Dimension i of the
            first half turns with dimension i of the second (as in transformers' Llama):
                a' = a cos - b sin        b' = b cos + a sin        angle = position * inv_freq[i]
            Only the first `rotary_dim` dimensions turn; the others pass through.
Shapes      query [num_tokens, num_heads, head_dim]; key, value [num_tokens, num_kv_heads, head_dim], heads contiguous,
            rows any distance apart; cos, sin [max_positions, rotary_dim // 2] float32; positions, slot_mapping
            [num_tokens] int64; kv_cache [2, num_blocks, block_size, num_kv_heads, head_dim].
Bytes       2 * num_tokens * (num_heads + 2 * num_kv_heads) * head_dim * itemsize. Separate rotation and write move the
            keys and values twice, and launch about ten kernels. 6 FLOPs a pair.
Grid        (num_tokens,).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagedlab.runtime.kernels.launch import launch, next_power_of_2


@triton.jit
def rotate(source_ptr, target_ptr, cos, sin, HEADS: tl.constexpr, HEADS_PAD: tl.constexpr, HEAD_DIM: tl.constexpr,
           HALF: tl.constexpr, HALF_PAD: tl.constexpr):  # fmt: skip
    """Turn the first 2 * HALF dimensions of HEADS heads; `cos` and `sin` are [HALF_PAD]."""
    heads = tl.arange(0, HEADS_PAD)
    dims = tl.arange(0, HALF_PAD)
    mask = (heads < HEADS)[:, None] & (dims < HALF)[None, :]
    first = heads[:, None] * HEAD_DIM + dims[None, :]
    a = tl.load(source_ptr + first, mask=mask).to(tl.float32)
    b = tl.load(source_ptr + first + HALF, mask=mask).to(tl.float32)
    dtype = target_ptr.dtype.element_ty
    tl.store(target_ptr + first, (a * cos[None, :] - b * sin[None, :]).to(dtype), mask=mask)
    tl.store(target_ptr + first + HALF, (b * cos[None, :] + a * sin[None, :]).to(dtype), mask=mask)


@triton.jit(do_not_specialize=["num_blocks"])
def rope_cache_write_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    cache_ptr,
    cos_ptr,
    sin_ptr,
    positions_ptr,
    slots_ptr,
    query_stride,
    key_stride,
    value_stride,
    num_blocks,
    NUM_HEADS: tl.constexpr,
    NUM_HEADS_PAD: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    NUM_KV_HEADS_PAD: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    HALF_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROW_PAD: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    position = tl.load(positions_ptr + token)
    slot = tl.load(slots_ptr + token)
    angles = tl.arange(0, HALF_PAD)
    cos = tl.load(cos_ptr + position * HALF + angles, mask=angles < HALF, other=0.0)
    sin = tl.load(sin_ptr + position * HALF + angles, mask=angles < HALF, other=0.0)

    ROW: tl.constexpr = NUM_KV_HEADS * HEAD_DIM
    query = query_ptr + token * query_stride
    key = key_ptr + token * key_stride
    keys = cache_ptr + slot * ROW
    values = keys + num_blocks.to(tl.int64) * (BLOCK_SIZE * ROW)
    rotate(query, query, cos, sin, NUM_HEADS, NUM_HEADS_PAD, HEAD_DIM, HALF, HALF_PAD)
    rotate(key, keys, cos, sin, NUM_KV_HEADS, NUM_KV_HEADS_PAD, HEAD_DIM, HALF, HALF_PAD)

    columns = tl.arange(0, ROW_PAD)
    value = tl.load(value_ptr + token * value_stride + columns, mask=columns < ROW)
    tl.store(values + columns, value, mask=columns < ROW)
    if 2 * HALF < HEAD_DIM:
        still = (columns < ROW) & (columns % HEAD_DIM >= 2 * HALF)
        tl.store(keys + columns, tl.load(key + columns, mask=still), mask=still)


def rope_cache_write(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    kv_cache: Tensor,
    slot_mapping: Tensor,
) -> None:
    """Rotate `query` in place; write rotated `key`, and `value`, to their slots. `key` itself is left as it was."""
    num_tokens, num_heads, head_dim = query.shape
    if num_tokens == 0:
        return
    num_kv_heads = key.shape[1]
    half = cos.shape[1]
    launch(
        rope_cache_write_kernel,
        (num_tokens, 1, 1),
        (
            query,
            key,
            value,
            kv_cache,
            cos,
            sin,
            positions,
            slot_mapping,
            query.stride(0),
            key.stride(0),
            value.stride(0),
            kv_cache.shape[1],
        ),
        {
            "NUM_HEADS": num_heads,
            "NUM_HEADS_PAD": next_power_of_2(num_heads),
            "NUM_KV_HEADS": num_kv_heads,
            "NUM_KV_HEADS_PAD": next_power_of_2(num_kv_heads),
            "HEAD_DIM": head_dim,
            "HALF": half,
            "HALF_PAD": next_power_of_2(half),
            "BLOCK_SIZE": kv_cache.shape[2],
            "ROW_PAD": next_power_of_2(num_kv_heads * head_dim),
        },
        num_warps=4,
    )


@triton.jit
def rope_kernel(out_ptr, x_ptr, cos_ptr, sin_ptr, x_stride, HEADS: tl.constexpr, HEADS_PAD: tl.constexpr,
                HEAD_DIM: tl.constexpr, HALF: tl.constexpr, HALF_PAD: tl.constexpr):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    angles = tl.arange(0, HALF_PAD)
    row = token * HEAD_DIM + HALF + angles  # the second half: there both tables have the plain cosine and sine
    cos = tl.load(cos_ptr + row, mask=angles < HALF, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + row, mask=angles < HALF, other=0.0).to(tl.float32)
    source, target = x_ptr + token * x_stride, out_ptr + token * (HEADS * HEAD_DIM)
    rotate(source, target, cos, sin, HEADS, HEADS_PAD, HEAD_DIM, HALF, HALF_PAD)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`x` [num_tokens, heads, head_dim] rotated, whole heads; the tables are [num_tokens, 1, head_dim].

    One launch and one pass in place of three (product, roll, sum), where the cache is written separately.
    """
    num_tokens, num_heads, head_dim = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if num_tokens:
        half = head_dim // 2
        launch(
            rope_kernel,
            (num_tokens, 1, 1),
            (
                out,
                x,
                cos,
                sin,
                x.stride(0),
            ),
            {
                "HEADS": num_heads,
                "HEADS_PAD": next_power_of_2(num_heads),
                "HEAD_DIM": head_dim,
                "HALF": half,
                "HALF_PAD": next_power_of_2(half),
            },
            num_warps=4,
        )
    return out
