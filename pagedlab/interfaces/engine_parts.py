"""EngineParts: model, worker, memory and limits, built from a config before the first request comes."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pagedlab.config import EngineConfig
from pagedlab.errors import ConfigError, ModelError
from pagedlab.interfaces.sampling_options import read_default_sampling
from pagedlab.model_authoring.block_manager import BlockManager
from pagedlab.model_authoring.model_executor import StepWorker
from pagedlab.model_authoring.models.config import ModelConfig
from pagedlab.model_authoring.models.layers import Linear
from pagedlab.model_authoring.models.loader import load_model
from pagedlab.model_authoring.models.provision import resolve_model
from pagedlab.runtime.attention.registry import select_backend
from pagedlab.runtime.batch import BlockOps
from pagedlab.runtime.cache_engine import CacheEngine
from pagedlab.runtime.memory import cpu_pool_bytes, cuda_pool_bytes, largest_batch
from pagedlab.runtime.platform import resolve_device, resolve_dtype
from pagedlab.runtime.worker import Worker

CPU_TOKEN_BUDGET = 512
GPU_TOKEN_BUDGET = 8192
PLAIN_TOKENIZERS = ("GPT2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")
"""Classes that add nothing to what tokenizer.json holds."""


@dataclass(slots=True)
class EngineParts:
    """All that LLMEngine stands on.

    Attributes:
        tokenizer: a Hugging Face tokenizer, or None
        worker: carries out batches
        block_manager: of the same number of blocks as the worker's cache
        vocab_size: token ids are below it
        eos_token_ids: end of text
        max_model_len: longest prompt plus output, tokens
        max_num_seqs, max_num_batched_tokens: limits of a step
        model_path: the model's directory, or None
        is_asynchronous: the worker's device computes while the host goes on
        default_sampling: what the model's authors advise for requests that say nothing: SamplingParams' fields
    """

    tokenizer: Any | None
    worker: StepWorker
    block_manager: BlockManager
    vocab_size: int
    eos_token_ids: frozenset[int]
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    model_path: Path | None = None
    is_asynchronous: bool = False
    default_sampling: dict[str, Any] = field(default_factory=dict)


def build_parts(config: EngineConfig) -> EngineParts:
    """Load the model, size the KV pool, choose the attention backend.

    Raises:
        ModelError: the model cannot be found or read.
        ConfigError: options contradict each other, the model, or the memory there is.
        BackendError: the attention backend cannot serve this model here.
    """
    path = resolve_model(config.model)
    tokenizer = None if config.skip_tokenizer_init else load_tokenizer(config, path)
    model_config = ModelConfig.from_directory(path)
    default_sampling = read_default_sampling(path) if config.generation_config == "auto" else {}
    max_model_len = _max_model_len(config, model_config)
    _note(
        "model_authoring",
        "config read",
        architecture=model_config.architecture,
        layers=model_config.num_hidden_layers,
        max_model_len=max_model_len,
    )
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, model_config.dtype, device)
    backend = select_backend(
        config.attention_backend,
        device=device,
        dtype=dtype,
        head_dim=model_config.head_dim,
        block_size=config.block_size,
    )
    begin = time.perf_counter()
    model = load_model(path, dtype=dtype, device=device, load_format=config.load_format, seed=config.seed)
    _note(
        "runtime",
        "weights loaded",
        bytes=_weight_bytes(model, dtype),
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        load_seconds=round(time.perf_counter() - begin, 3),
    )
    budget = config.max_num_batched_tokens or (GPU_TOKEN_BUDGET if device.type == "cuda" else CPU_TOKEN_BUDGET)
    max_num_seqs = min(config.max_num_seqs, budget)

    def worker_with(num_blocks: int, num_host_blocks: int) -> Worker:
        cache = CacheEngine(
            num_layers=model_config.num_hidden_layers,
            num_blocks=num_blocks,
            block_size=config.block_size,
            num_kv_heads=model_config.num_key_value_heads,
            head_dim=model_config.head_dim,
            dtype=dtype,
            device=device,
            num_host_blocks=num_host_blocks,
        )
        return Worker(model, cache, backend, device, model_config.sliding_windows)

    def run_largest_step() -> None:
        batch = largest_batch(budget, max_num_seqs, max_model_len, config.block_size)
        worker_with(1, 0).execute(batch, BlockOps())

    pool = config.kv_cache_memory
    if pool is None and device.type == "cuda" and config.num_blocks is None:
        pool = cuda_pool_bytes(device, config.gpu_memory_utilization, run_largest_step)
    bytes_per_block = model_config.kv_bytes_per_token(dtype) * config.block_size
    most_useful = max_num_seqs * -(-max_model_len // config.block_size)
    num_blocks = config.num_blocks or _num_blocks(pool or cpu_pool_bytes(), bytes_per_block, most_useful)
    num_host_blocks = 0
    if config.preemption_mode == "swap":
        num_host_blocks = min(int(config.swap_space * 2**30) // bytes_per_block, most_useful)
    worker = worker_with(num_blocks, num_host_blocks)
    _note("runtime", "KV cache allocated", num_blocks=num_blocks, bytes=num_blocks * bytes_per_block)
    if device.type == "cuda" and backend.graph_safe and not config.enforce_eager:
        worker.record_graphs(max_num_seqs, max_model_len)
    manager_cls = config.block_manager_cls or BlockManager
    return EngineParts(
        tokenizer=tokenizer,
        worker=worker,
        block_manager=manager_cls(
            num_blocks=num_blocks,
            block_size=config.block_size,
            enable_prefix_caching=config.enable_prefix_caching,
            num_host_blocks=num_host_blocks,
        ),
        vocab_size=model_config.vocab_size,
        eos_token_ids=frozenset(model_config.eos_token_ids),
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        model_path=path,
        is_asynchronous=device.type == "cuda",
        default_sampling=default_sampling,
    )


def _note(layer: str, what: str, **details: Any) -> None:
    """A line for the server's log; a program that uses the engine sees it only if it asks for `pagedlab` at INFO."""
    logging.getLogger(f"pagedlab.{layer}").info(what, extra=details)


def _weight_bytes(model: torch.nn.Module, dtype: torch.dtype) -> int:
    """Of all parameters, and of those that a CPU has packed in its own order, which are parameters no more."""
    packed = [one for one in model.modules() if isinstance(one, Linear) and one.packed is not None]
    num_packed = sum(one.in_features * sum(one.parts.values()) for one in packed)
    return sum(parameter.nbytes for parameter in model.parameters()) + num_packed * dtype.itemsize


def load_tokenizer(config: EngineConfig, model_path: Path) -> Any:
    """The tokenizer of the model, or the one that the config names.

    Raises:
        ModelError: it cannot be read.
    """
    path = model_path
    if config.tokenizer is not None:
        path = Path(config.tokenizer).expanduser()  # as save_pretrained writes it, with no config.json
        path = path if path.is_dir() else resolve_model(config.tokenizer)
    try:
        return _tokenizer_class(path).from_pretrained(str(path), local_files_only=True)
    except Exception as error:
        raise ModelError(
            f"No tokenizer could be read from {path} ({error}): add its files, pass tokenizer=, or set "
            "skip_tokenizer_init=True and use token ids."
        ) from error


def _tokenizer_class(path: Path) -> Any:
    """AutoTokenizer, unless tokenizer.json says all there is to say.

    AutoTokenizer reads the model's config first, which imports torch's compiler with all that it needs: two seconds.
    """
    import transformers

    try:
        declared = json.loads((path / "tokenizer_config.json").read_text())
    except (OSError, ValueError):
        return transformers.AutoTokenizer
    is_plain = declared.get("tokenizer_class") in PLAIN_TOKENIZERS and "auto_map" not in declared
    if is_plain and (path / "tokenizer.json").is_file():
        return transformers.PreTrainedTokenizerFast
    return transformers.AutoTokenizer


def _max_model_len(config: EngineConfig, model_config: ModelConfig) -> int:
    longest = model_config.max_position_embeddings
    if config.max_model_len is not None and config.max_model_len > longest:
        raise ConfigError(
            f"max_model_len ({config.max_model_len}) is more than the model's {longest} positions: lower it."
        )
    return config.max_model_len or longest


def _num_blocks(pool: int, bytes_per_block: int, most_useful: int) -> int:
    """Blocks that `pool` bytes hold, but no more than all sequences could ever fill (and block 0)."""
    fit = pool // bytes_per_block
    if fit < 2:
        raise ConfigError(
            f"A KV block takes {bytes_per_block:,} bytes and {pool:,} are there for the pool, which needs two: raise "
            "kv_cache_memory or gpu_memory_utilization, or lower block_size."
        )
    return min(fit, most_useful + 1)
