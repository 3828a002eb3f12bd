"""`pagedlab notebooks`: execute notebooks from a clean kernel and write them in one normal form.

The normal form keeps diffs small: readable cell ids that never change, execution counts 1 to n, no timestamps,
no widget state, no metadata but tags. notebook_rules says what a finished notebook must be like.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from pagedlab.course.notebook_rules import problems
from pagedlab.errors import CourseError

TIMEOUT = 300
"""Seconds that one notebook may take."""
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
RANDOM_ID = re.compile(r"[0-9a-f]{8}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""Ids that nbformat (8 hexadecimal digits) and JupyterLab (a UUID) give to new cells."""
SLUG_LENGTH = 40


def run_command(files: Sequence[str]) -> int:
    """`pagedlab notebooks run`: execute, write, then check. 1 if a notebook fails or breaks a rule, else 0."""
    failures = 0
    for path in notebook_paths(files):
        start = time.perf_counter()
        try:
            execute(path)
        except CourseError as error:
            print(f"{path}: {error}", flush=True)
            failures += 1
            continue
        print(f"{path}: {time.perf_counter() - start:.1f} s", flush=True)
        failures += print_problems(path) > 0
    return int(failures > 0)


def check_command(files: Sequence[str]) -> int:
    """`pagedlab notebooks check`: every rule, nothing executed. 1 if one is broken, else 0."""
    paths = notebook_paths(files)
    broken = sum(print_problems(path) for path in paths)
    if not broken:
        print(f"{len(paths)} notebook{'s' if len(paths) != 1 else ''} in order.")
    return int(broken > 0)


def print_problems(path: Path) -> int:
    found = list_problems(path)
    for problem in found:
        print(f"  {path}: {problem}")
    return len(found)


def list_problems(path: Path) -> list[str]:
    """Everything that keeps a notebook from being finished, one sentence each."""
    notebook = read(path)
    found = list(problems(notebook, path))
    if serialise(normalised(notebook)) != path.read_text(encoding="utf-8"):
        found.append("it is not in normal form (ids, metadata, counts): `pagedlab notebooks run` writes it so.")
    return found


def notebook_paths(files: Sequence[str]) -> list[Path]:
    """The files that were named, or every chapter below the current directory.

    Raises:
        CourseError: one is no notebook, or there are none.
    """
    paths = [Path(file) for file in files] or sorted(Path("chapters").glob("*.ipynb"))
    for path in paths:
        if path.suffix != ".ipynb" or not path.is_file():
            raise CourseError(f"{path} is not a notebook that exists: name .ipynb files.")
    if not paths:
        raise CourseError("There are no notebooks in chapters/ here: name files, or go to the repository's root.")
    return paths


def read(path: Path) -> Any:
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # bad JSON, bad schema, a missing key: nbformat raises each in its own way
        raise CourseError(f"{path} cannot be read as a notebook: {error}") from error


def execute(path: Path, timeout: float = TIMEOUT) -> None:
    """Run a notebook in its folder from a clean kernel and write it back, whole or not at all.

    Raises:
        CourseError: a cell failed (with its id and the error), or time ran out; the file is then as it was.
    """
    tidy(path)
    notebook = normalised(read(path))
    deadline = time.monotonic() + timeout
    client = NotebookClient(
        notebook,
        timeout_func=lambda cell: max(1, int(deadline - time.monotonic())),
        kernel_name="python3",
        record_timing=False,
        startup_timeout=TIMEOUT,
        iopub_timeout=TIMEOUT,  # where the machine is busy, output may come more than 4 s after its cell's end
        extra_arguments=["--log-level=ERROR"],  # of the kernel's own notices on this terminal, not of the cells
        resources={"metadata": {"path": str(path.resolve().parent)}},
    )
    try:
        client.execute()
    except CellExecutionError as error:
        raise CourseError(f"{failed_cell(notebook)} raised {error.ename}: {error.evalue}") from error
    except CellTimeoutError as error:
        raise CourseError(f"it took more than {timeout:g} s: make its experiments smaller.") from error
    except DeadKernelError as error:
        raise CourseError(f"{failed_cell(notebook)} ended the kernel (out of memory?).") from error
    write(path, serialise(normalised(notebook)))


def tidy(path: Path) -> None:
    """Lay the code out as `make lint` wants it, where ruff is installed; what it cannot parse, the kernel reports."""
    if importlib.util.find_spec("ruff"):
        subprocess.run([sys.executable, "-m", "ruff", "format", "--quiet", str(path)], capture_output=True, check=False)


def failed_cell(notebook: Any) -> str:
    """The last cell that was started, in words."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    failed = [cell for cell in cells if any(output.output_type == "error" for output in cell.outputs)]
    started = failed or [cell for cell in cells if cell.execution_count is not None] or cells[:1]
    return f"cell {started[-1].id} ({first_line(started[-1].source)})"


def first_line(source: str) -> str:
    return next((line.strip()[:60] for line in source.splitlines() if line.strip()), "empty")


def write(path: Path, content: str) -> None:
    """Replace a file by one rename, so that no reader sees half of it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(content, encoding="utf-8", newline="\n")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def serialise(notebook: Any) -> str:
    return nbformat.writes(notebook, version=4).rstrip("\n") + "\n"


# ---- the normal form -------------------------------------------------------------------------------------------------


def normalised(notebook: Any) -> Any:
    """A copy in normal form. Applying it twice changes nothing more."""
    notebook = copy.deepcopy(notebook)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.metadata = nbformat.from_dict(METADATA)
    name_cells(notebook.cells)
    count = 0
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        cell.source = "\n".join(line.rstrip() if cell.cell_type == "code" else line for line in cell.source.split("\n"))
        if cell.cell_type != "code":
            continue
        if cell.execution_count is not None:
            count += 1
            cell.execution_count = count
        cell.outputs = merged_streams(filter(None, map(normal_output, cell.outputs)))
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = cell.execution_count
    return notebook


def name_cells(cells: Sequence[Any]) -> None:
    """Give every cell a readable id: what the percent marker says (`# %% id="naive-cost"`), else the one it has,
    unless that is random: then words of its content, which it keeps for ever after."""
    given = [cell.metadata.get("id") or cell.get("id", "") for cell in cells]
    kept = ["" if RANDOM_ID.fullmatch(name) else name for name in given]
    taken: set[str] = set()
    for cell, own in zip(cells, kept, strict=True):
        if own and own not in taken:
            taken.add(own)
            cell["id"] = own
            continue
        wanted = own or slug(cell)
        unique, copies = wanted, 1
        while unique in taken or unique in kept:
            copies += 1
            unique = f"{wanted}-{copies}"
        taken.add(unique)
        cell["id"] = unique


def slug(cell: Any) -> str:
    """A few words of a cell's content: its heading, the name it defines, the claim or question in it, or its start."""
    patterns = (
        (r"^#+\s+(.+)",)
        if cell.cell_type == "markdown"
        else (
            r"^(?:def|class)\s+(\w+)",
            r"\b(?:predict|reveal|claim|cite|check|hint)\(\s*\"([^\"]+)",
            r"^#\s+(?!NBVAL)(.+)",
            r"^(\w+(?:, \w+)*) = ",
        )
    )
    words = first_line(re.sub(r"^# NBVAL\w*\n", "", cell.source))
    for pattern in patterns:
        found = re.search(pattern, cell.source, re.MULTILINE)
        if found:
            words = found[1]
            break
    name = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
    if len(name) > SLUG_LENGTH:
        name = name[: SLUG_LENGTH + 1].rsplit("-", 1)[0].strip("-") or name[:SLUG_LENGTH]
    return name if re.match("[a-z]", name) and not RANDOM_ID.fullmatch(name) else f"cell-{name}".strip("-")


def normal_output(output: Any) -> Any:
    """An output without what only a live page needs; None if nothing is left."""
    if output.output_type not in ("display_data", "execute_result"):
        return output
    data = output.data
    live = data.pop(WIDGET_VIEW, None) is not None
    if live and re.match(r"[A-Z]\w*\(", data.get("text/plain", "")):
        del data["text/plain"]  # the repr of a widget says nothing to a reader
    if "image/png" in data and data.get("text/html", "").startswith("<img "):
        del data["text/html"]  # the twin that show() adds for JupyterLab
    return output if data else None


def merged_streams(outputs: Any) -> list[Any]:
    """Text that a program wrote in several pieces, as one: where the pieces end depends on timing."""
    merged: list[Any] = []
    for output in outputs:
        last = merged[-1] if merged else None
        if last is not None and output.output_type == last.output_type == "stream" and output.name == last.name:
            last.text += output.text
        else:
            merged.append(output)
    return merged


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"run": run_command, "check": check_command}
