"""Device helpers shared by the attention kernels: from a tile of token positions to rows of the paged cache.

A tile is BLOCK_N consecutive positions of one sequence and starts at a multiple of BLOCK_N (a power of two). A cache
block holds BLOCK_SIZE positions, any multiple of 16. Neither size need divide the other: the largest power of two that
divides both, the granule, is the longest run of positions that is certain to lie in one block.

    positions   0        16        32        48        64        80        96
    blocks      |-------- table[0] ----------|-------- table[1] ----------|       BLOCK_SIZE = 48
    tiles       |------------- tile 0 -----------------|------ tile 1 ...         BLOCK_N = 64
    granules    |--------|---------|---------|---------|---------|--------|       GRANULE = 16

The lookup is two functions on purpose. Triton's software pipeliner starts the loads of later iterations early, but not
through a load whose address comes from another load of the same iteration. So a loop carries the ids of its next tile:
it turns the ids that it holds into rows, asks for the next ids, and only then loads keys and values.
"""

from __future__ import annotations

import triton
import triton.language as tl


def granule_of(block_size: int, block_n: int) -> int:
    """Largest power of two that divides both `block_size` (a multiple of 16) and `block_n` (a power of two >= 16)."""
    return min(block_size & -block_size, block_n)


def head_dim_parts(head_dim: int) -> tuple[int, int]:
    """`head_dim` as a power of two and the rest: (64, 16) for 80.

    A tile's sides are powers of two. Padding 80 to 128 would keep shared memory, copies and matrix instructions busy
    with nothing for three eighths of their work; two tiles, 64 and 16 wide, waste none of it.
    """
    main = 1 << (head_dim.bit_length() - 1)
    return main, head_dim - main


@triton.jit
def load_block_ids(table_ptr, start, end, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr, GRANULE: tl.constexpr):
    """Block ids [BLOCK_N // GRANULE] of the tile at `start`. Granules at or after `end` are not looked up: the table
    may end there."""
    granules = start // GRANULE + tl.arange(0, BLOCK_N // GRANULE)
    return tl.load(table_ptr + granules // (BLOCK_SIZE // GRANULE), mask=granules * GRANULE < end, other=0)


@triton.jit
def cache_rows(block_ids, start, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr, GRANULE: tl.constexpr):
    """Rows [BLOCK_N] int64 of the tile at `start`, in a cache seen as `[num_blocks * block_size, kv_heads, head_dim]`.

    int64 because a row is multiplied by the row's length next: a cache of 2**31 elements is only 4 GiB.
    """
    granules = start // GRANULE + tl.arange(0, BLOCK_N // GRANULE)
    first = block_ids * BLOCK_SIZE + (granules % (BLOCK_SIZE // GRANULE)) * GRANULE
    rows = first[:, None] + tl.arange(0, GRANULE)[None, :]
    return tl.reshape(rows, (BLOCK_N,)).to(tl.int64)
