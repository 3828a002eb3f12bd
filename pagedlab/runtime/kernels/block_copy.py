"""Block copy: whole cache blocks, through every layer at once (copy-on-write, and swap to and from host memory).

Algorithm   One program moves one chunk of one plane of one block. The cache of all layers is one tensor, so a block is
            2 * num_layers pieces (a key and a value piece a layer), each contiguous.
Shapes      source, target [num_layers, 2, num_blocks, block_size, num_kv_heads, head_dim], equal but for num_blocks;
            pairs [num_pairs, 2] int32 of (source block, target block).
Bytes       2 * num_pairs * num_layers * 2 * block_size * num_kv_heads * head_dim * itemsize (read and written).
            `cache[:, :, targets] = cache[:, :, sources]` moves twice as much: it gathers into a temporary first.
Grid        (num_pairs, 2 * num_layers, pieces of CHUNK elements).

Source and target may be the same tensor if no block is both a source and a target of one call: programs run in any
order. Either may lie in pinned host memory, which the GPU reads and writes over the bus.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit(do_not_specialize=["source_blocks", "target_blocks"])
def block_copy_kernel(
    source_ptr,
    target_ptr,
    pairs_ptr,
    source_blocks,
    target_blocks,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    pair = tl.program_id(0)
    plane = tl.program_id(1).to(tl.int64)
    offsets = tl.program_id(2) * CHUNK + tl.arange(0, CHUNK)
    mask = offsets < BLOCK
    source = tl.load(pairs_ptr + 2 * pair)
    target = tl.load(pairs_ptr + 2 * pair + 1)
    data = tl.load(source_ptr + (plane * source_blocks + source) * BLOCK + offsets, mask=mask)
    tl.store(target_ptr + (plane * target_blocks + target) * BLOCK + offsets, data, mask=mask)


def copy_blocks(source: Tensor, target: Tensor, pairs: Tensor) -> None:
    """Copy each (source block, target block) of `pairs`; all tensors contiguous, `pairs` on the compute device."""
    num_pairs = pairs.shape[0]
    if num_pairs == 0:
        return
    num_layers, _, source_blocks, *block_shape = source.shape
    block = block_shape[0] * block_shape[1] * block_shape[2]
    chunk = min(4096, triton.next_power_of_2(block))
    block_copy_kernel[(num_pairs, 2 * num_layers, triton.cdiv(block, chunk))](
        source,
        target,
        pairs,
        source_blocks,
        target.shape[2],
        BLOCK=block,
        CHUNK=chunk,
        num_warps=4,
    )
