"""CUDA graphs for decode steps: one recorded forward pass for each batch size, replayed over fixed buffers.

A decode step of a small model is a few hundred kernels of some microseconds each; launching them one by one from
Python takes longer than running them. A graph launches all of them at once. What it costs: a graph knows only the
addresses and shapes that it was recorded with. So

- inputs are copied into buffers that never move;
- a batch is padded to the next recorded size. Padding rows write to the null block and read one slot of it, so that no
  live block is touched;
- block tables are as wide as the longest sequence the engine admits, and the number of splits is chosen for that
  length: neither can outgrow the recording.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from pagedlab.runtime.attention.base import AttentionBackend, AttentionContext, AttentionMetadata
from pagedlab.runtime.batch import RaggedBatch
from pagedlab.runtime.cache_engine import CacheEngine

Replay = Callable[[], None]
Capture = Callable[[Callable[[], None]], Replay]
"""Takes a function that launches kernels, and returns one that launches the same kernels again."""

MAX_GRAPH_SIZE = 512
"""Larger batches run without a graph: their kernels take longer than their launches."""


def graph_sizes(max_num_seqs: int) -> list[int]:
    """Batch sizes to record: 1, 2, 4, 8, then every 16 up to 256, every 64 beyond: at most half is padding, and little
    of a large batch."""
    sizes = [1, 2, 4, 8, *range(16, 257, 16), *range(320, MAX_GRAPH_SIZE + 1, 64)]
    limit = min(max_num_seqs, MAX_GRAPH_SIZE)
    return [size for size in sizes if size < limit] + [limit]


def capture_cuda_graph(launch: Callable[[], None]) -> Replay:
    """Record `launch` on a side stream, after runs that compile kernels and size workspaces."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            launch()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    return graph.replay


class DecodeGraphs:
    """Runs batches in which every sequence computes one token.

    Args:
        model: token ids, positions, attention -> hidden states.
        cache, backend, sliding_windows: as the worker's.
        max_num_seqs: largest batch to record for.
        max_model_len: longest context, tokens.
        device: of model and cache.
        capture: how to record; tests without a GPU pass a function that records nothing and calls again.
    """

    def __init__(
        self,
        model: Callable[[Tensor, Tensor, AttentionContext], Tensor],
        cache: CacheEngine,
        backend: AttentionBackend,
        sliding_windows: Iterable[int | None],
        max_num_seqs: int,
        max_model_len: int,
        device: torch.device,
        capture: Capture = capture_cuda_graph,
    ) -> None:
        self.model = model
        self.cache = cache
        self.backend = backend
        self.sliding_windows = frozenset(sliding_windows)
        self.max_model_len = max_model_len
        self.sizes = graph_sizes(max_num_seqs)
        largest = self.sizes[-1]
        width = -(-max_model_len // cache.block_size)
        pinned = device.type == "cuda"
        # Rows: token ids, positions, slots, lengths. One transfer brings all four.
        self._rows = torch.zeros(4, largest, dtype=torch.int64, device=device)
        # Two host copies in turn: while the device may still read one (a step in flight), the next fills the other.
        self._rows_hosts = [torch.zeros(4, largest, dtype=torch.int64, pin_memory=pinned) for _ in range(2)]
        # Flat, so that a table of any width is one contiguous piece: only such a transfer need not be waited for.
        self._tables_hosts = [torch.zeros(largest * width, dtype=torch.int32, pin_memory=pinned) for _ in range(2)]
        self._tables_flat = torch.zeros(largest * width, dtype=torch.int32, device=device)
        self._turn = 0
        self._tables = torch.zeros(largest, width, dtype=torch.int32, device=device)
        self._lengths = torch.ones(largest, dtype=torch.int32, device=device)
        self._starts = torch.arange(largest + 1, dtype=torch.int32, device=device)
        self._replays: dict[int, Replay] = {}
        self._outputs: dict[int, Tensor] = {}
        # The largest first: the smaller ones fit into the memory that it took.
        for size in reversed(self.sizes):
            self._record(size, capture)

    def fits(self, batch: RaggedBatch) -> bool:
        """Is this a batch of decodes only, and of a recorded size?"""
        return batch.num_tokens == batch.num_seqs <= self.sizes[-1]

    def run(self, batch: RaggedBatch, put_carried: Callable[[RaggedBatch, Tensor], None]) -> Tensor:
        """Hidden states [num_seqs, hidden_size]; valid until the next run.

        `put_carried` fills in the token ids that only the device knows.
        """
        num_seqs = batch.num_seqs
        size = self.sizes[bisect_left(self.sizes, num_seqs)]
        self._fill(batch, size)
        put_carried(batch, self._rows[0])
        self._replays[size]()
        return self._outputs[size][:num_seqs]

    def _fill(self, batch: RaggedBatch, size: int) -> None:
        """Bring the batch into the buffers, and padding rows into a state that can harm nobody.

        This turn's host buffers are free again: the step before the last ended by waiting for its tokens.
        """
        num_seqs, width = batch.block_tables.shape
        self._turn = 1 - self._turn
        rows_host, tables_host = self._rows_hosts[self._turn], self._tables_hosts[self._turn]
        tables_host = tables_host[: size * width]
        rows, tables = rows_host.numpy(), tables_host.numpy().reshape(size, width)
        for row, values in zip(
            rows, (batch.token_ids, batch.positions, batch.slot_mapping, batch.seq_lens), strict=True
        ):
            row[:num_seqs] = values
        rows[:3, num_seqs:size] = 0
        rows[3, num_seqs:size] = 1
        tables[:num_seqs] = batch.block_tables
        tables[num_seqs:size, 0] = 0
        self._rows.copy_(rows_host, non_blocking=True)
        arrived = self._tables_flat[: size * width]
        arrived.copy_(tables_host, non_blocking=True)
        self._tables[:size, :width].copy_(arrived.view(size, width))

    def _record(self, size: int, capture: Capture) -> None:
        metadata = AttentionMetadata(
            block_tables=self._tables[:size],
            query_starts=self._starts[: size + 1],
            seq_lens=self._lengths[:size],
            slot_mapping=self._rows[2, :size],
            query_lens_host=[1] * size,
            seq_lens_host=[self.max_model_len] * size,
        )
        context = AttentionContext(self.backend, self.cache.kv_caches, metadata, self.sliding_windows)

        def launch() -> None:
            self._lengths[:size].copy_(self._rows[3, :size])  # the kernels want 32 bits
            self._outputs[size] = self.model(self._rows[0, :size], self._rows[1, :size], context)

        self._rows[3] = 1
        self._replays[size] = capture(launch)
