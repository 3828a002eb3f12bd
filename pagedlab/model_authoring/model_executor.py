"""ModelExecutor: turns a schedule into one ragged batch for the worker, and hands what comes back to the requests."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

from pagedlab.model_authoring.block_manager import BlockManager
from pagedlab.model_authoring.scheduler import Schedule, ScheduledRequest
from pagedlab.runtime.batch import (
    BlockOps,
    PendingStep,
    PoolingRows,
    PromptLogprobRows,
    RaggedBatch,
    StepResult,
)
from pagedlab.trace import Tracer


class StepWorker(Protocol):
    """What carries a batch out: the real Worker, or a stand-in with a cost model."""

    def execute(self, batch: RaggedBatch, ops: BlockOps) -> StepResult: ...


@runtime_checkable
class QueueingWorker(StepWorker, Protocol):
    """A worker that takes the next batch while it still computes this one, and knows what `carried` tokens are."""

    def launch(self, batch: RaggedBatch, ops: BlockOps) -> PendingStep: ...


def pack(schedule: Schedule, block_manager: BlockManager) -> RaggedBatch:
    """Concatenate the scheduled tokens of all sequences, without padding.

    Token r of sequence i goes to slot `table[position // block_size] * block_size + position % block_size`.
    """
    items = schedule.items
    block_size = block_manager.block_size
    lengths = np.fromiter((item.num_tokens for item in items), np.int64, len(items))
    seq_lens = np.fromiter((item.end for item in items), np.int32, len(items))
    starts = np.zeros(len(items) + 1, np.int32)
    np.cumsum(lengths, out=starts[1:])

    token_ids: list[int] = []
    carried: list[tuple[int, int]] = []
    block_tables = np.zeros((len(items), block_manager.blocks_for(int(seq_lens.max()))), np.int32)
    for row, item in enumerate(items):
        token_ids += item.request.token_ids[item.start : item.end]
        if item.end > item.request.num_tokens:  # its last token is in flight
            carried.append((len(token_ids), item.request.sampled_index))
            token_ids.append(0)
        num_blocks = block_manager.blocks_for(item.end)
        block_tables[row, :num_blocks] = np.frombuffer(block_manager.block_ids(item.request), np.int32, num_blocks)

    owner = np.repeat(np.arange(len(items)), lengths)
    positions = np.arange(len(token_ids)) - starts[owner] + (seq_lens - lengths)[owner]
    slots = block_tables[owner, positions // block_size].astype(np.int64) * block_size + positions % block_size
    batch = RaggedBatch(
        np.asarray(token_ids, np.int64), positions, slots, block_tables, starts, seq_lens, carried=carried
    )
    for item, first_row in zip(items, starts.tolist(), strict=False):
        _add_results_wanted(batch, item, first_row)
    return batch


def _add_results_wanted(batch: RaggedBatch, item: ScheduledRequest, first_row: int) -> None:
    request = item.request
    for sequence in item.sampled:
        batch.sampling.append(sequence.sample_at(first_row + item.num_tokens - 1))
    targets = _prompt_targets(item)
    if targets:
        batch.prompt_logprobs.append(PromptLogprobRows(first_row, targets, request.params.prompt_logprobs or 0))
    if request.pooling:
        batch.pooling.append(PoolingRows(first_row, item.num_tokens, request.pooling.pooling))


def _prompt_targets(item: ScheduledRequest) -> list[int]:
    """Prompt tokens that this item's rows predict, if they are to be scored: row r predicts the token after it."""
    request = item.request
    if request.params.prompt_logprobs is None:
        return []
    return request.prompt_token_ids[item.start + 1 : item.end + 1]


class ModelExecutor:
    """Runs schedules on a worker.

    Args:
        worker: carries out batches.
        block_manager: knows the block tables.
        tracer: receives pack, launch and forward spans.
    """

    def __init__(self, worker: StepWorker, block_manager: BlockManager, tracer: Tracer | None = None) -> None:
        self.worker = worker
        self.block_manager = block_manager
        self.tracer = tracer or Tracer()

    def execute(self, schedule: Schedule) -> StepResult:
        """One forward pass for everything in `schedule`; sampled tokens come back in the order of its items."""
        batch = self._pack(schedule)
        with self.tracer.span("forward", "runtime", num_tokens=batch.num_tokens, num_seqs=batch.num_seqs):
            result = self.worker.execute(batch, schedule.ops)
        self._deliver(schedule, result)
        return result

    def launch(self, schedule: Schedule) -> PendingStep:
        """Queue the forward pass; what is returned waits for its result. Needs a QueueingWorker."""
        batch = self._pack(schedule)
        assert isinstance(self.worker, QueueingWorker)
        with self.tracer.span("launch", "runtime", num_tokens=batch.num_tokens, num_seqs=batch.num_seqs):
            pending = self.worker.launch(batch, schedule.ops)

        def result() -> StepResult:
            with self.tracer.span("forward", "runtime", num_tokens=batch.num_tokens, num_seqs=batch.num_seqs):
                result = pending()
            self._deliver(schedule, result)
            return result

        return result

    def _pack(self, schedule: Schedule) -> RaggedBatch:
        with self.tracer.span("pack", "model_authoring"):
            return pack(schedule, self.block_manager)

    @staticmethod
    def _deliver(schedule: Schedule, result: StepResult) -> None:
        """Give prompt log-probabilities and pooled states to their requests; chunks of one prompt add up."""
        scores, pooled = iter(result.prompt_logprobs), iter(result.pooled)
        for item in schedule.items:
            request = item.request
            if targets := _prompt_targets(item):
                request.prompt_logprobs[item.start + 1 : item.start + 1 + len(targets)] = next(scores)
            if request.pooling:
                state = next(pooled)
                adds_up = request.pooling.pooling == "mean" and item.start > 0
                request.pooled = request.pooled + state if adds_up and request.pooled is not None else state
