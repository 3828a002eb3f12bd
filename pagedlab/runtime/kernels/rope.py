"""From projection to cache in one kernel: head norms, rotary embedding, cache write (Su et al., "RoFormer", 2021).

Algorithm   One program a token. It takes the token's row of the fused projection (queries, keys, values, head by head),
            norms the query and key heads if the model does that (Qwen3), turns them by the token's position, and
            writes the rotated keys, and the values, to the token's slot: the rotated key exists only in the cache,
            where attention reads it. Dimension i of the first half turns with dimension i of the second (as in
            transformers' Llama):
                a' = a cos - b sin        b' = b cos + a sin        angle = position * inv_freq[i]
            Norm and rotation are float32 throughout; only what is stored is rounded.
Shapes      heads [num_tokens, num_heads + 2 * num_kv_heads, head_dim], the heads of a token contiguous; cos, sin
            [num_tokens, 1, head_dim] (rope.RotaryEmbedding); slot_mapping [num_tokens] int64; query out
            [num_tokens, num_heads, head_dim]; kv_cache [2, num_blocks, block_size, num_kv_heads, head_dim].
Bytes       2 * num_tokens * (num_heads + 2 * num_kv_heads) * head_dim * itemsize. Apart, the steps are five launches
            (two norms, concatenation, rotation, cache write) and move queries and keys three times. 6 FLOPs a pair
            for the rotation, 4 an element for the norm.
Grid        (num_tokens,).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagedlab.runtime.kernels.launch import launch, next_power_of_2


@triton.jit
def norm_and_rotate(source_ptr, target_ptr, weight_ptr, eps, cos, sin, NORM: tl.constexpr, HEADS: tl.constexpr,
                    HEADS_PAD: tl.constexpr, HALF: tl.constexpr, HALF_PAD: tl.constexpr):  # fmt: skip
    """HEADS heads of 2 * HALF dimensions from source to target; `cos` and `sin` are [HALF_PAD]."""
    heads = tl.arange(0, HEADS_PAD)
    dims = tl.arange(0, HALF_PAD)
    mask = (heads < HEADS)[:, None] & (dims < HALF)[None, :]
    first = heads[:, None] * (2 * HALF) + dims[None, :]
    a = tl.load(source_ptr + first, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(source_ptr + first + HALF, mask=mask, other=0.0).to(tl.float32)
    if NORM:
        scale = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / (2 * HALF) + eps)[:, None]
        a *= scale * tl.load(weight_ptr + dims, mask=dims < HALF, other=0.0).to(tl.float32)[None, :]
        b *= scale * tl.load(weight_ptr + HALF + dims, mask=dims < HALF, other=0.0).to(tl.float32)[None, :]
    dtype = target_ptr.dtype.element_ty
    tl.store(target_ptr + first, (a * cos[None, :] - b * sin[None, :]).to(dtype), mask=mask)
    tl.store(target_ptr + first + HALF, (b * cos[None, :] + a * sin[None, :]).to(dtype), mask=mask)


@triton.jit(do_not_specialize=["num_blocks"])
def rope_cache_write_kernel(
    query_ptr,
    heads_ptr,
    cache_ptr,
    cos_ptr,
    sin_ptr,
    query_norm_ptr,
    key_norm_ptr,
    slots_ptr,
    heads_stride,
    num_blocks,
    eps,
    NORM: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    NUM_HEADS_PAD: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    NUM_KV_HEADS_PAD: tl.constexpr,
    HALF: tl.constexpr,
    HALF_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROW_PAD: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token)
    angles = tl.arange(0, HALF_PAD)
    row = token * (2 * HALF) + HALF + angles  # the second half: there both tables have the plain cosine and sine
    cos = tl.load(cos_ptr + row, mask=angles < HALF, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + row, mask=angles < HALF, other=0.0).to(tl.float32)

    QUERIES: tl.constexpr = NUM_HEADS * 2 * HALF
    ROW: tl.constexpr = NUM_KV_HEADS * 2 * HALF
    source = heads_ptr + token * heads_stride
    keys = cache_ptr + slot * ROW
    values = keys + num_blocks.to(tl.int64) * (BLOCK_SIZE * ROW)
    norm_and_rotate(source, query_ptr + token * QUERIES, query_norm_ptr, eps, cos, sin,
                    NORM, NUM_HEADS, NUM_HEADS_PAD, HALF, HALF_PAD)  # fmt: skip
    norm_and_rotate(source + QUERIES, keys, key_norm_ptr, eps, cos, sin,
                    NORM, NUM_KV_HEADS, NUM_KV_HEADS_PAD, HALF, HALF_PAD)  # fmt: skip
    columns = tl.arange(0, ROW_PAD)
    value = tl.load(source + QUERIES + ROW + columns, mask=columns < ROW)
    tl.store(values + columns, value, mask=columns < ROW)


def rope_cache_write(
    heads: Tensor,
    cos: Tensor,
    sin: Tensor,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    *,
    norms: tuple[Tensor, Tensor] | None = None,
    eps: float = 0.0,
) -> Tensor:
    """Write rotated keys, and values, to their slots; return the rotated queries [num_tokens, num_heads, head_dim].

    Args:
        norms: RMSNorm weights [head_dim] of query and key heads, applied before the rotation; None for no norm.
        eps: of those norms.
    """
    num_tokens, num_rows, head_dim = heads.shape
    _, num_blocks, block_size, num_kv_heads, _ = kv_cache.shape
    num_heads = num_rows - 2 * num_kv_heads
    query = torch.empty(num_tokens, num_heads, head_dim, dtype=heads.dtype, device=heads.device)
    if num_tokens == 0:
        return query
    query_norm, key_norm = norms if norms is not None else (heads, heads)  # never read without norms
    launch(
        rope_cache_write_kernel,
        (num_tokens, 1, 1),
        (
            query,
            heads,
            kv_cache,
            cos,
            sin,
            query_norm,
            key_norm,
            slot_mapping,
            heads.stride(0),
            num_blocks,
            eps,
        ),
        {
            "NORM": norms is not None,
            "NUM_HEADS": num_heads,
            "NUM_HEADS_PAD": next_power_of_2(num_heads),
            "NUM_KV_HEADS": num_kv_heads,
            "NUM_KV_HEADS_PAD": next_power_of_2(num_kv_heads),
            "HALF": head_dim // 2,
            "HALF_PAD": next_power_of_2(head_dim // 2),
            "BLOCK_SIZE": block_size,
            "ROW_PAD": next_power_of_2(num_kv_heads * head_dim),
        },
        num_warps=4,
    )
    return query
