"""Every attention backend on random ragged batches against dense attention in float64. Used by gpu_check.

Inputs are fresh at each run. Outputs are poisoned before each call and unused slots of the cache hold large values, so
that an element that was not written, or a slot that should not have been read, shows.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from pagedlab.basics import masks
from pagedlab.basics.attention import attention
from pagedlab.runtime.attention.base import AttentionBackend, AttentionContext, AttentionMetadata
from pagedlab.runtime.attention.registry import BACKENDS, select_backend

TOLERANCE = {torch.float32: 2e-3, torch.float16: 4e-3, torch.bfloat16: 2e-2}
"""Largest relative error ||out - exact|| / ||exact||. On a GPU float32 products may go through TF32 (about 3e-4)."""


@dataclass(frozen=True)
class Case:
    """One ragged batch: (query_len, seq_len) of each sequence, and the model's shape."""

    lengths: tuple[tuple[int, int], ...]
    num_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    sliding_window: int | None


def check_backends(toy: bool) -> None:
    """Run all backends that work here over random cases.

    Raises:
        AssertionError: a backend is wrong; the message names it and the case.
    """
    seed = time.time_ns() % 2**31
    print(f"seed {seed}")
    draw = random.Random(seed)
    device = torch.device("cpu" if toy else "cuda")
    dtypes = [torch.float32, torch.float16] if toy else [torch.float32, torch.float16, torch.bfloat16]
    cases = [random_case(draw, toy) for _ in range(3 if toy else 40)]
    for name in BACKENDS:
        for dtype in dtypes:
            worst = 0.0
            for case in cases:
                backend = select_backend(
                    name, device=device, dtype=dtype, head_dim=case.head_dim, block_size=case.block_size
                )
                error = relative_error(backend, case, dtype, device, draw.randrange(2**31))
                assert error < TOLERANCE[dtype], f"{name} in {dtype} is off by {error:.2e} (relative) on {case}"
                worst = max(worst, error)
            print(f"{name:10s} {str(dtype):15s} {len(cases)} batches, worst relative error {worst:.1e}")


def random_case(draw: random.Random, toy: bool) -> Case:
    """Decodes, whole prompts and chunks with context, at and around the edges of blocks."""
    block_size = 16 if toy else draw.choice([16, 16, 32, 64, 128])
    longest = 40 if toy else draw.choice([64, 700, 3000])
    lengths = []
    for _ in range(draw.randint(1, 3 if toy else 24)):
        seq_len = draw.randint(1, longest)
        if draw.random() < 0.4:
            seq_len = max(1, seq_len // block_size * block_size + draw.choice([-1, 0, 1]))
        lengths.append((draw.choice([1, 1, seq_len, draw.randint(1, seq_len)]), seq_len))
    num_kv_heads = draw.choice([1, 2] if toy else [1, 2, 3, 8])
    return Case(
        lengths=tuple(lengths),
        num_heads=num_kv_heads * draw.choice([1, 3] if toy else [1, 2, 3, 4, 5, 6, 7, 8]),
        num_kv_heads=num_kv_heads,
        head_dim=64 if toy else draw.choice([64, 80, 96, 128, 256]),
        block_size=block_size,
        sliding_window=draw.choice([None, None, 17, 130]),
    )


def relative_error(backend: AttentionBackend, case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> float:
    """||out - exact|| / ||exact|| of one batch; NaN counts as infinite."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    num_tokens = sum(query_len for query_len, _ in case.lengths)
    widths = [-(-seq_len // case.block_size) for _, seq_len in case.lengths]
    num_blocks = 1 + sum(widths)
    order = (torch.randperm(num_blocks - 1, generator=generator) + 1).tolist()
    tables = torch.zeros(len(widths), max(widths), dtype=torch.int32)
    for row, width in enumerate(widths):
        tables[row, :width] = torch.tensor([order.pop() for _ in range(width)])
    # A slot that nobody owns holds numbers that would drown everything else.
    cache = torch.full((2, num_blocks, case.block_size, case.num_kv_heads, case.head_dim), 500.0, dtype=dtype)
    query = normal(num_tokens, case.num_heads, case.head_dim)
    new_key, new_value = (normal(num_tokens, case.num_kv_heads, case.head_dim) for _ in range(2))
    slots, exact = [], []
    first = 0
    for row, (query_len, seq_len) in enumerate(case.lengths):
        own = torch.tensor([int(tables[row, p // case.block_size]) * case.block_size + p % case.block_size
                            for p in range(seq_len)])  # fmt: skip
        rows, past = slice(first, first + query_len), seq_len - query_len
        keys, values = (
            normal(seq_len, case.num_kv_heads, case.head_dim),
            normal(seq_len, case.num_kv_heads, case.head_dim),
        )
        keys[past:], values[past:] = new_key[rows], new_value[rows]
        flat = cache.view(2, -1, case.num_kv_heads, case.head_dim)
        flat[0, own[:past]], flat[1, own[:past]] = keys[:past], values[:past]
        slots.append(own[past:])
        mask = masks.chunk(past, query_len)
        if case.sliding_window is not None:
            mask = masks.sliding_window(past, query_len, case.sliding_window)
        exact.append(attention(query[rows].double(), keys.double(), values.double(), mask, case.head_dim**-0.5))
        first += query_len
    metadata = AttentionMetadata(
        block_tables=tables.to(device),
        query_starts=torch.tensor([0, *(q for q, _ in case.lengths)]).cumsum(0).int().to(device),
        seq_lens=torch.tensor([n for _, n in case.lengths], dtype=torch.int32, device=device),
        slot_mapping=torch.cat(slots).to(device),
        query_lens_host=[q for q, _ in case.lengths],
        seq_lens_host=[n for _, n in case.lengths],
    )
    context = AttentionContext(backend, [cache.to(device)], metadata, [case.sliding_window])
    poison = torch.full_like(query, float("nan"), device=device)
    del poison  # the allocator hands this memory to the backend's output
    with torch.inference_mode():
        out = context(
            0,
            query.to(device),
            new_key.to(device),
            new_value.to(device),
            scale=case.head_dim**-0.5,
            sliding_window=case.sliding_window,
        )
    expected = torch.cat(exact)
    error = float((out.double().cpu() - expected).norm() / expected.norm())
    return error if error == error else float("inf")
