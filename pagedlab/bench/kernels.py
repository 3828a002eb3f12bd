"""`pagedlab bench kernels`: the Triton attention kernels against the machine's own limits and against other libraries.

Decode attention is bound by memory: its score is the K and V bytes it must read over the time, as a share of the copy
bandwidth measured a moment before. Prefill is bound by arithmetic: its score is the FLOPs of the visible query-key
pairs over the time, beside the rate of a large matrix product. The other libraries get the same tensors without block
tables, which is the easier problem; those that are not installed are left out and named.

On a GPU each measurement is a captured CUDA graph of several calls, so launch costs of Python are out of it. With
`--toy` everything runs on tiny tensors: under Triton's interpreter (no GPU) that proves the script, and its times mean
nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pagedlab.bench.kernel_peers import PEERS, Dense
from pagedlab.errors import BackendError
from pagedlab.runtime.attention.base import AttentionMetadata
from pagedlab.runtime.attention.triton_backend import TritonBackend

TOLERANCE = 2e-2
"""Largest relative difference from SDPA that counts as the same result in 16 bits."""


@dataclass(frozen=True)
class Case:
    """One batch of equal sequences. `query_len` 1 is decode; otherwise a whole prompt of `context` tokens."""

    batch: int
    context: int
    query_len: int
    num_kv_heads: int
    group: int
    head_dim: int
    block_size: int

    @property
    def kind(self) -> str:
        return "decode" if self.query_len == 1 else "prefill"

    @property
    def title(self) -> str:
        return (
            f"b{self.batch} n{self.context} kv{self.num_kv_heads} g{self.group} d{self.head_dim} block{self.block_size}"
        )

    @property
    def kv_bytes(self) -> int:
        """Bytes of K and V that the batch's contexts hold, in 16 bits."""
        return 4 * self.batch * self.context * self.num_kv_heads * self.head_dim

    @property
    def flops(self) -> float:
        """Two products, two FLOPs a multiply-add, over the visible pairs only."""
        first = self.context - self.query_len + 1
        pairs = self.query_len * (first + self.context) / 2
        return 4.0 * self.batch * pairs * self.num_kv_heads * self.group * self.head_dim


DECODE = [
    Case(16, 4096, 1, 8, 4, 128, 16),
    Case(64, 4096, 1, 8, 4, 128, 16),
    Case(256, 4096, 1, 8, 4, 128, 16),
    Case(16, 4096, 1, 32, 1, 128, 16),
    Case(64, 4096, 1, 8, 8, 128, 256),
    Case(32, 8192, 1, 8, 8, 64, 32),
    Case(64, 8192, 1, 8, 4, 80, 16),
    Case(64, 4096, 1, 8, 2, 96, 48),
    Case(32, 4096, 1, 4, 4, 256, 64),
    Case(64, 8192, 1, 3, 3, 64, 16),
    Case(1, 32768, 1, 8, 4, 128, 16),
]
PREFILL = [Case(1, n, n, 8, 4, 128, 16) for n in (1024, 2048, 4096, 8192, 16384)] + [
    Case(1, 8192, 8192, 8, 4, 64, 16),
    Case(1, 8192, 8192, 8, 4, 80, 16),
    Case(1, 8192, 8192, 8, 4, 96, 16),
    Case(1, 8192, 8192, 4, 4, 256, 16),
]
TOY = [Case(2, 40, 1, 2, 2, 64, 16), Case(1, 40, 40, 2, 2, 64, 16)]


@dataclass
class Row:
    """One case's result: microseconds and rate, GB/s (decode) or TFLOP/s (prefill), of each implementation."""

    case: Case
    microseconds: dict[str, float] = field(default_factory=dict)
    rate: dict[str, float] = field(default_factory=dict)
    share_of_limit: float = 0.0
    difference_from_sdpa: float | None = None


def measure(call: Callable[[], Any], device: torch.device, *, calls: int = 6, repeats: int = 9) -> float:
    """Median seconds of one call, over `repeats` replays of a graph of `calls`."""
    if device.type != "cuda":
        times = []
        for _ in range(2):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return min(times)
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    began = time.perf_counter()
    while time.perf_counter() - began < 0.1:  # the chip clocks down while Python compiles: wake it
        graph.replay()
        torch.cuda.synchronize()
    times = []
    for _ in range(repeats):
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        graph.replay()
        after.record()
        after.synchronize()
        times.append(before.elapsed_time(after) / 1e3 / calls)
    return statistics.median(times)


def ceilings(device: torch.device, dtype: torch.dtype, *, toy: bool) -> dict[str, float]:
    """Copy bandwidth (GB/s, bytes read plus bytes written) and matrix rate (TFLOP/s), on random data."""
    side = 64 if toy else 8192
    a, b = torch.randn(2, side, side, dtype=dtype, device=device)
    product = measure(lambda: a @ b, device)
    source = torch.randn(2**16 if toy else 2**31, dtype=dtype, device=device)
    target = torch.empty_like(source)
    # An elementwise kernel, because a graph replays `copy_` on the slower copy engine.
    copy = measure(lambda: torch.neg(source, out=target), device)
    moved = 2 * source.numel() * source.element_size()
    return {"copy_gb_s": moved / copy / 1e9, "matmul_tflop_s": 2 * side**3 / product / 1e12}


def make_inputs(case: Case, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, AttentionMetadata]:
    """Random queries, and a cache whose blocks are scattered at random over the pool."""
    width = -(-case.context // case.block_size)
    num_blocks = case.batch * width + 1
    shape = (2, num_blocks, case.block_size, case.num_kv_heads, case.head_dim)
    kv_cache = torch.empty(shape, dtype=dtype, device=device).normal_()
    tables = (torch.randperm(num_blocks - 1, device=device) + 1).to(torch.int32).view(case.batch, width)
    rows = case.batch * case.query_len
    query = torch.randn(rows, case.num_kv_heads * case.group, case.head_dim, dtype=dtype, device=device)
    metadata = AttentionMetadata(
        block_tables=tables,
        query_starts=torch.arange(case.batch + 1, dtype=torch.int32, device=device) * case.query_len,
        seq_lens=torch.full((case.batch,), case.context, dtype=torch.int32, device=device),
        slot_mapping=torch.zeros(rows, dtype=torch.int64, device=device),
        query_lens_host=[case.query_len] * case.batch,
        seq_lens_host=[case.context] * case.batch,
    )
    return query, kv_cache, metadata


def run_case(case: Case, device: torch.device, dtype: torch.dtype, limits: dict[str, float], missing: set[str]) -> Row:
    """Measure our kernel and every peer on one case; a peer that cannot run it is left out, the reason in `missing`."""
    query, kv_cache, metadata = make_inputs(case, device, dtype)
    backend = TritonBackend()
    metadata.plan = backend.plan(metadata, block_size=case.block_size, sliding_window=None)
    scale = case.head_dim**-0.5
    seconds = {}

    def ours() -> Tensor:
        return backend.attend(query, kv_cache, metadata, scale=scale, sliding_window=None)

    seconds["triton"] = measure(ours, device)
    out = ours()
    keys, values = (
        plane[metadata.block_tables.long()].flatten(1, 2)[:, : case.context].contiguous() for plane in kv_cache
    )
    dense = Dense(query.view(case.batch, case.query_len, -1, case.head_dim), keys, values, scale)
    row = Row(case)
    for name, build in PEERS[case.kind].items():
        try:
            call = build(dense)
            if name == "sdpa":
                theirs = call().transpose(1, 2).reshape(out.shape)
                row.difference_from_sdpa = float((out.float() - theirs.float()).norm() / theirs.float().norm())
            seconds[name] = measure(call, device)
        except ImportError as error:
            missing.add(f"{name}: {error}")
        except Exception as error:  # a peer may refuse a shape in any way it likes: it loses its bar, no more
            missing.add(
                f"{name} ({case.kind} d{case.head_dim}): {type(error).__name__}: {str(error).splitlines()[0][:90]}"
            )
    amount = case.kv_bytes / 1e9 if case.kind == "decode" else case.flops / 1e12
    row.microseconds = {name: 1e6 * s for name, s in seconds.items()}
    row.rate = {name: amount / s for name, s in seconds.items()}
    limit = limits["copy_gb_s"] if case.kind == "decode" else limits["matmul_tflop_s"]
    row.share_of_limit = row.rate["triton"] / limit
    if row.difference_from_sdpa is not None and not row.difference_from_sdpa < TOLERANCE:
        raise BackendError(f"{case.title}: the kernel differs from SDPA by {row.difference_from_sdpa:.1e}")
    return row


def describe(device: torch.device) -> dict[str, Any]:
    """Where and when the numbers were measured."""
    import triton

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} (interpreted)"
    return {
        "device": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }


def draw(rows: list[Row], limits: dict[str, float], about: dict[str, Any], path: Path) -> None:
    """Two panels of bars: decode in GB/s and prefill in TFLOP/s, each with its measured limit as a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 9), layout="constrained")
    panels = figure.subplots(2, 1)
    kinds = [
        ("decode", "GB/s of K and V", "copy_gb_s", "copy bandwidth, measured"),
        ("prefill", "TFLOP/s (causal)", "matmul_tflop_s", "matrix product, measured"),
    ]
    for axes, (kind, unit, limit, meaning) in zip(panels, kinds, strict=True):
        chosen = [row for row in rows if row.case.kind == kind]
        names = list(dict.fromkeys(name for row in chosen for name in row.rate))
        width = 0.8 / max(1, len(names))
        for i, name in enumerate(names):
            places = [k + (i - (len(names) - 1) / 2) * width for k, row in enumerate(chosen) if name in row.rate]
            axes.bar(places, [row.rate[name] for row in chosen if name in row.rate], width, label=name)
        axes.axhline(limits[limit], color="black", linestyle="--", linewidth=1, label=meaning)
        labels = [row.case.title.replace(" kv", "\nkv").replace(" block", "\nblock ") for row in chosen]
        axes.set_xticks(range(len(chosen)), labels, fontsize=8)
        axes.set_ylabel(unit)
        axes.set_title(kind)
        axes.legend(fontsize=8, ncols=4, loc="lower right")
    figure.suptitle(f"{about['device']}, torch {about['torch']}, triton {about['triton']}, {about['date'][:10]}")
    figure.savefig(path, dpi=110)


def main(args: list[str] | None = None) -> int:
    """Measure, print a table, write `kernels.json` and `kernels.png` into `--out`."""
    parser = argparse.ArgumentParser(prog="pagedlab bench kernels", description=__doc__.splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="tiny tensors, to try the script (also without a GPU)")
    parser.add_argument("--out", type=Path, default=Path("bench_results"), help="folder for kernels.json, kernels.png")
    options = parser.parse_args(args)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    reason = TritonBackend.unsupported_reason(device=device, dtype=dtype, head_dim=64, block_size=16)
    if reason is not None:
        raise BackendError(reason)
    torch.manual_seed(0)
    about, limits = describe(device), ceilings(device, dtype, toy=options.toy)
    print(
        f"{about['device']}: copy {limits['copy_gb_s']:.0f} GB/s, matrix product {limits['matmul_tflop_s']:.0f} TFLOP/s"
    )
    rows: list[Row] = []
    missing: set[str] = set()
    for case in TOY if options.toy else DECODE + PREFILL:
        row = run_case(case, device, dtype, limits, missing)
        rows.append(row)
        rates = "  ".join(f"{name} {rate:,.0f}" for name, rate in row.rate.items())
        print(f"{case.kind:<8} {case.title:<40} {row.share_of_limit:>5.0%} of the limit  {rates}", flush=True)
    for line in sorted(missing):
        print(f"not measured: {line}")
    options.out.mkdir(parents=True, exist_ok=True)
    result = {"about": about, "limits": limits, "rows": [asdict(row) for row in rows], "missing": sorted(missing)}
    (options.out / "kernels.json").write_text(json.dumps(result, indent=1))
    draw(rows, limits, about, options.out / "kernels.png")
    print(f"written: {options.out / 'kernels.json'}, {options.out / 'kernels.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
