"""What a notebook needs around its Triton kernels: can they run here, and what does the compiler make of them?

Kernels of a notebook are interpreted where there is no GPU, and a process that interprets cannot compile. So the
compiler runs in a process of its own, which gets the kernels' source. `python -m pagedlab.course.triton_notebook` is
that process: a job in JSON on its input, the result on its output.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from IPython.core.getipython import get_ipython
from numpy.typing import NDArray
from packaging.version import Version

from pagedlab.errors import CourseError

if TYPE_CHECKING:
    from pagedlab.runtime.kernels.compile_report import Report

IMPORTS = "import triton\nimport triton.language as tl\n"
LAYOUT = re.compile(
    r"#ttg\.blocked<\{sizePerThread = \[([\d, ]+)\], threadsPerWarp = \[([\d, ]+)\], "
    r"warpsPerCTA = \[([\d, ]+)\], order = \[([\d, ]+)\]"
)


# ---- can they run here? ------------------------------------------------------------------------------------------


def reason_against_triton() -> str | None:
    """Why this machine cannot run the kernels, in one sentence that says what to change; None if it can."""
    if importlib.util.find_spec("triton") is None:
        return (
            "Triton is not installed (it exists for Linux only): use the committed outputs of this page, "
            "or open it in a Linux container, WSL or Colab."
        )
    triton, numpy = (Version(importlib.metadata.version(name)) for name in ("triton", "numpy"))
    interpreted = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")
    if interpreted and triton < Version("3.7") and numpy >= Version("2.4"):
        return f'Triton {triton} cannot interpret loops with numpy {numpy}: pip install "triton>=3.7" or "numpy<2.4".'
    return None


class EmptyCells(ast.NodeTransformer):
    """Takes everything out of a cell before it is run."""

    def visit_Module(self, node: ast.Module) -> ast.Module:
        return ast.Module(body=[], type_ignores=[])


def skip_rest(reason: str | None) -> None:
    """Say why the notebook cannot go on here, and let every later cell do nothing. With None, nothing happens."""
    shell = get_ipython()  # type: ignore[no-untyped-call]
    if reason is None or shell is None:
        return
    print(f"{reason} The cells below do nothing.")
    shell.ast_transformers.append(EmptyCells())


# ---- what does the compiler make of them? ------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One kernel to compile, of a notebook or of the package, for a chip: 90 is an H100, 80 an A100.

    Argument names say the types: `tables_ptr`, `seq_lens_ptr` and the like are int32, other `..._ptr` are `dtype`,
    `scale` is float32, the rest int32; names in `constants` are compile-time constants.
    """

    title: str
    kernel: Any
    constants: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    dtype: str = "bf16"
    arch: int = 90


@dataclass(frozen=True)
class Layout:
    """How a tile is dealt to threads: elements of a thread, threads of a warp, warps of a program, along each side."""

    per_thread: tuple[int, ...]
    threads: tuple[int, ...]
    warps: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def num_threads(self) -> int:
        return int(np.prod(self.threads) * np.prod(self.warps))

    def owners(self, shape: tuple[int, ...]) -> NDArray[np.int64]:
        """The thread that holds each element of a tile; what one deal does not cover is dealt again.

        Of each side, the first elements are a thread's own, then come the other threads of its warp, then the other
        warps; `order` says which side is counted first.
        """
        places = np.indices(shape)
        lane, warp = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        for side in reversed(self.order):
            run = places[side] // self.per_thread[side]
            lane = lane * self.threads[side] + run % self.threads[side]
            warp = warp * self.warps[side] + run // self.threads[side] % self.warps[side]
        return warp * int(np.prod(self.threads)) + lane


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of a job for one chip; layouts are those of matrices that no matrix unit multiplies."""

    report: Report
    layouts: list[Layout] = field(default_factory=list)


def compile_apart(jobs: Sequence[Job]) -> list[Compiled]:
    """Compile kernels in a process of its own. No GPU is needed.

    Raises:
        CourseError: the compiler refused one; its last message follows.
    """
    from pagedlab.runtime.kernels.compile_report import Report

    chosen = [{**vars(job), "kernel": job.kernel.fn.__name__} for job in jobs]
    order = {"source": source_of([job.kernel for job in jobs]), "jobs": chosen}
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-m", "pagedlab.course.triton_notebook"]
    done = subprocess.run(command, input=json.dumps(order), env=environment, capture_output=True, text=True)
    if done.returncode:
        raise CourseError(f"The kernels do not compile: {last_message(done.stderr)}")
    return [
        Compiled(Report(**one["report"]), [Layout(*map(tuple, layout)) for layout in one["layouts"]])
        for one in json.loads(done.stdout)
    ]


def last_message(trace: str) -> str:
    """The last exception of a traceback, which in Triton's case quotes the kernel over several lines."""
    starts = [match.start() for match in re.finditer(r"^[\w.]+(Error|Exception|Interrupt)\b", trace, re.MULTILINE)]
    return trace[starts[-1] :].strip() if starts else trace.strip()


def source_of(kernels: Sequence[Any]) -> str:
    """A module's text that has these kernels: the package's are imported, a notebook's are written out."""
    pieces = [IMPORTS]
    for kernel in dict.fromkeys(one for wanted in kernels for one in with_callees(wanted)):
        name, module = kernel.fn.__name__, kernel.fn.__module__
        ours = module.startswith("pagedlab.")
        pieces.append(f"from {module} import {name}\n" if ours else inspect.getsource(kernel.fn))
    return "\n\n".join(pieces)


def with_callees(kernel: Any) -> Iterator[Any]:
    """The kernels that this one calls, then itself."""
    for name in kernel.fn.__code__.co_names:
        callee = kernel.fn.__globals__.get(name)
        if inspect.isfunction(getattr(callee, "fn", None)) and callee is not kernel:
            yield from with_callees(callee)
    yield kernel


def layouts_in(ttgir: str) -> list[Layout]:
    """Every layout of a matrix that the compiler's text names; none if it writes them in another way."""
    found = [tuple(tuple(map(int, side.split(","))) for side in match) for match in LAYOUT.findall(ttgir)]
    return [Layout(*sides) for sides in dict.fromkeys(found) if len(sides[0]) == 2]


def main() -> None:
    """The process apart."""
    from pagedlab.runtime.kernels.compile_report import Case, compile_case, compiled_kernel

    order = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "notebook_kernels.py"
        path.write_text(order["source"], encoding="utf-8")  # Triton reads a kernel's source from its file
        spec = importlib.util.spec_from_file_location("notebook_kernels", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        results = []
        for job in order["jobs"]:
            arch = job.pop("arch")
            case = Case(**{**job, "kernel": getattr(module, job["kernel"])})
            layouts = layouts_in(str(compiled_kernel(case, arch).asm["ttgir"]))
            report = compile_case(case, arch)
            results.append({"report": asdict(report), "layouts": [list(asdict(one).values()) for one in layouts]})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
