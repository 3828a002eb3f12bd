"""The kernel tests, run on the CPU by Triton's interpreter, in a process of their own.

Of their own because the interpreter must be chosen before Triton is first imported, and because a kernel that reads out
of bounds takes its whole process down.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from packaging.version import Version

triton = pytest.importorskip("triton")

pytestmark = pytest.mark.timeout(2000)  # whole files of tests and benchmarks, and machines are slow in different ways

TESTS = Path(__file__).parent
OURS = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}  # not this run's worker
ENVIRONMENT = {**OURS, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
BROKEN = Version(triton.__version__) < Version("3.7") and Version(numpy.__version__) >= Version("2.4")


@pytest.mark.skipif(BROKEN, reason="Triton before 3.7 cannot interpret range() over tensors with numpy 2.4 or newer")
@pytest.mark.parametrize("name", ["test_triton_kernels.py", "test_triton_elementwise.py"])
def test_every_kernel_is_right_in_the_interpreter(name):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS / name)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, cwd=TESTS.parent)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) >= 3 and "skipped" not in done.stdout, done.stdout[-500:]


@pytest.mark.skipif(BROKEN, reason="Triton before 3.7 cannot interpret range() over tensors with numpy 2.4 or newer")
def test_the_benchmark_runs_to_its_end_on_toy_sizes(tmp_path):
    command = [sys.executable, "-m", "pagedlab.bench.kernels", "--toy", "--out", str(tmp_path)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, cwd=TESTS.parent)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / "kernels.png").stat().st_size > 10_000
    assert '"difference_from_sdpa"' in (tmp_path / "kernels.json").read_text()


@pytest.mark.slow
@pytest.mark.skipif(BROKEN, reason="Triton before 3.7 cannot interpret range() over tensors with numpy 2.4 or newer")
def test_the_gpu_check_runs_to_its_end_on_toy_sizes(tmp_path):
    command = [sys.executable, "-m", "pagedlab.bench.gpu_check", "--toy", "--output", str(tmp_path)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, cwd=TESTS.parent)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "All parts came to their end." in done.stdout
    written = {path.name for path in tmp_path.iterdir()}
    assert {"kernels.json", "kernels.png", "decode.json", "offline.json", "offline.png", "peers.json"} <= written
