"""Worker: one device's model, KV cache and attention backend; carries out one ragged batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from pagedlab.runtime.attention.base import AttentionBackend, AttentionContext, AttentionMetadata
from pagedlab.runtime.batch import BlockOps, PendingStep, PromptLogprobRows, RaggedBatch, StepResult, TokenLogprobs
from pagedlab.runtime.cache_engine import CacheEngine
from pagedlab.runtime.decode_graphs import DecodeGraphs
from pagedlab.runtime.sampler import SampledRows, Sampler, score_prompt

PROMPT_LOGPROB_ROWS = 256
"""Prompt rows scored at once: bounds the logits at 256 x vocabulary floats."""


class Model(Protocol):
    """What the worker needs of a model (pagedlab.model_authoring.models.transformer.CausalLM has it)."""

    def __call__(self, token_ids: Tensor, positions: Tensor, attention: Callable[..., Tensor]) -> Tensor: ...

    def compute_logits(self, hidden: Tensor) -> Tensor: ...


class Worker:
    """Runs the model over the paged cache and samples.

    Args:
        model: on `device`, with weights.
        cache: the KV tensors.
        backend: attention over them.
        sliding_windows: of the model's layers; None is full attention.
    """

    def __init__(
        self,
        model: Model | Any,
        cache: CacheEngine,
        backend: AttentionBackend,
        device: torch.device,
        sliding_windows: Iterable[int | None] = (None,),
    ) -> None:
        self.model = model
        self.cache = cache
        self.backend = backend
        self.device = device
        self.sliding_windows = frozenset(sliding_windows)
        self.sampler = Sampler()
        self.graphs: DecodeGraphs | None = None
        self._sampled: SampledRows | None = None
        """Of the newest step: the next one may continue from its tokens."""

    def execute(self, batch: RaggedBatch, ops: BlockOps) -> StepResult:
        """`launch`, and wait for the result."""
        return self.launch(batch, ops)()

    @torch.inference_mode()
    def launch(self, batch: RaggedBatch, ops: BlockOps) -> PendingStep:
        """Move blocks, run the forward pass, sample. On a GPU all of it is queued, and the host goes on.

        Only rows that are sampled, scored or pooled go on to the vocabulary: most rows of a prompt need no logits.
        """
        self.apply(ops)
        hidden = self.forward(batch)
        sampled = None
        if batch.sampling:
            rows = [row.row for row in batch.sampling]
            # A decode step samples from every row: nothing to gather.
            picked = hidden if rows == list(range(len(hidden))) else hidden[self._to_device(rows)]
            sampled = self.sampler.start(self.model.compute_logits(picked), batch.sampling)
        prompt_logprobs = [self._score(hidden, rows) for rows in batch.prompt_logprobs]
        pooled = []
        for span in batch.pooling:
            states = hidden[span.first_row : span.first_row + span.num_rows].float()
            pooled.append((states[-1] if span.kind == "last" else states.sum(0)).cpu())
        self._sampled = sampled  # last: had anything raised, the next step would go on from the step before this one

        def result() -> StepResult:
            result = sampled.result() if sampled is not None else StepResult([])
            result.prompt_logprobs, result.pooled = prompt_logprobs, pooled
            return result

        return result

    def apply(self, ops: BlockOps) -> None:
        """Carry out block moves in BlockOps' order."""
        if ops.swap_out:
            self.cache.swap_out(ops.swap_out)
        if ops.swap_in:
            self.cache.swap_in(ops.swap_in)
        if ops.copies:
            self.cache.copy_blocks(ops.copies)

    @torch.inference_mode()
    def record_graphs(self, max_num_seqs: int, max_model_len: int) -> None:
        """From now on, run decode steps by replaying CUDA graphs (a few seconds, once)."""
        self.graphs = DecodeGraphs(
            self.model, self.cache, self.backend, self.sliding_windows, max_num_seqs, max_model_len, self.device
        )

    def forward(self, batch: RaggedBatch) -> Tensor:
        """Hidden states [num_tokens, hidden_size] after the final norm; the batch's K and V are then in the cache."""
        if self.graphs is not None and self.graphs.fits(batch):
            return self.graphs.run(batch, self._put_carried)
        metadata = self.metadata(batch)
        context = AttentionContext(self.backend, self.cache.kv_caches, metadata, self.sliding_windows)
        token_ids = self._to_device(batch.token_ids)
        self._put_carried(batch, token_ids)
        return self.model(token_ids, self._to_device(batch.positions), context)

    def _put_carried(self, batch: RaggedBatch, token_ids: Tensor) -> None:
        """Fill in the tokens that the step before has sampled, from where they are: on the device."""
        if not batch.carried:
            return
        assert self._sampled is not None, "a carried token comes from a step that sampled"
        sampled = self._sampled.token_ids
        if batch.carried == [(row, row) for row in range(len(sampled))]:
            token_ids[: len(sampled)].copy_(sampled)  # the same sequences decode again: no indices to send
        else:
            rows, index = self._to_device(batch.carried).unbind(1)
            token_ids[rows] = sampled[index]

    def metadata(self, batch: RaggedBatch) -> AttentionMetadata:
        return AttentionMetadata(
            block_tables=self._to_device(batch.block_tables),
            query_starts=self._to_device(batch.query_starts),
            seq_lens=self._to_device(batch.seq_lens),
            slot_mapping=self._to_device(batch.slot_mapping),
            query_lens_host=(batch.query_starts[1:] - batch.query_starts[:-1]).tolist(),
            seq_lens_host=batch.seq_lens.tolist(),
        )

    def _to_device(self, data: Any) -> Tensor:
        tensor = torch.as_tensor(data)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()  # from pageable memory the copy would wait for the device
        return tensor.to(self.device, non_blocking=True)

    def _score(self, hidden: Tensor, rows: PromptLogprobRows) -> list[TokenLogprobs]:
        scores: list[TokenLogprobs] = []
        for start in range(0, len(rows.target_token_ids), PROMPT_LOGPROB_ROWS):
            targets = list(rows.target_token_ids[start : start + PROMPT_LOGPROB_ROWS])
            first = rows.first_row + start
            logits = self.model.compute_logits(hidden[first : first + len(targets)])
            scores += score_prompt(logits, targets, rows.num_logprobs)
        return scores
