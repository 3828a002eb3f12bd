"""What this machine can do: device, number type, memory for the KV pool."""

from __future__ import annotations

import psutil
import torch

from pagedlab.config import EngineConfig
from pagedlab.errors import ConfigError

CPU_POOL_BYTES = 2**30
"""Largest KV pool that is taken unasked on a CPU: 1 GiB, about 23,000 tokens of the default model in float32."""

CPU_POOL_SHARE = 0.25
"""Share of the free host memory that it may be."""


def resolve_device(device: str) -> torch.device:
    """The device that a config's `device` means.

    Raises:
        ConfigError: it is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"device must be auto, cpu or cuda, got {device!r}.") from None
    if resolved.type not in ("cpu", "cuda"):
        raise ConfigError(f"device must be auto, cpu or cuda, got {device!r}.")
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {device!r} was asked for and PyTorch finds no CUDA GPU: use device='cpu'.")
    return resolved


def cpu_computes_bfloat16() -> bool:
    """Does this CPU multiply bfloat16 in hardware? Otherwise it is slower than float32."""
    if torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "NO AVX"):
        return False
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        return False


def resolve_dtype(dtype: str, checkpoint_dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The number type of weights and KV cache.

    auto is the checkpoint's own; on a GPU bfloat16 in place of float32 (half the bytes, tensor cores), on a CPU
    float32 in place of a 16-bit type that it cannot multiply.
    """
    if dtype != "auto":
        return getattr(torch, dtype)
    if device.type == "cuda":
        return torch.bfloat16 if checkpoint_dtype == torch.float32 else checkpoint_dtype
    if checkpoint_dtype == torch.bfloat16 and cpu_computes_bfloat16():
        return torch.bfloat16
    return torch.float32


def pool_bytes(config: EngineConfig, device: torch.device) -> int:
    """Bytes that the KV pool may take when the config does not say."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return max(0, int(free - (1 - config.gpu_memory_utilization) * total))
    return min(CPU_POOL_BYTES, int(psutil.virtual_memory().available * CPU_POOL_SHARE))
