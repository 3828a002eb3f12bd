"""Time of one decode step of the engine against its roofline: every weight and every cached key and value, read once.

A decode step computes one token a sequence. It multiplies each weight by a handful of rows, so it is bound by memory:
no engine can be faster than (weight bytes + KV bytes) / bandwidth. The bandwidth is measured here, by a copy.
"""

from __future__ import annotations

import gc
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from pagedlab.interfaces.llm import LLM
from pagedlab.sampling_params import SamplingParams


@dataclass(frozen=True)
class DecodeStep:
    """One measured point. Times in milliseconds.

    Attributes:
        batch, context: sequences, and the mean number of tokens in their caches at the middle of the run
        graphs: were CUDA graphs on
        ahead: was the next step scheduled and queued while the device computed this one
        step_ms: median of a whole engine step; `low` and `high` the 10th and 90th percentile
        roofline_ms: bytes / bandwidth
        host_ms: scheduling and book-keeping in a step; hidden behind the device where the engine runs ahead
    """

    batch: int
    context: float
    graphs: bool
    ahead: bool
    step_ms: float
    low: float
    high: float
    roofline_ms: float
    host_ms: float

    @property
    def share_of_roofline(self) -> float:
        return self.roofline_ms / self.step_ms


def copy_bandwidth(device: torch.device, num_bytes: int = 2**31) -> float:
    """Bytes a second of a large device copy, bytes read and bytes written both counted; best of ten."""
    num_bytes = num_bytes if device.type == "cuda" else 2**27
    source = torch.randint(0, 255, (num_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(12):
        _wait(device)
        start = time.perf_counter()
        target.copy_(source)
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * num_bytes / best


def measure(
    model: Path,
    batch: int,
    context: int,
    *,
    device: str,
    dtype: str,
    bandwidth: float,
    graphs: bool,
    ahead: bool,
    num_steps: int = 56,
) -> DecodeStep:
    """Prefill `batch` prompts of `context` random tokens, then time `num_steps` decode steps of all of them."""
    budget = 8192 if device == "cuda" else 512
    # The first prompts decode while the last ones are still being computed: none may end before the last step.
    max_tokens = num_steps + -(-batch * context // budget) + 16
    llm = LLM(
        model,
        load_format="dummy",
        device=device,
        dtype=dtype,
        skip_tokenizer_init=True,
        max_num_seqs=max(batch, 1),
        max_num_batched_tokens=budget,
        max_model_len=context + max_tokens,
        enable_prefix_caching=False,
        enforce_eager=not graphs,
        async_scheduling=ahead,
    )
    engine = llm.llm_engine
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(0, engine.limits.vocab_size, (batch, context), generator=generator).tolist()
    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    for index, prompt in enumerate(prompts):
        engine.add_request(str(index), prompt, params)
    while any(request.num_output_tokens < 3 for request in engine.scheduler.unfinished()):
        engine.step()
    before = engine.stats()
    num_cached = sum(request.num_computed_tokens for request in engine.scheduler.running) + batch * num_steps // 2
    times = []
    for _ in range(num_steps):
        start = time.perf_counter()
        engine.step()  # ends when the sampled tokens are on the host
        times.append(1e3 * (time.perf_counter() - start))
    after = engine.stats()
    assert len(engine.scheduler.running) == batch, "a sequence ended during the measurement"
    host = after.schedule_time + after.update_time - before.schedule_time - before.update_time
    engine.abort_request([str(index) for index in range(batch)])
    times.sort()
    num_bytes = bytes_read(llm, num_cached)
    del llm, engine
    release_memory()  # the next engine sizes its pool by what is free
    return DecodeStep(
        batch=batch,
        context=num_cached / batch,
        graphs=graphs,
        ahead=ahead,
        step_ms=median(times),
        low=times[len(times) // 10],
        high=times[-1 - len(times) // 10],
        roofline_ms=1e3 * num_bytes / bandwidth,
        host_ms=1e3 * host / len(times),
    )


def bytes_read(llm: LLM, num_cached_tokens: int) -> int:
    """Every weight that a decode step multiplies by (an embedding is only looked up), and all keys and values."""
    worker: Any = llm.llm_engine.parts.worker
    config = worker.model.config
    dtype = worker.cache.kv.dtype
    weights = config.num_parameters * dtype.itemsize
    if not config.tie_word_embeddings:
        weights -= config.vocab_size * config.hidden_size * dtype.itemsize
    return weights + num_cached_tokens * config.kv_bytes_per_token(dtype)


def release_memory() -> None:
    """Give the memory of engines that nobody holds any more back to the GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def as_dict(step: DecodeStep) -> dict[str, Any]:
    return asdict(step) | {"share_of_roofline": step.share_of_roofline}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
