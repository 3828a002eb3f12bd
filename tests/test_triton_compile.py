"""What the compiler makes of the kernels for real GPUs: readable on any machine, since Triton brings its assembler."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def reports() -> list[dict]:
    """Compiled in a process of its own, where the interpreter is certainly off."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-m", "pagedlab.runtime.kernels.compile_report", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def test_every_kernel_compiles_for_ampere_and_hopper(reports):
    titles = {arch: {r["title"] for r in reports if r["arch"] == arch} for arch in (80, 90)}
    assert titles[80] == titles[90] and len(titles[90]) == 20


def test_no_kernel_spills_registers(reports):
    assert {(r["title"], r["arch"]): r["spill"] for r in reports if r["spill"]} == {}


def test_shared_memory_fits_one_multiprocessor(reports):
    assert all(0 <= r["shared"] <= r["shared_limit"] for r in reports)


def test_hopper_prefill_uses_the_asynchronous_matrix_units_and_nothing_older(reports):
    prefill = [r for r in reports if r["title"].startswith("prefill") and r["arch"] == 90]
    assert prefill and all(r["wgmma"] > 0 and r["mma"] == 0 for r in prefill)


def test_keys_and_values_arrive_by_asynchronous_copies_of_16_bytes_each(reports):
    attention = [r for r in reports if r["title"].startswith(("prefill", "decode"))]
    # One tile of K and V is at least 4 copies a thread, and the pipeline starts one more before its loop.
    assert all(r["cp_async_16"] >= 8 for r in attention)
    assert {r["title"]: r["cp_async_narrow"] for r in attention if r["cp_async_narrow"]} == {}
