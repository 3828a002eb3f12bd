"""A remembered launch passes exactly what Triton's own launch passes; proved with a driver that only writes down.

In a process of its own, since Triton's driver is replaced there.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

SCRIPT = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

launched = []


class Launcher:
    def __init__(self, source, metadata):
        self.name = metadata.name

    def __call__(self, x, y, z, stream, function, packed, metadata, enter, leave, *arguments):
        plain = tuple(a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments)
        launched.append((self.name, (x, y, z), stream, function, packed, plain))


class Utils:
    def load_binary(self, name, binary, shared, device):
        return 1, hash(binary), 32, 0, 1024

    def get_device_properties(self, device):
        return {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32}


class Driver:
    utils, launcher_cls = Utils(), Launcher

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 7

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


driver.set_active(Driver())
from pagedlab.runtime.kernels import launch as module
from pagedlab.runtime.kernels.cache_write import cache_write
from pagedlab.runtime.kernels.decode import paged_decode
from pagedlab.runtime.kernels.prefill import PrefillConfig, paged_prefill
from pagedlab.runtime.kernels.splits import Splits, SplitWorkspace
from pagedlab.runtime.kernels.rms_norm import add_rms_norm

half = torch.float16
cache = torch.zeros(2, 8, 16, 2, 64, dtype=half)
query = torch.zeros(3, 4, 64, dtype=half)
tables, starts = torch.zeros(3, 4, dtype=torch.int32), torch.arange(4, dtype=torch.int32)
lens, slots = torch.full((3,), 9, dtype=torch.int32), torch.arange(3)
workspace = SplitWorkspace()
x, out = torch.zeros(3, 64, dtype=half), torch.zeros_like(query)
odd = torch.zeros(3 * 264 + 1, dtype=half)[1:].view(3, 264)[:, :256].view(3, 4, 64)  # neither aligned nor 16-strided


def everything():
    for q in (query, odd):
        for count in (1, 3):
            paged_decode(out, q, cache, tables, starts, lens, scale=0.125, sliding_window=None,
                         splits=Splits(count, 128), workspace=workspace)
        paged_prefill(out, q, cache, tables, starts, lens, scale=0.125, sliding_window=5,
                      config=PrefillConfig(16, 16, 4, 2))
    cache_write(query[:, :2], query[:, 2:], cache, slots)
    cache_write(odd[:, :2], odd[:, 2:], cache, slots)
    add_rms_norm(x, x.clone(), x[0], 1e-5)


everything()
first, launched[:] = list(launched), []
variants = len(module._compiled)
everything()
assert len(module._compiled) == variants, "the second round compiled something anew"
assert len(first) == len(launched) == 11, (len(first), len(launched))
for before, after in zip(first[:-1], launched[:-1]):  # the last writes to memory that is new each time
    assert before == after, (before, after)
assert first[-1][:5] == launched[-1][:5]
aligned, unaligned = first[3], first[7]
assert aligned[0] == unaligned[0] == "paged_prefill_kernel" and aligned[3] != unaligned[3], "one binary for both"
print("same")
"""


def test_a_remembered_launch_passes_what_tritons_own_does():
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT]
    done = subprocess.run(command, env={**environment, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "same", done.stdout + done.stderr[-3000:]
