"""Compile every kernel for real GPUs on a machine that may have none, and say what the compiler made of it.

Triton carries its own assembler, so registers, spills, shared memory and the instructions chosen can be read anywhere:
a slow kernel is often visible before it has run. What to look for:

    spill    bytes a thread keeps in local memory because it ran out of registers: traffic that nobody asked for
    shared   bytes of shared memory a program holds; the chip's limit divided by it bounds the programs at once
    wgmma    Hopper's asynchronous matrix instructions; mma is Ampere's, which reaches about 60 % of Hopper's rate
    cp.async copies from global to shared memory that run ahead of the arithmetic; 16 bytes each is the widest, and a
             narrower one means that the compiler lost the alignment of an address
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import triton

from pagedlab.errors import BackendError
from pagedlab.runtime.kernels import INTERPRETED
from pagedlab.runtime.kernels.activation import silu_mul_kernel
from pagedlab.runtime.kernels.block_copy import block_copy_kernel
from pagedlab.runtime.kernels.cache_write import cache_write_kernel
from pagedlab.runtime.kernels.decode import (
    MAX_REGISTERS,
    MERGE_CHUNK,
    MERGE_WARPS,
    decode_config,
    merge_splits_kernel,
    paged_decode_kernel,
)
from pagedlab.runtime.kernels.launch import FUSED, next_power_of_2
from pagedlab.runtime.kernels.paging import granule_of, head_dim_parts
from pagedlab.runtime.kernels.prefill import SEARCH_CHUNK, paged_prefill_kernel, prefill_config
from pagedlab.runtime.kernels.rms_norm import rms_norm_kernel
from pagedlab.runtime.kernels.rope import rope_cache_write_kernel

SHARED_LIMIT = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024}
"""Shared memory that one program may have, bytes (CUDA C++ programming guide, table of compute capabilities)."""

NUM_KV_HEADS = 8
"""KV heads of the models in the table."""

POINTERS = {
    "tables_ptr": "*i32",
    "table_ptr": "*i32",
    "query_starts_ptr": "*i32",
    "seq_lens_ptr": "*i32",
    "pairs_ptr": "*i32",
    "slots_ptr": "*i64",
    "partial_ptr": "*fp32",
    "lse_ptr": "*fp32",
}
"""Pointers whose type is not the model's."""


@dataclass(frozen=True)
class Case:
    """One kernel with the constants and launch options that the package uses for some model shape."""

    title: str
    kernel: Any
    constants: dict[str, Any]
    num_warps: int
    num_stages: int = 2
    max_registers: int | None = None
    dtype: str = "bf16"


@dataclass(frozen=True)
class Report:
    """What the compiler made of a case. Sizes in bytes; instructions counted in the program text, not as executed."""

    title: str
    arch: int
    registers: int
    spill: int
    shared: int
    shared_limit: int
    wgmma: int
    mma: int
    cp_async_16: int
    cp_async_narrow: int


def attention_cases(arch: int, head_dim: int, group: int, block_size: int, window: int = 0) -> Iterator[Case]:
    """Decode and prefill as `TritonBackend` launches them for such a model."""
    shape = f"d{head_dim} g{group} block {block_size}" + (f" window {window}" if window else "")
    decode = decode_config(head_dim, NUM_KV_HEADS, 2)
    yield Case(
        f"decode  {shape}",
        paged_decode_kernel,
        {
            "GROUP": group,
            "NUM_KV_HEADS": NUM_KV_HEADS,
            "HEAD_DIM": head_dim,
            "PACK": decode.pack,
            "HEADS_PAD": next_power_of_2(decode.pack * group),
            "WIDTH_PAD": next_power_of_2(decode.pack * head_dim),
            "BLOCK_SIZE": block_size,
            "BLOCK_N": decode.block_n,
            "GRANULE": granule_of(block_size, decode.block_n),
            "WINDOW": window,
            "SPLIT": True,
        },
        decode.num_warps,
        decode.num_stages,
        MAX_REGISTERS,
    )
    main, tail = head_dim_parts(head_dim)
    config = prefill_config(head_dim, 2, max_rows=4096, max_context=8192, capability=divmod(arch, 10))
    yield Case(
        f"prefill {shape}",
        paged_prefill_kernel,
        {
            "GROUP": group,
            "NUM_KV_HEADS": NUM_KV_HEADS,
            "MAIN": main,
            "TAIL": tail,
            "BLOCK_SIZE": block_size,
            "BLOCK_M": config.block_m,
            "BLOCK_Q": config.block_m // group,
            "BLOCK_N": config.block_n,
            "GRANULE": granule_of(block_size, config.block_n),
            "WINDOW": window,
            "CHUNK": SEARCH_CHUNK,
        },
        config.num_warps,
        config.num_stages,
    )


def cases(arch: int) -> Iterator[Case]:
    """Every kernel; the two attention kernels in the shapes of common models."""
    for head_dim, group, block_size in [
        (64, 3, 16),
        (80, 1, 48),
        (96, 4, 16),
        (128, 4, 16),
        (128, 8, 256),
        (256, 4, 16),
    ]:
        yield from attention_cases(arch, head_dim, group, block_size)
    yield from attention_cases(arch, 128, 4, 16, window=4096)
    decode = decode_config(128, NUM_KV_HEADS, 2)
    constants = {"HEAD_DIM": 128, "HEAD_DIM_PAD": 128, "BLOCK_N": decode.block_n, "WINDOW": 0}
    merge = {**constants, "CHUNK": MERGE_CHUNK}
    yield Case("merge of splits", merge_splits_kernel, merge, MERGE_WARPS)
    yield Case("cache write", cache_write_kernel, {"BLOCK_SIZE": 16, "ROW": 1024, "ROW_PAD": 1024}, 4)
    yield Case("block copy", block_copy_kernel, {"BLOCK": 16384, "CHUNK": 4096}, 4)
    yield Case("residual + RMSNorm", rms_norm_kernel, {"HIDDEN": 4096, "HIDDEN_PAD": 4096, "ADD": True}, 4)
    yield Case("silu * up", silu_mul_kernel, {"INTERMEDIATE": 14336, "BLOCK": 1024}, 4)
    heads = {"NUM_HEADS": 32, "NUM_HEADS_PAD": 32, "NUM_KV_HEADS": 8, "NUM_KV_HEADS_PAD": 8}
    rope = {"NORM": True, **heads, "HALF": 64, "HALF_PAD": 64, "BLOCK_SIZE": 16, "ROW_PAD": 1024}
    yield Case("head norms + RoPE + cache write", rope_cache_write_kernel, rope, 4)


def compiled_kernel(case: Case, arch: int) -> Any:
    """Triton's compiled kernel: its `asm` holds the text of each stage ("ttgir", "ptx") and the "cubin".

    Raises:
        BackendError: this process interprets kernels instead of compiling them.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if INTERPRETED:
        raise BackendError("kernels cannot be compiled in a process with TRITON_INTERPRET=1: unset it")
    names = case.kernel.arg_names
    signature = {name: _type_of(name, case) for name in names}
    # What a launch tells the compiler: tensors begin at multiples of 16 bytes, rows at multiples of 16 elements.
    aligned = [name for name in names if name.endswith("_ptr") or name in _row_strides(case)]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    return triton.compile(
        ASTSource(fn=case.kernel, signature=signature, constexprs=case.constants, attrs=attributes),
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": case.num_warps, "num_stages": case.num_stages, "maxnreg": case.max_registers, **FUSED},
    )


def compile_case(case: Case, arch: int) -> Report:
    """Raises:
    BackendError: this process interprets kernels instead of compiling them.
    """
    compiled = compiled_kernel(case, arch)
    registers, spill = _resource_usage(compiled.asm["cubin"])
    ptx = compiled.asm["ptx"]
    copies = re.findall(r"cp\.async\.c[ag]\.shared\.global.*?, *(0x[0-9a-f]+|\d+)", ptx)
    wide = sum(int(size, 0) == 16 for size in copies)
    return Report(
        title=case.title,
        arch=arch,
        registers=registers,
        spill=spill,
        shared=compiled.metadata.shared,
        shared_limit=SHARED_LIMIT.get(arch, SHARED_LIMIT[90]),
        wgmma=ptx.count("wgmma.mma_async"),
        mma=ptx.count("mma.sync"),
        cp_async_16=wide,
        cp_async_narrow=len(copies) - wide,
    )


def _type_of(name: str, case: Case) -> str:
    if name in case.constants:
        return "constexpr"
    if name.endswith("_ptr"):
        return POINTERS.get(name, "*" + case.dtype)
    return "fp32" if name in ("scale", "eps") else "i32"


def _row_strides(case: Case) -> list[str]:
    """Strides that the kernel lets Triton specialise on (a block table's width is not among them)."""
    runtime = [name for name in case.kernel.arg_names if name not in case.constants and name.endswith("_stride")]
    return [name for name in runtime if name != "table_stride"]


def _resource_usage(cubin: bytes) -> tuple[int, int]:
    """Registers a thread, and bytes of its stack: these kernels call nothing, so a stack is spilled registers."""
    tool = triton.knobs.nvidia.cuobjdump.path
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return usage["REG"], usage["STACK"] + usage["LOCAL"]


def render(reports: list[Report]) -> str:
    """The table that `pagedlab kernels` prints."""
    lines = [
        f"{'kernel':<38} {'arch':>5} {'regs':>5} {'spill':>6} {'shared':>8} {'of':>8} "
        f"{'wgmma':>6} {'mma':>5} {'cp.async':>9}"
    ]
    for r in reports:
        copies = f"{r.cp_async_16}x16" + (f"+{r.cp_async_narrow}!" if r.cp_async_narrow else "")
        lines.append(
            f"{r.title:<38} sm_{r.arch:<2} {r.registers:>5} {r.spill:>6} {r.shared:>8} {r.shared_limit:>8} "
            f"{r.wgmma:>6} {r.mma:>5} {copies:>9}"
        )
    return "\n".join(lines)


def main(args: list[str] | None = None) -> int:
    """`pagedlab kernels`: compile all kernels and print the table."""
    parser = argparse.ArgumentParser(prog="pagedlab kernels", description="What the compiler made of each kernel.")
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90], help="compute capabilities, as in 80 90")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(args)
    if INTERPRETED:  # the caller's process interprets: compile in one that does not
        environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
        words = sys.argv[1:] if args is None else args
        module = "pagedlab.runtime.kernels.compile_report"  # not __name__, which is __main__ here for `python -m`
        return subprocess.run([sys.executable, "-m", module, *words], env=environment).returncode
    reports = [compile_case(case, arch) for arch in options.arch for case in cases(arch)]
    print(json.dumps([asdict(r) for r in reports]) if options.json else render(reports))
    return 0


if __name__ == "__main__":
    sys.exit(main())
