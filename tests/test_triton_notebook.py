"""What chapter 08 needs around its kernels: a reason not to run, cells that do nothing, a compiler apart."""

from __future__ import annotations

import importlib.metadata
import importlib.util

import numpy as np
import pytest
from IPython.core.interactiveshell import InteractiveShell

from pagedlab.course import triton_notebook
from pagedlab.course.triton_notebook import Job, Layout, compile_apart, last_message, layouts_in, skip_rest, source_of
from pagedlab.errors import CourseError

TTGIR = """
#blocked = #ttg.blocked<{sizePerThread = [1, 8], threadsPerWarp = [2, 16], warpsPerCTA = [4, 1], order = [1, 0]}>
#blocked1 = #ttg.blocked<{sizePerThread = [1], threadsPerWarp = [32], warpsPerCTA = [4], order = [0]}>
#other = #ttg.nvidia_mma<{versionMajor = 3}>
"""


def test_without_triton_the_reason_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "not installed (it exists for Linux only)" in str(triton_notebook.reason_against_triton())


@pytest.mark.parametrize(
    ("triton", "numpy", "interpret", "stops"),
    [
        ("3.6.0", "2.4.1", "1", True),
        ("3.6.0", "2.4.1", "0", False),
        ("3.6.0", "2.3.5", "1", False),
        ("3.7.1", "2.4.1", "1", False),
    ],
)
def test_versions_that_cannot_interpret_are_named(
    monkeypatch: pytest.MonkeyPatch, triton: str, numpy: str, interpret: str, stops: bool
) -> None:
    versions = {"triton": triton, "numpy": numpy}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib.metadata, "version", versions.__getitem__)
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    reason = triton_notebook.reason_against_triton()
    assert (f"Triton {triton} cannot interpret loops with numpy {numpy}" in str(reason)) if stops else reason is None


def test_after_a_reason_every_cell_does_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shell = InteractiveShell()
    monkeypatch.setattr(triton_notebook, "get_ipython", lambda: shell)
    skip_rest(None)
    shell.run_cell("before = 1")
    skip_rest("No Triton here.")
    assert capsys.readouterr().out == "No Triton here. The cells below do nothing.\n"
    result = shell.run_cell("after = 1\n1 / 0")
    assert result.success and "before" in shell.user_ns and "after" not in shell.user_ns


def test_layouts_of_matrices_are_read_from_the_compilers_text() -> None:
    assert layouts_in(TTGIR) == [Layout((1, 8), (2, 16), (4, 1), (1, 0))]
    assert layouts_in("something else") == []


def brute_force_owners(layout: Layout, shape: tuple[int, int]) -> np.ndarray:
    """Hand the tile out thread by thread, as Triton's documentation of blocked layouts has it."""
    owners = np.full(shape, -1)
    (rows, columns), (rows_apart, columns_apart) = layout.threads, layout.warps
    for warp in range(rows_apart * columns_apart):
        for lane in range(rows * columns):
            if layout.order == (1, 0):
                (warp_row, warp_column), (row, column) = divmod(warp, columns_apart), divmod(lane, columns)
            else:
                (warp_column, warp_row), (column, row) = divmod(warp, rows_apart), divmod(lane, rows)
            for i in range(layout.per_thread[0]):
                for j in range(layout.per_thread[1]):
                    at_row = (warp_row * rows + row) * layout.per_thread[0] + i
                    at_column = (warp_column * columns + column) * layout.per_thread[1] + j
                    high, wide = (
                        rows_apart * rows * layout.per_thread[0],
                        columns_apart * columns * layout.per_thread[1],
                    )
                    owners[at_row::high, at_column::wide] = warp * rows * columns + lane
    return owners


@pytest.mark.parametrize(
    "layout",
    [
        Layout((1, 8), (4, 8), (4, 1), (1, 0)),
        Layout((1, 4), (1, 32), (4, 1), (1, 0)),
        Layout((2, 2), (8, 4), (2, 2), (0, 1)),
        Layout((4, 1), (32, 1), (1, 2), (0, 1)),
    ],
)
def test_owners_are_those_of_a_deal_by_hand(layout: Layout) -> None:
    shape = (
        2 * layout.per_thread[0] * layout.threads[0] * layout.warps[0],
        3 * layout.per_thread[1] * layout.threads[1] * layout.warps[1],
    )
    owners = layout.owners(shape)
    assert np.array_equal(owners, brute_force_owners(layout, shape))
    assert set(owners.flat) == set(range(layout.num_threads))


def test_the_last_message_of_a_traceback_is_whole() -> None:
    message = "triton.CompilationError: at 3:4:\n    code\n    ^\nwrong"
    assert last_message(f"Traceback\n  File x\nKeyError: 1\n\nDuring handling\n\n{message}\n") == message
    assert last_message("killed") == "killed"


def test_kernels_compile_apart_whatever_this_process_does(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from pagedlab.runtime.kernels.activation import silu_mul_kernel

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    constants = {"INTERMEDIATE": 1024, "BLOCK": 1024}
    a100, h100 = compile_apart([Job("silu", silu_mul_kernel, constants, arch=arch) for arch in (80, 90)])
    assert (a100.report.arch, h100.report.arch) == (80, 90)
    assert a100.report.title == "silu" and a100.report.registers > 0 and a100.report.spill == 0
    with pytest.raises(CourseError, match="do not compile"):
        compile_apart([Job("silu", silu_mul_kernel, {"INTERMEDIATE": 1024, "BLOCK": 1000})])  # no power of two


def test_a_kernel_comes_with_the_kernels_that_it_calls() -> None:
    pytest.importorskip("triton")
    from pagedlab.runtime.kernels.prefill import load_rows, paged_prefill_kernel

    assert source_of([load_rows]).count("from pagedlab.runtime.kernels.prefill import load_rows") == 1
    names = [kernel.fn.__name__ for kernel in triton_notebook.with_callees(paged_prefill_kernel)]
    assert names.index("load_rows") < names.index("attend_tiles") < names.index("paged_prefill_kernel")
