"""The engines that pagedlab is timed against: transformers' static and continuous batching, vLLM where it is.

Both get the same weights, number type, threads and requests, and both must return every token that was asked for: a
benchmark that does not count them can be won by an engine that stopped early.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from pagedlab.bench.workloads import Job
from pagedlab.errors import PagedlabError


def available_peers() -> list[str]:
    """The engines that can be timed here: transformers' two, and vLLM where it is installed."""
    return ["static", "generate_batch", *(["vllm"] if find_spec("vllm") else [])]


def load_peer(path: Path, dtype: torch.dtype, device: torch.device, dummy: bool = False) -> Any:
    """The model as transformers loads it, with SDPA attention; `dummy` makes random weights of the config's shapes."""
    from transformers import AutoConfig, AutoModelForCausalLM

    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": "sdpa"}
    model: Any
    if dummy:
        with device:
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(str(path)), **options)
    else:
        model = AutoModelForCausalLM.from_pretrained(str(path), local_files_only=True, **options)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.to(device).eval()


def run_static(model: Any, jobs: list[Job], batch_size: int = 32) -> float:
    """Seconds for `generate` on batches padded on the left, each run to its longest output.

    The mask is passed, so that a prompt that happens to hold the padding id stays itself.
    """
    device = model.device
    start = time.perf_counter()
    for first in range(0, len(jobs), batch_size):
        batch = jobs[first : first + batch_size]
        width = max(len(job.prompt_token_ids) for job in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, job in enumerate(batch):
            length = len(job.prompt_token_ids)
            ids[row, width - length :] = torch.tensor(job.prompt_token_ids)
            mask[row, width - length :] = 1
        longest = max(job.max_tokens for job in batch)
        with torch.inference_mode():
            output = model.generate(
                ids.to(device), attention_mask=mask.to(device), max_new_tokens=longest, do_sample=False, use_cache=True
            )
        _check_count("static batching", output.shape[1] - width, longest)
    return time.perf_counter() - start


def run_generate_batch(model: Any, jobs: list[Job]) -> float:
    """Seconds for transformers' continuous batching, each request with its own number of tokens.

    Starting the manager is not timed. It must not run inside torch.inference_mode(): its thread would fail, and an
    empty run looks fast.
    """
    import copy

    config = copy.deepcopy(model.generation_config)
    config.do_sample = False
    config.max_new_tokens = max(job.max_tokens for job in jobs)
    with (
        _quiet(),
        model.continuous_batching_context_manager(generation_config=config, block=True, timeout=30) as manager,
    ):
        start = time.perf_counter()
        expected = {}
        for index, job in enumerate(jobs):
            name = f"job{index}"
            manager.add_request(job.prompt_token_ids, request_id=name, max_new_tokens=job.max_tokens, eos_token_id=-1)
            expected[name] = job.max_tokens
        while expected:
            output = manager.get_result(timeout=30)
            if output is None:
                if not manager.is_running():
                    raise PagedlabError("transformers' generate_batch stopped before it had answered every request.")
                continue
            if output.is_finished():
                _check_count("generate_batch", len(output.generated_tokens), expected.pop(output.request_id))
        return time.perf_counter() - start


def load_vllm(path: Path, dtype: str, dummy: bool = False) -> Any:
    """The model in vLLM, on the half of the GPU that the other engine leaves; prefix caching as in pagedlab."""
    import vllm

    return vllm.LLM(
        str(path),
        dtype=dtype,
        load_format="dummy" if dummy else "auto",
        skip_tokenizer_init=True,
        gpu_memory_utilization=0.4,
        enable_prefix_caching=True,
    )


def run_vllm(llm: Any, jobs: list[Job]) -> float:
    """Seconds for vLLM's offline generate, from a cold prefix cache."""
    import vllm

    llm.reset_prefix_cache()
    prompts = [{"prompt_token_ids": job.prompt_token_ids} for job in jobs]
    params = [vllm.SamplingParams(temperature=0, max_tokens=job.max_tokens, ignore_eos=True) for job in jobs]
    start = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    taken = time.perf_counter() - start
    for output, job in zip(outputs, jobs, strict=True):
        _check_count("vLLM", len(output.outputs[0].token_ids), job.max_tokens)
    return taken


def _check_count(name: str, got: int, expected: int) -> None:
    if got != expected:
        raise PagedlabError(f"{name} returned {got} tokens where {expected} were asked for: its time means nothing.")


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers logs its own sizing at warning level."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
