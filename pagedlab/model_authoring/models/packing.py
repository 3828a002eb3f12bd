"""Matrix products with weights in oneDNN's own order, through operators that PyTorch keeps for its compiler.

The operators are private and may change, so each use is behind a test of this very PyTorch on this very processor;
where it fails, F.linear does the same work more slowly.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS_HINT = 512
"""The row count that oneDNN is told to expect; the order it picks serves every other count as well."""


def pack_weight(weight: Tensor) -> Tensor:
    """A weight [out_features, in_features] in an opaque order that only `packed_linear` can read."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS_HINT)


def packed_linear(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear for a packed weight."""
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


@cache
def packing_works(dtype: torch.dtype) -> bool:
    """Whether packed weights of this number type exist here and give what F.linear gives."""
    generator = torch.Generator().manual_seed(0)
    weight, bias, x = (torch.randn(shape, generator=generator).to(dtype) for shape in ((48, 32), (48,), (3, 32)))
    try:
        packed = pack_weight(weight)
        results = [packed_linear(x, packed, b) for b in (None, bias)]
    except (AttributeError, RuntimeError, NotImplementedError, TypeError):
        return False
    # Sums of 32 products of size 1, rounded once to dtype.
    tolerance = 16 * torch.finfo(dtype).eps
    return all(
        torch.allclose(result, F.linear(x, weight, b), rtol=tolerance, atol=tolerance)
        for result, b in zip(results, (None, bias), strict=True)
    )
