"""How much memory the KV pool may take unasked: a modest share on a CPU, all that a full step leaves on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import psutil
import torch

from pagedlab.runtime.batch import RaggedBatch, SamplingRow
from pagedlab.sampling_params import SamplingParams

CPU_POOL_BYTES = 2**30
"""Largest KV pool that is taken unasked on a CPU: 1 GiB, about 23,000 tokens of the default model in float32."""

CPU_POOL_SHARE = 0.25
"""Share of the free host memory that it may be."""

GRAPH_BYTES = 2**29
"""Left free on a GPU for CUDA graphs and kernels' workspaces."""


def cpu_pool_bytes() -> int:
    """Bytes that the KV pool may take on a CPU."""
    return min(CPU_POOL_BYTES, int(psutil.virtual_memory().available * CPU_POOL_SHARE))


def cuda_pool_bytes(device: torch.device, utilization: float, run_largest_step: Callable[[], None]) -> int:
    """Bytes that the KV pool may take on a GPU that already holds the model.

    Of `utilization` x the card, what is in use now (weights, other programs) and what the largest step takes beyond it
    are not for the pool; nor is GRAPH_BYTES.
    """
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run_largest_step()
    torch.cuda.synchronize(device)
    activations = torch.cuda.max_memory_allocated(device) - before
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return max(0, int(free - (1 - utilization) * total) - activations - GRAPH_BYTES)


def largest_batch(num_tokens: int, num_seqs: int, max_model_len: int, block_size: int) -> RaggedBatch:
    """A step that fills the token budget and samples for every sequence, all of it on the null block.

    Prompts as long as the model allows, for those have the widest block tables; every row is sampled with a full sort
    of the vocabulary (top_p), which takes the most memory of all options.
    """
    lengths = [max_model_len] * (num_tokens // max_model_len)
    if num_tokens % max_model_len:
        lengths.append(num_tokens % max_model_len)
    params = SamplingParams(temperature=1.0, top_p=0.9)
    rows = [SamplingRow(row % num_tokens, params, row, [0], []) for row in range(num_seqs)]
    return RaggedBatch(
        token_ids=np.zeros(num_tokens, np.int64),
        positions=np.concatenate([np.arange(length) for length in lengths]),
        slot_mapping=np.zeros(num_tokens, np.int64),
        block_tables=np.zeros((len(lengths), -(-max(lengths) // block_size)), np.int32),
        query_starts=np.cumsum([0, *lengths]).astype(np.int32),
        seq_lens=np.array(lengths, np.int32),
        sampling=rows,
    )
