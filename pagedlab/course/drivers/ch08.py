"""Chapter 08: a reader's Triton kernel is launched in the interpreter, on tensors with a guard on both sides."""

from __future__ import annotations

import contextlib
import importlib
import math
import os
from typing import Any

import torch
from torch import Tensor

GUARD = 4096
"""Numbers before and after each tensor: an address that is off finds NaN there, or block 0, and does not crash."""
UNWRITTEN = -12345.0
"""What an output holds before the kernel runs."""


def prepare() -> None:
    """Load what the notebook's first cell imports: in grading the package cannot be read any more when that runs."""
    os.environ["TRITON_INTERPRET"] = "1"
    for module in ("pagedlab.course.triton_notebook", "triton.language"):
        with contextlib.suppress(ModuleNotFoundError):  # without Triton the first cell says so itself
            importlib.import_module(module)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any) -> None:
    """`kernel[grid](*arguments)`; what the kernel's own code raised comes out as it was raised.

    Raises:
        TypeError: the answer is no kernel, or one that is compiled for a GPU.
    """
    is_real = type(kernel).__module__.startswith("triton.") and "fn" in vars(kernel)
    if not is_real or (type(kernel) is type(a_kernel()) and "run" in vars(kernel)):
        raise TypeError(f"a kernel is asked, with @triton.jit above its def, not {type(kernel).__name__}")
    if not interprets() or type(kernel) is not type(a_kernel()):
        raise TypeError("Triton was imported before TRITON_INTERPRET=1 was set: restart the kernel, run the setup cell")
    try:
        kernel[grid](*arguments)
    except Exception as error:
        while type(error).__name__ == "InterpreterError" and isinstance(error.__cause__, Exception):
            error = error.__cause__
        raise error from None


def interprets() -> bool:
    """Triton's own functions, such as tl.sum, are interpreted or compiled as was said when it was imported."""
    import triton.language as tl

    return type(tl.sum).__name__ == "InterpretedFunction"


def a_kernel() -> Any:
    """One of Triton's own, to compare with: a class of that name that runs torch is no kernel."""
    import triton.language as tl

    return tl.sum


def guarded(values: Tensor, filler: float = math.nan) -> Tensor:
    """A copy with room on both sides, full of `filler`; of zeros for whole numbers."""
    filler = filler if values.is_floating_point() else 0
    room = torch.full((values.numel() + 2 * GUARD,), filler, dtype=values.dtype)
    inside = room[GUARD : GUARD + values.numel()].view(values.shape)
    return inside.copy_(values)


def run_decode(kernel: Any, query: Tensor, keys: Tensor, values: Tensor, table: list[int], length: int) -> Tensor:
    """One program a query head: query [heads, dim], keys and values [blocks, slots, kv_heads, dim] -> [heads, dim]."""
    _, block_size, kv_heads, dim = keys.shape
    out = guarded(torch.full_like(query, UNWRITTEN), UNWRITTEN)
    tensors = [guarded(tensor) for tensor in (query, keys, values, torch.tensor(table, dtype=torch.int32))]
    constants = (len(query) // kv_heads, kv_heads, dim, block_size)
    launch(kernel, (len(query),), out, *tensors, length, dim**-0.5, *constants)
    return out


def run_merge(kernel: Any, parts: Tensor, lse: Tensor) -> Tensor:
    """One program a head: parts [splits, heads, dim], lse [splits, heads] -> [heads, dim]."""
    splits, heads, dim = parts.shape
    out = guarded(torch.full((heads, dim), UNWRITTEN), UNWRITTEN)
    padded = 1 << (splits - 1).bit_length()
    launch(kernel, (heads,), out, guarded(parts), guarded(lse), splits, heads, dim, padded)
    return out


def run_prefill(
    kernel: Any, query: Tensor, keys: Tensor, values: Tensor, table: list[int], context: int, tiles: int
) -> dict[str, Any]:
    """A grid of heads by tiles of 16 rows, query [rows, heads, dim] -> the tiles' rows, and what was not to be."""
    num_rows, heads, dim = query.shape
    _, block_size, kv_heads, _ = keys.shape
    out = guarded(torch.full_like(query, UNWRITTEN), UNWRITTEN)
    tensors = [guarded(tensor) for tensor in (query, keys, values, torch.tensor(table, dtype=torch.int32))]
    constants = (heads // kv_heads, kv_heads, dim, block_size, 16)
    launch(kernel, (heads, tiles), out, *tensors, num_rows, context, dim**-0.5, *constants)
    wanted = min(16 * tiles, num_rows)
    after = out.as_strided((GUARD // 2,), (1,), out.storage_offset() + wanted * heads * dim)
    rows = out[:wanted]
    return summary(rows, int((rows == UNWRITTEN).sum()), int((after != UNWRITTEN).sum()))


def summary(rows: Tensor, missing: int = 0, beyond: int = 0) -> dict[str, Any]:
    """Rows [rows, heads, dim], each as one number that no other order of its numbers has: short enough to be shown."""
    weights = torch.arange(1, rows.shape[-1] + 1, dtype=rows.dtype)
    return {"rows": rows @ weights, "numbers never stored": missing, "numbers stored past the last row": beyond}
