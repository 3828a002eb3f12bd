"""Block copy: whole cache blocks, through every layer at once (copy-on-write, and swap to and from host memory).

Algorithm   One program moves one chunk of one plane of one block. The cache of all layers is one tensor, so a block is
            2 * num_layers pieces (a key and a value piece a layer), each contiguous.
Shapes      source, target [num_layers, 2, num_blocks, block_size, num_kv_heads, head_dim], equal but for num_blocks, in
            any order of the first three dimensions that keeps a layer's two planes together: a host pool stored as
            [num_blocks, num_layers, 2, ...] is passed as `pool.movedim(0, 2)`. pairs [num_pairs, 2] int32.
Bytes       2 * num_pairs * num_layers * 2 * block_size * num_kv_heads * head_dim * itemsize (read and written).
            `cache[:, :, targets] = cache[:, :, sources]` moves twice as much: it gathers into a temporary first.
Grid        (num_pairs, 2 * num_layers, pieces of CHUNK elements).

Source and target may be one tensor if no block is both a source and a target of one call: programs run in any order.
Either may lie in pinned host memory, which the GPU reads and writes over the bus.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from pagedlab.errors import BackendError
from pagedlab.runtime.kernels.launch import launch, next_power_of_2


@triton.jit
def block_copy_kernel(
    source_ptr,
    target_ptr,
    pairs_ptr,
    source_plane_stride,
    source_block_stride,
    target_plane_stride,
    target_block_stride,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    pair = tl.program_id(0)
    plane = tl.program_id(1).to(tl.int64)
    offsets = tl.program_id(2) * CHUNK + tl.arange(0, CHUNK)
    mask = offsets < BLOCK
    source = tl.load(pairs_ptr + 2 * pair).to(tl.int64)
    target = tl.load(pairs_ptr + 2 * pair + 1).to(tl.int64)
    from_ptr = source_ptr + plane * source_plane_stride + source * source_block_stride
    to_ptr = target_ptr + plane * target_plane_stride + target * target_block_stride
    tl.store(to_ptr + offsets, tl.load(from_ptr + offsets, mask=mask), mask=mask)


def copy_blocks(source: Tensor, target: Tensor, pairs: Tensor) -> None:
    """Copy each (source block, target block) of `pairs` (on the compute device).

    Raises:
        BackendError: the two differ in dtype or shape, or are laid out in a way the kernel cannot address.
    """
    num_layers, planes, _, *block_shape = source.shape
    if source.dtype != target.dtype or (*target.shape[:2], *target.shape[3:]) != (num_layers, planes, *block_shape):
        raise BackendError(
            f"blocks of {source.dtype} {list(source.shape)} cannot be copied into {target.dtype} {list(target.shape)}: "
            "only the number of blocks may differ"
        )
    for name, tensor in (("source", source), ("target", target)):
        if not tensor[0, 0, 0].is_contiguous() or tensor.stride(0) != planes * tensor.stride(1):
            raise BackendError(f"{name} blocks are strided {tensor.stride()}: each plane of a block must be contiguous")
    num_pairs = pairs.shape[0]
    if num_pairs == 0:
        return
    block = source[0, 0, 0].numel()
    chunk = min(4096, next_power_of_2(block))
    launch(
        block_copy_kernel,
        (num_pairs, planes * num_layers, -(-block // chunk)),
        (
            source,
            target,
            pairs.contiguous(),
            source.stride(1),
            source.stride(2),
            target.stride(1),
            target.stride(2),
        ),
        {
            "BLOCK": block,
            "CHUNK": chunk,
        },
        num_warps=4,
    )
