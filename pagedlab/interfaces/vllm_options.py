"""What vLLM's LLM takes beyond EngineConfig: other names of its fields, and options to be left as they are."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pagedlab.config import EngineConfig
from pagedlab.errors import ConfigError

ALIASES = {
    "num_gpu_blocks_override": "num_blocks",
    "kv_cache_memory_bytes": "kv_cache_memory",
}
"""vLLM's name -> EngineConfig's."""

DTYPE_ALIASES = {"half": "float16", "float": "float32"}

WITHOUT_EFFECT = frozenset(
    {
        "disable_custom_all_reduce",
        "disable_log_stats",
        "max_num_partial_prefills",
        "max_seq_len_to_capture",
        "trust_remote_code",
    }
)
"""Whatever they say, the tokens are the same. (No code of a repository is ever run here, trusted or not.)"""

ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "tensor_parallel_size": ((1,), "pagedlab runs on one device"),
    "pipeline_parallel_size": ((1,), "pagedlab runs on one device"),
    "data_parallel_size": ((1,), "pagedlab runs on one device"),
    "distributed_executor_backend": ((None,), "pagedlab runs on one device"),
    "quantization": ((None,), "pagedlab runs no quantized models"),
    "kv_cache_dtype": (("auto",), "the KV cache has the model's number type"),
    "cpu_offload_gb": ((0,), "all weights stay on the device"),
    "enable_chunked_prefill": ((True, None), "prompts are always computed in chunks"),
    "enable_lora": ((False,), "pagedlab has no adapters"),
    "speculative_config": ((None,), "pagedlab does not speculate"),
    "compilation_config": ((None, 0), "pagedlab does not compile models"),
    "hf_overrides": ((None, {}), "edit the model's config.json"),
    "tokenizer_mode": (("auto",), "the tokenizer is the one in the model's files"),
    "tokenizer_revision": ((None,), "give a directory that holds the version you want"),
    "revision": ((None,), "give a directory that holds the version you want"),
    "task": (("auto", "generate"), "every model generates, and encode() pools"),
    "runner": (("auto", "generate"), "every model generates, and encode() pools"),
}
"""Option -> the values that change nothing, and why there are no others."""


def engine_config(model: str | Path | None, options: Mapping[str, Any]) -> EngineConfig:
    """The EngineConfig that a call LLM(model, **options) asks for.

    Raises:
        ConfigError: an option is unknown, or asks for what pagedlab does not have.
    """
    known = EngineConfig.__dataclass_fields__
    given: dict[str, Any] = {}
    for name, value in options.items():
        own = ALIASES.get(name, name)
        if own in given:
            raise ConfigError(f"{name} is another name of {own}: give one of them.")
        if own in known:
            given[own] = value
        elif name in ONLY:
            allowed, why = ONLY[name]
            if value not in allowed:
                raise ConfigError(f"{name} must be {' or '.join(map(repr, allowed))}, got {value!r}: {why}.")
        elif name not in WITHOUT_EFFECT:
            close = get_close_matches(name, known, n=1)
            hint = f"do you mean {close[0]!r}?" if close else "help(pagedlab.EngineConfig) lists them."
            raise ConfigError(f"There is no option {name!r}: {hint}")
    if given.get("seed", 0) is None:
        del given["seed"]  # vLLM's None: no seed of one's own
    if "dtype" in given:
        dtype = str(given["dtype"]).removeprefix("torch.")
        given["dtype"] = DTYPE_ALIASES.get(dtype, dtype)
    return EngineConfig(model=model, **given)
