"""Cache write: each new token's keys and values go to the slot that the block manager gave it.

Algorithm   One program a token. It reads the token's slot (block id * block size + offset) and copies two rows of
            num_kv_heads * head_dim elements: the key row into plane 0 of the cache, the value row into plane 1.
Shapes      key, value [num_tokens, num_kv_heads, head_dim], heads contiguous, rows any distance apart (so they may be
            views into a fused QKV projection); kv_cache [2, num_blocks, block_size, num_kv_heads, head_dim];
            slot_mapping [num_tokens] int64.
Bytes       4 * num_tokens * num_kv_heads * head_dim * itemsize (K and V, read and written), plus 8 a token. No FLOPs.
            A token's row is a few KiB, so short batches cost a launch and long ones run at copy bandwidth.
Grid        (num_tokens,): depends on the shape only, so a captured CUDA graph replays it for any slots.

Two rows of one batch must not share a slot, except in the null block, where nobody reads.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from pagedlab.runtime.kernels.launch import launch, next_power_of_2


@triton.jit(do_not_specialize=["num_blocks"])
def cache_write_kernel(
    key_ptr,
    value_ptr,
    cache_ptr,
    slots_ptr,
    key_stride,
    value_stride,
    num_blocks,
    BLOCK_SIZE: tl.constexpr,
    ROW: tl.constexpr,
    ROW_PAD: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, ROW_PAD)
    mask = columns < ROW
    slot = tl.load(slots_ptr + token)
    key = tl.load(key_ptr + token * key_stride + columns, mask=mask)
    value = tl.load(value_ptr + token * value_stride + columns, mask=mask)
    keys = cache_ptr + slot * ROW
    values = keys + num_blocks.to(tl.int64) * (BLOCK_SIZE * ROW)
    tl.store(keys + columns, key, mask=mask)
    tl.store(values + columns, value, mask=mask)


def cache_write(key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor) -> None:
    """Launch over all tokens. Shapes as above; the caller has checked them (`TritonBackend.write` does)."""
    num_tokens, num_kv_heads, head_dim = key.shape
    if num_tokens == 0:
        return
    row = num_kv_heads * head_dim
    launch(
        cache_write_kernel,
        (num_tokens, 1, 1),
        (
            key,
            value,
            kv_cache,
            slot_mapping,
            key.stride(0),
            value.stride(0),
            kv_cache.shape[1],
        ),
        {
            "BLOCK_SIZE": kv_cache.shape[2],
            "ROW": row,
            "ROW_PAD": next_power_of_2(row),
        },
        num_warps=4 if row <= 2048 else 8,
    )
