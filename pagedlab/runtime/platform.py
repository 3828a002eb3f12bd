"""What this machine can do: which device, which number type."""

from __future__ import annotations

import torch

from pagedlab.errors import ConfigError


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
