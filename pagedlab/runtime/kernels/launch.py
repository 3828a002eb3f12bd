"""Launching a kernel for the thousandth time.

`kernel[grid](...)` finds out anew at each call which compiled variant fits its arguments: 30 to 80 microseconds of
Python, and a step without a CUDA graph launches hundreds of kernels. What the variant depends on is little: the
constants and options, the tensors' dtypes, and which addresses and integers are multiples of 16. So we remember it by
these, and launch it directly in a fifth of the time, as Triton's tutorials do with kernels compiled beforehand.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from triton.runtime import driver

from pagedlab.runtime.kernels import INTERPRETED


def next_power_of_2(n: int) -> int:
    """The smallest power of two >= n. (Triton's own takes 5 microseconds: it serves kernels, too.)"""
    return 1 << (n - 1).bit_length()


FUSED = {"enable_fp_fusion": True}
"""a * b + c as one instruction, rounded once: Triton's default until 3.9, and on its way out."""

_compiled: dict[tuple[Any, ...], Any] = {}


def launch(
    kernel: Any,
    grid: tuple[int, int, int],
    arguments: tuple[Tensor | int | float, ...],
    constants: dict[str, Any],
    **options: Any,
) -> None:
    """`kernel[grid](*arguments, **constants, **options)`.

    `arguments` are the kernel's run-time parameters and `constants` its compile-time ones, both in its own order.
    `options` are Triton's: num_warps, num_stages, maxnreg.
    """
    options |= FUSED
    if INTERPRETED:
        kernel[grid](*arguments, **constants, **options)
        return
    key: list[Any] = [id(kernel), driver.active.get_current_device(), *constants.values(), *options.values()]
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            key += (argument.dtype, argument.data_ptr() % 16 == 0)
        elif isinstance(argument, int):  # 1 and multiples of 16 are compiled apart; beyond 32 bits the type changes
            key += (argument == 1, argument % 16 == 0, -(2**31) <= argument < 2**31)
    compiled = _compiled.get(tuple(key))
    if compiled is not None:
        compiled[grid](*arguments, *constants.values())
        return
    names = kernel.arg_names[len(arguments) :]
    assert names == list(constants), f"{kernel.__name__} takes the constants {names}, in this order"
    _compiled[tuple(key)] = kernel[grid](*arguments, **constants, **options)
