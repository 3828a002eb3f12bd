"""Triton kernels of the paged runtime, one file a kernel: each opens with its algorithm, its shapes, the bytes and
FLOPs that it must move, and its launch grid.

Importing this package needs Triton but no GPU. With `TRITON_INTERPRET=1` set before Triton is first imported, every
kernel runs on CPU tensors, one program after another, in numpy: slow, and enough to prove which slots are read and
written. The interpreter multiplies raw bits where a bfloat16 `tl.dot` is asked for, so it takes float32 and float16.
"""

from __future__ import annotations

import triton

INTERPRETED: bool = bool(triton.knobs.runtime.interpret)
"""Whether the kernels of this process were built for the interpreter (fixed when Triton decorates them)."""
