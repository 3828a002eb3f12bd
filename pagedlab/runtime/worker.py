"""Worker: one device's model, KV cache and attention backend; carries out one ragged batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from pagedlab.runtime.attention.base import AttentionBackend, AttentionContext, AttentionMetadata
from pagedlab.runtime.batch import BlockOps, PromptLogprobRows, RaggedBatch, StepResult, TokenLogprobs
from pagedlab.runtime.cache_engine import CacheEngine
from pagedlab.runtime.decode_graphs import DecodeGraphs
from pagedlab.runtime.sampler import Sampler, score_prompt

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

    @torch.inference_mode()
    def execute(self, batch: RaggedBatch, ops: BlockOps) -> StepResult:
        """Move blocks, run the forward pass, sample.

        Only rows that are sampled, scored or pooled go on to the vocabulary: most rows of a prompt need no logits.
        """
        self.apply(ops)
        hidden = self.forward(batch)
        if batch.sampling:
            rows = self._to_device([row.row for row in batch.sampling])
            result = self.sampler(self.model.compute_logits(hidden[rows]), batch.sampling)
        else:
            result = StepResult([])
        result.prompt_logprobs = [self._score(hidden, rows) for rows in batch.prompt_logprobs]
        for span in batch.pooling:
            states = hidden[span.first_row : span.first_row + span.num_rows].float()
            result.pooled.append((states[-1] if span.kind == "last" else states.sum(0)).cpu())
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
            return self.graphs.run(batch)
        metadata = self.metadata(batch)
        context = AttentionContext(self.backend, self.cache.kv_caches, metadata, self.sliding_windows)
        return self.model(self._to_device(batch.token_ids), self._to_device(batch.positions), context)

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
