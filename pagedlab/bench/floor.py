"""The floor of a run: its matrix products alone, at the very step sizes that the engine took.

An engine that spent no time on attention, norms, sampling, scheduling or memory would still need this long.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pagedlab.model_authoring.model_executor import QueueingWorker
from pagedlab.model_authoring.models.layers import Linear
from pagedlab.model_authoring.models.transformer import CausalLM
from pagedlab.runtime.batch import BlockOps, PendingStep, RaggedBatch, StepResult


@dataclass(frozen=True)
class StepSize:
    """Tokens that one step computed, and rows that went on to the vocabulary."""

    num_tokens: int
    num_sampled: int


class RecordingWorker:
    """Passes batches on to a worker and notes their sizes."""

    def __init__(self, worker: QueueingWorker) -> None:
        self.worker = worker
        self.steps: list[StepSize] = []

    def execute(self, batch: RaggedBatch, ops: BlockOps) -> StepResult:
        return self.launch(batch, ops)()

    def launch(self, batch: RaggedBatch, ops: BlockOps) -> PendingStep:
        self.steps.append(StepSize(batch.num_tokens, len(batch.sampling)))
        return self.worker.launch(batch, ops)


@torch.inference_mode()
def floor_seconds(model: CausalLM, steps: Sequence[StepSize]) -> float:
    """Seconds for every Linear of `model`, in the order of a forward pass, on random rows.

    The weights are those that the engine uses, in the same packing, and every layer's own: running one layer's over and
    over would find them in the cache.
    """
    dtype, device = model.model.norm.weight.dtype, model.model.norm.weight.device
    linears = [module for module in model.model.modules() if isinstance(module, Linear)]
    widths = {module.in_features for module in [*linears, model.lm_head]}
    largest = max(max(step.num_tokens, step.num_sampled) for step in steps)
    inputs = {width: torch.randn(largest, width).to(device, dtype) for width in widths}

    def run(step: StepSize) -> None:
        for linear in linears:
            linear(inputs[linear.in_features][: step.num_tokens])
        if step.num_sampled:
            model.lm_head(inputs[model.lm_head.in_features][: step.num_sampled])

    run(steps[0])
    _wait(device)
    start = time.perf_counter()
    for step in steps:
        run(step)
    _wait(device)
    return time.perf_counter() - start


def _wait(device: Any) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
