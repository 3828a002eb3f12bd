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
class Shape:
    """What a model and its cache look like."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    sliding_window: int | None


@dataclass(frozen=True)
class Case:
    """One ragged batch: (query_len, seq_len) of each sequence."""

    shape: Shape
    lengths: tuple[tuple[int, int], ...]


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
    worst: dict[tuple[str, torch.dtype], float] = {}
    for _ in range(2 if toy else 4):  # a new shape means new kernels, and compiling takes longer than running
        shape = random_shape(draw, toy)
        for _ in range(2 if toy else 6):
            case = random_case(draw, shape, toy)
            for dtype in dtypes:
                problem = Problem(case, dtype, device, draw.randrange(2**31))
                for name in BACKENDS:
                    backend = select_backend(
                        name, device=device, dtype=dtype, head_dim=shape.head_dim, block_size=shape.block_size
                    )
                    error = problem.relative_error(backend)
                    assert error < TOLERANCE[dtype], f"{name} in {dtype} is off by {error:.2e} (relative) on {case}"
                    worst[name, dtype] = max(error, worst.get((name, dtype), 0.0))
    for (name, dtype), error in worst.items():
        print(f"{name:10s} {dtype!s:15s} worst relative error {error:.1e}")


def random_shape(draw: random.Random, toy: bool) -> Shape:
    num_kv_heads = draw.choice([1, 2] if toy else [1, 2, 3, 8])
    return Shape(
        num_heads=num_kv_heads * draw.choice([1, 3] if toy else [1, 2, 3, 4, 5, 6, 7, 8]),
        num_kv_heads=num_kv_heads,
        head_dim=64 if toy else draw.choice([64, 80, 96, 128, 256]),
        block_size=16 if toy else draw.choice([16, 16, 32, 64, 128]),
        sliding_window=draw.choice([None, None, 17, 130]),
    )


def random_case(draw: random.Random, shape: Shape, toy: bool) -> Case:
    """Decodes, whole prompts and chunks with context, at and around the edges of blocks."""
    longest = 40 if toy else draw.choice([64, 400, 1500])
    lengths = []
    for _ in range(draw.randint(1, 3 if toy else 12)):
        seq_len = draw.randint(1, longest)
        if draw.random() < 0.4:
            seq_len = max(1, seq_len // shape.block_size * shape.block_size + draw.choice([-1, 0, 1]))
        lengths.append((draw.choice([1, 1, seq_len, draw.randint(1, seq_len)]), seq_len))
    return Case(shape, tuple(lengths))


class Problem:
    """One batch in tensors, and its exact output."""

    def __init__(self, case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> None:
        self.case, self.dtype, self.device = case, dtype, device
        self.generator = torch.Generator(device).manual_seed(seed)
        model = case.shape
        block_size, scale = model.block_size, model.head_dim**-0.5
        num_tokens = sum(query_len for query_len, _ in case.lengths)
        widths = [-(-seq_len // block_size) for _, seq_len in case.lengths]
        num_blocks = 1 + sum(widths)
        order = torch.randperm(num_blocks - 1, generator=self.generator, device=device) + 1
        tables = torch.zeros(len(widths), max(widths), dtype=torch.int32, device=device)
        # A slot that nobody owns holds numbers that would drown everything else.
        shape = (2, num_blocks, block_size, model.num_kv_heads, model.head_dim)
        self.cache = torch.full(shape, 500.0, dtype=dtype, device=device)
        slots_of = self.cache.view(2, -1, model.num_kv_heads, model.head_dim)
        self.query = self._normal(num_tokens, model.num_heads)
        slots, exact, new, first = [], [], [], 0
        for row, (query_len, seq_len) in enumerate(case.lengths):
            blocks = order[sum(widths[:row]) : sum(widths[: row + 1])]
            tables[row, : widths[row]] = blocks
            own = (blocks[:, None] * block_size + torch.arange(block_size, device=device)).flatten()[:seq_len]
            past = seq_len - query_len
            keys, values = self._normal(seq_len, model.num_kv_heads), self._normal(seq_len, model.num_kv_heads)
            slots_of[0, own[:past]], slots_of[1, own[:past]] = keys[:past], values[:past]
            slots.append(own[past:])
            new.append((keys[past:], values[past:]))
            mask = masks.chunk(past, query_len)
            if model.sliding_window is not None:
                mask = masks.sliding_window(past, query_len, model.sliding_window)
            rows = self.query[first : first + query_len].double()
            exact.append(attention(rows, keys.double(), values.double(), mask.to(device), scale))
            first += query_len
        self.new_keys, self.new_values = (torch.cat(parts) for parts in zip(*new, strict=True))
        self.exact = torch.cat(exact)
        query_lens, seq_lens = zip(*case.lengths, strict=True)
        self.metadata = AttentionMetadata(
            block_tables=tables,
            query_starts=torch.tensor([0, *query_lens]).cumsum(0).int().to(device),
            seq_lens=torch.tensor(seq_lens, dtype=torch.int32, device=device),
            slot_mapping=torch.cat(slots),
            query_lens_host=list(query_lens),
            seq_lens_host=list(seq_lens),
        )

    def _normal(self, rows: int, heads: int) -> Tensor:
        shape = (rows, heads, self.case.shape.head_dim)
        return torch.randn(shape, generator=self.generator, device=self.device).to(self.dtype)

    @torch.inference_mode()
    def relative_error(self, backend: AttentionBackend) -> float:
        """||out - exact|| / ||exact||; NaN counts as infinite."""
        window = self.case.shape.sliding_window
        context = AttentionContext(backend, [self.cache.clone()], self.metadata, [window])
        poison = torch.full_like(self.query, float("nan"))
        del poison  # the allocator hands this memory to the backend's output
        out = context(
            0, self.query, self.new_keys, self.new_values, scale=self.case.shape.head_dim**-0.5, sliding_window=window
        )
        error = float((out.double() - self.exact).norm() / self.exact.norm())
        return error if error == error else float("inf")
