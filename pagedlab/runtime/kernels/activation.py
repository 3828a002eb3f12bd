"""SwiGLU's elementwise part: silu(gate) * up, on the output of one fused gate-and-up projection (Shazeer 2020).

Algorithm   One program takes BLOCK columns of one token: out = gate * sigmoid(gate) * up, in float32.
Shapes      gate_up [num_tokens, 2 * intermediate] contiguous, gate first; out [num_tokens, intermediate].
Bytes       3 * num_tokens * intermediate * itemsize; unfused PyTorch moves five rows (silu makes a temporary).
Grid        (num_tokens, ceil(intermediate / BLOCK)).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagedlab.runtime.kernels.launch import launch, next_power_of_2


@triton.jit
def silu_mul_kernel(out_ptr, gate_up_ptr, INTERMEDIATE: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < INTERMEDIATE
    gate = tl.load(gate_up_ptr + token * (2 * INTERMEDIATE) + columns, mask=mask).to(tl.float32)
    up = tl.load(gate_up_ptr + token * (2 * INTERMEDIATE) + INTERMEDIATE + columns, mask=mask).to(tl.float32)
    out = gate * tl.sigmoid(gate) * up
    tl.store(out_ptr + token * INTERMEDIATE + columns, out.to(out_ptr.dtype.element_ty), mask=mask)


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up for `gate_up` [num_tokens, 2 * intermediate]."""
    gate_up = gate_up.contiguous()  # addresses follow from the shape alone; a copy only where it is needed
    num_tokens, double = gate_up.shape
    intermediate = double // 2
    out = torch.empty(num_tokens, intermediate, dtype=gate_up.dtype, device=gate_up.device)
    if num_tokens:
        block = min(1024, next_power_of_2(intermediate))
        grid = (num_tokens, -(-intermediate // block), 1)
        launch(
            silu_mul_kernel,
            grid,
            (
                out,
                gate_up,
            ),
            {
                "INTERMEDIATE": intermediate,
                "BLOCK": block,
            },
            num_warps=4,
        )
    return out
