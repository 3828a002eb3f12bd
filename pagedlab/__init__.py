"""pagedlab: an LLM inference engine with a paged KV cache, built chapter by chapter.

The public names load on first use, so that `import pagedlab` and `pagedlab --help` cost nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pagedlab.config import EngineConfig
    from pagedlab.errors import (
        BackendError,
        ConfigError,
        GenerationError,
        InvalidRequestError,
        ModelError,
        PagedlabError,
    )
    from pagedlab.interfaces.engine import EngineStats, LLMEngine
    from pagedlab.interfaces.input_processing import TextPrompt, TokensPrompt
    from pagedlab.interfaces.llm import LLM
    from pagedlab.interfaces.outputs import (
        BeamSearchOutput,
        BeamSearchSequence,
        CompletionOutput,
        EmbeddingRequestOutput,
        Logprob,
        PoolingRequestOutput,
        RequestOutput,
    )
    from pagedlab.model_authoring.request import PoolingParams
    from pagedlab.sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams

_HOMES = {
    "LLM": "interfaces.llm",
    "LLMEngine": "interfaces.engine",
    "EngineStats": "interfaces.engine",
    "EngineConfig": "config",
    "SamplingParams": "sampling_params",
    "BeamSearchParams": "sampling_params",
    "RequestOutputKind": "sampling_params",
    "PoolingParams": "model_authoring.request",
    "RequestOutput": "interfaces.outputs",
    "CompletionOutput": "interfaces.outputs",
    "PoolingRequestOutput": "interfaces.outputs",
    "EmbeddingRequestOutput": "interfaces.outputs",
    "BeamSearchOutput": "interfaces.outputs",
    "BeamSearchSequence": "interfaces.outputs",
    "Logprob": "interfaces.outputs",
    "TextPrompt": "interfaces.input_processing",
    "TokensPrompt": "interfaces.input_processing",
    "PagedlabError": "errors",
    "ConfigError": "errors",
    "InvalidRequestError": "errors",
    "ModelError": "errors",
    "BackendError": "errors",
    "GenerationError": "errors",
}

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "BackendError",
    "BeamSearchOutput",
    "BeamSearchParams",
    "BeamSearchSequence",
    "CompletionOutput",
    "ConfigError",
    "EmbeddingRequestOutput",
    "EngineConfig",
    "EngineStats",
    "GenerationError",
    "InvalidRequestError",
    "LLMEngine",
    "Logprob",
    "ModelError",
    "PagedlabError",
    "PoolingParams",
    "PoolingRequestOutput",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "TextPrompt",
    "TokensPrompt",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pagedlab' has no attribute {name!r}")
    value = getattr(import_module(f"pagedlab.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
