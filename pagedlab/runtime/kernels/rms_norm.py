"""RMSNorm, alone and fused with the residual addition before it (Zhang & Sennrich 2019).

Algorithm   One program a token. With a residual it first adds, residual += x, and rounds to the tensors' dtype as a
            separate addition would. Then out = h / sqrt(mean(h**2) + eps) * weight, in float32.
Shapes      x, residual, out [num_tokens, hidden] contiguous; weight [hidden].
Bytes       2 * num_tokens * hidden * itemsize (read x, write out); with a residual twice that. Unfused PyTorch moves
            the same rows about eight times (add, square, mean, rsqrt, two products). About 4 FLOPs an element.
Grid        (num_tokens,).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagedlab.errors import BackendError
from pagedlab.runtime.kernels.launch import launch, next_power_of_2


@triton.jit
def rms_norm_kernel(
    out_ptr, x_ptr, residual_ptr, weight_ptr, eps, HIDDEN: tl.constexpr, HIDDEN_PAD: tl.constexpr, ADD: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * HIDDEN
    columns = tl.arange(0, HIDDEN_PAD)
    mask = columns < HIDDEN
    h = tl.load(x_ptr + row + columns, mask=mask, other=0.0)
    if ADD:
        residual = tl.load(residual_ptr + row + columns, mask=mask, other=0.0)
        h = (h.to(tl.float32) + residual.to(tl.float32)).to(x_ptr.dtype.element_ty)
        tl.store(residual_ptr + row + columns, h, mask=mask)
    h = h.to(tl.float32)
    weight = tl.load(weight_ptr + columns, mask=mask, other=0.0).to(tl.float32)
    out = h * tl.rsqrt(tl.sum(h * h, 0) / HIDDEN + eps) * weight
    tl.store(out_ptr + row + columns, out.to(out_ptr.dtype.element_ty), mask=mask)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of `x` [num_tokens, hidden]."""
    x = x.contiguous()  # addresses follow from the shape alone; a copy only where it is needed
    out = torch.empty_like(x)
    _launch(out, x, x, weight, eps, add=False)
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`residual += x` in place, then RMSNorm of the new residual. Both [num_tokens, hidden].

    Raises:
        BackendError: the residual is not contiguous, so that its copy would be written in its place.
    """
    if not residual.is_contiguous():
        raise BackendError(
            f"the residual has strides {residual.stride()}: it must be contiguous to be added to in place"
        )
    x = x.contiguous()
    out = torch.empty_like(x)
    _launch(out, x, residual, weight, eps, add=True)
    return out


def _launch(out: Tensor, x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, add: bool) -> None:
    num_tokens, hidden = x.shape
    if num_tokens == 0:
        return
    launch(
        rms_norm_kernel,
        (num_tokens, 1, 1),
        (
            out,
            x,
            residual,
            weight,
            eps,
        ),
        {
            "HIDDEN": hidden,
            "HIDDEN_PAD": next_power_of_2(hidden),
            "ADD": add,
        },
        num_warps=4 if hidden <= 4096 else 8,
    )
