"""The element-wise steps between the matrix products, each in one plain function: here a faster kernel takes over.

All keep the number type of their input; sums of squares are taken in float32. With the default model, 2 cores and 32
rows they take an eighth of a forward pass without attention in float32 (the norms 5 of 56 ms, rotation and activation
2 each) and a quarter in bfloat16; the matrix products are the rest. Norms written out by hand gained nothing over
F.rms_norm, nor did silu and product inside oneDNN's matrix products.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

use_kernels = True
"""Run the fused Triton kernels on a GPU; off, everything is plain PyTorch (to measure what they gain)."""


@cache
def has_triton() -> bool:
    return find_spec("triton") is not None


def fuses(x: Tensor) -> bool:
    """Is `x` where the fused kernels run? A decode step on a GPU is made of launches: one in place of several pays."""
    return use_kernels and x.is_cuda and has_triton()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang and Sennrich, arXiv 1910.07467, equation 4)."""
    return F.rms_norm(x, weight.shape, weight, eps)


def add_rms_norm(update: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Add `update` into `residual` in place, and return the norm of the sum. Both are [num_tokens, hidden_size].

    In place, because the residual stream is read only here and written only here: no copy a layer.
    """
    if fuses(update):
        from pagedlab.runtime.kernels import rms_norm as kernel

        return kernel.add_rms_norm(update, residual, weight, eps)
    return rms_norm(residual.add_(update), weight, eps)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate every head by its token's position: [num_tokens, heads, head_dim] in and out.

    Channel i turns together with channel i + head_dim / 2 (the layout of Hugging Face checkpoints). The tables, from
    rope.RotaryEmbedding, are [num_tokens, 1, head_dim]; the first half of `sin` is already negative, so that a rotation
    is three operations and no concatenation.
    """
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up for [num_tokens, 2 * intermediate_size] (Shazeer, arXiv 2002.05202, SwiGLU)."""
    if fuses(gate_up):
        from pagedlab.runtime.kernels import activation

        return activation.silu_mul(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def gelu_and_mul(gate_up: Tensor) -> Tensor:
    """gelu(gate) * up (GEGLU)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate).mul_(up)


def gelu_tanh_and_mul(gate_up: Tensor) -> Tensor:
    """GEGLU with the tanh approximation of gelu."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh").mul_(up)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": silu_and_mul,
    "swish": silu_and_mul,
    "gelu": gelu_and_mul,
    "gelu_new": gelu_tanh_and_mul,
    "gelu_pytorch_tanh": gelu_tanh_and_mul,
}
"""By config.json's hidden_act."""
