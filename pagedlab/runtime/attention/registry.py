"""Which attention backend serves a model: by name, by class, by instance, or a learner's own function."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from pagedlab.errors import BackendError, ConfigError
from pagedlab.runtime.attention.base import AttentionBackend, FunctionBackend

BACKENDS = {
    "reference": ("pagedlab.runtime.attention.reference", "ReferenceBackend"),
    "sdpa": ("pagedlab.runtime.attention.sdpa", "SdpaBackend"),
    "triton": ("pagedlab.runtime.attention.triton_backend", "TritonBackend"),
}
"""name -> (module, class). Modules are imported when asked for: Triton need not be installed."""


def select_backend(
    spec: str | type[AttentionBackend] | AttentionBackend | Callable[..., Any],
    *,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    block_size: int,
) -> AttentionBackend:
    """The backend that `EngineConfig.attention_backend` means.

    "auto" is triton on a CUDA device if it can serve the model, else sdpa.

    Raises:
        ConfigError: no backend has this name, or `spec` is none of the four kinds.
        BackendError: the backend cannot serve this device, dtype or shape, or its library is missing.
    """
    needs: dict[str, Any] = {"device": device, "dtype": dtype, "head_dim": head_dim, "block_size": block_size}
    if spec == "auto":
        return _auto(device, needs)
    backend = _resolve(spec)
    reason = backend.unsupported_reason(**needs)
    if reason is not None:
        raise BackendError(f"Attention backend {backend.name!r} cannot serve this model: {reason}")
    return backend


def _auto(device: torch.device, needs: dict[str, Any]) -> AttentionBackend:
    if device.type == "cuda":
        try:
            return select_backend("triton", **needs)
        except BackendError:
            pass  # sdpa serves what Triton cannot
    return select_backend("sdpa", **needs)


def _resolve(spec: Any) -> AttentionBackend:
    if isinstance(spec, AttentionBackend):
        return spec
    if isinstance(spec, str):
        return _by_name(spec)()
    if isinstance(spec, type) and issubclass(spec, AttentionBackend):
        return spec()
    if callable(spec) and not isinstance(spec, type):
        return FunctionBackend(spec)
    raise ConfigError(
        f"attention_backend must be auto, one of {', '.join(BACKENDS)}, an AttentionBackend class or instance, "
        f"or a function, got {spec!r}."
    )


def _by_name(name: str) -> type[AttentionBackend]:
    if name not in BACKENDS:
        raise ConfigError(f"attention_backend must be one of auto, {', '.join(BACKENDS)}, got {name!r}.")
    module, cls = BACKENDS[name]
    try:
        return getattr(import_module(module), cls)
    except ImportError as error:
        raise BackendError(
            f"Attention backend {name!r} cannot be imported ({error}): install what is missing or use 'sdpa'."
        ) from error
