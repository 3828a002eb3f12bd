"""EngineConfig: every knob of the engine, once, with its meaning, unit and default."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagedlab.errors import ConfigError

DTYPES = ("auto", "float32", "bfloat16", "float16")
POLICIES = ("fcfs", "priority", "sjf")
PREEMPTION_MODES = ("recompute", "swap")
LOAD_FORMATS = ("auto", "safetensors", "dummy")
GENERATION_CONFIGS = ("auto", "vllm")


@dataclass
class EngineConfig:
    """Options of LLM and LLMEngine. Names follow vLLM where it has one.

    Attributes:
        model: Hugging Face directory or repository id; None is the default model (SmolLM2-135M-Instruct).
        tokenizer: directory or repository id of the tokenizer; None takes the model's.
        skip_tokenizer_init: run on token ids alone; outputs then have empty text.
        dtype: weights and KV cache: auto, float32, bfloat16, float16. auto is the checkpoint's type, but bfloat16 for a
            float32 checkpoint on a GPU, and float32 for a 16-bit one on a CPU without bfloat16 arithmetic.
        device: auto (cuda if there is one), cpu, cuda, cuda:0 ...
        load_format: auto and safetensors read weights; dummy draws random ones of the config's shapes.
        block_size: tokens in a KV block.
        num_blocks: KV blocks in the pool, the null block included; None sizes the pool by memory.
        kv_cache_memory: bytes for the pool when num_blocks is None; None measures what is free.
        gpu_memory_utilization: share of the GPU's memory that weights, activations and KV may take (0 to 1).
        swap_space: host memory for swapped-out blocks, GiB; used by preemption_mode="swap".
        max_model_len: longest prompt plus output, tokens; None is the model's own limit.
        max_num_seqs: most sequences that run at once.
        max_num_batched_tokens: token budget of a step; None is 512 on a CPU and 8192 on a GPU.
        long_prefill_token_threshold: most tokens of one request in a step, so that a long prompt cannot take the whole
            budget; 0 sets no limit.
        enable_prefix_caching: reuse KV blocks of equal prefixes.
        scheduling_policy: fcfs (arrival), priority (smaller number first), sjf (shortest prompt + max_tokens first).
        preemption_mode: recompute drops a preempted request's blocks, swap moves them to host memory.
        generation_config: auto takes sampling defaults (temperature, top_p ...) from the model's generation_config.json
            for requests that name none; vllm takes SamplingParams' own.
        seed: seed of requests that name none, and of dummy weights.
        attention_backend: auto, a name (reference, sdpa, triton), or an AttentionBackend class, instance or function.
        scheduler_cls, block_manager_cls: your own class in place of Scheduler or BlockManager.
        enforce_eager: no CUDA graphs.
        async_scheduling: decide and queue the next step while the device computes this one, where its tokens do not
            matter for that; None does so on a GPU. The tokens are the same.
        enable_trace: record one event for each step of a request's way (LLMEngine.tracer).
    """

    model: str | Path | None = None
    tokenizer: str | Path | None = None
    skip_tokenizer_init: bool = False
    dtype: str = "auto"
    device: str = "auto"
    load_format: str = "auto"
    block_size: int = 16
    num_blocks: int | None = None
    kv_cache_memory: int | None = None
    gpu_memory_utilization: float = 0.9
    swap_space: float = 0.25
    max_model_len: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int | None = None
    long_prefill_token_threshold: int = 0
    enable_prefix_caching: bool = True
    scheduling_policy: str = "fcfs"
    preemption_mode: str = "recompute"
    generation_config: str = "auto"
    seed: int = 0
    attention_backend: Any = "auto"
    scheduler_cls: type | None = None
    block_manager_cls: type | None = None
    enforce_eager: bool = False
    async_scheduling: bool | None = None
    enable_trace: bool = False

    def __post_init__(self) -> None:
        self._choice("dtype", DTYPES)
        self._choice("scheduling_policy", POLICIES)
        self._choice("preemption_mode", PREEMPTION_MODES)
        self._choice("load_format", LOAD_FORMATS)
        self._choice("generation_config", GENERATION_CONFIGS)
        for name in ("block_size", "max_num_seqs"):
            self._at_least(name, 1)
        self._at_least("long_prefill_token_threshold", 0)
        for name, low in (
            ("num_blocks", 2),
            ("kv_cache_memory", 1),
            ("max_model_len", 1),
            ("max_num_batched_tokens", 1),
        ):
            if getattr(self, name) is not None:
                self._at_least(name, low)
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigError(
                f"gpu_memory_utilization must be above 0 and at most 1, got {self.gpu_memory_utilization}."
            )
        if self.swap_space < 0:
            raise ConfigError(f"swap_space must be at least 0 GiB, got {self.swap_space}.")

    def _choice(self, name: str, allowed: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value not in allowed:
            raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {value!r}.")

    def _at_least(self, name: str, low: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ConfigError(f"{name} must be an integer of at least {low}, got {value!r}.")
