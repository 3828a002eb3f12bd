"""What readers handed in: of each notebook nothing but the sources of its answer cells, found by their ids.

A file is opened by nobody's name but its own (no links), read up to a size, and parsed as JSON; nothing in it is run.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pagedlab.errors import CourseError

MAX_BYTES = 20 << 20
MAX_SOURCE = 100_000
"""Characters of one answer."""
DEFINED = re.compile(
    r"^(?:async[ \t]+)?(?:def|class)[ \t]+(\w+)|^(\w+)[ \t]*(?::[^=\n]*)?=(?!=)"
    r"|^(?:from[ \t]\S+[ \t]+)?import[ \t](.*)",
    re.MULTILINE,
)
"""What a line without indentation defines."""
MAX_NAMES = 1_000
"""Defined in other cells; more are not looked for."""
ANSWER = re.compile(r"(ch[0-9]{2})-q[0-9]{1,3}-answer")


@dataclass
class Notebook:
    """One notebook of a learner.

    Attributes:
        file: its name
        answers: source by cell id
        problems: why an answer is not there, by cell id
        elsewhere: names that cells define which are no answer cells, in words to explain what is missing
        chapter: "ch03", as most of its answer cells say, or ""
    """

    file: str
    answers: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    elsewhere: set[str] = field(default_factory=set)

    @property
    def chapter(self) -> str:
        found = Counter(match[1] for name in (*self.answers, *self.problems) if (match := ANSWER.fullmatch(name)))
        return max(sorted(found), key=found.__getitem__, default="")


@dataclass
class Learner:
    """What one learner handed in: notebooks by chapter, and a sentence for each file that is of no use."""

    name: str
    notebooks: dict[str, Notebook] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, path: Path) -> None:
        try:
            notebook = read_notebook(path)
        except CourseError as error:
            self.problems.append(f"{path.name} {error}")
            return
        except (OSError, MemoryError) as error:  # a disk that fails, JSON that grows: this file's problem alone
            self.problems.append(f"{path.name} cannot be read ({type(error).__name__}).")
            return
        if not notebook.chapter:
            self.problems.append(f"{path.name} has no answer cell: answers are found by the ids of their cells.")
        elif notebook.chapter in self.notebooks:
            first = self.notebooks[notebook.chapter].file
            self.problems.append(f"{path.name} is a second notebook of {notebook.chapter}: only {first} counts.")
        else:
            self.notebooks[notebook.chapter] = notebook


def collect(folder: Path) -> tuple[list[Learner], list[str]]:
    """Learners by name, and the names of files that are nobody's work.

    Args:
        folder: of NAME.ipynb, or of NAME/ANY.ipynb for several chapters a learner

    Raises:
        CourseError: the folder cannot be read, or there is nothing in it.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise CourseError(f"{folder} cannot be read ({error.strerror}): name the folder of submissions.") from error
    learners: dict[str, Learner] = {}
    ignored = []
    for entry in entries:
        name, path = entry.name, Path(entry.path)
        is_notebook = name.lower().endswith(".ipynb")
        if name.startswith("."):
            continue
        if is_notebook:
            learners.setdefault(name[: -len(".ipynb")], Learner(name[: -len(".ipynb")])).add(path)
        elif entry.is_dir(follow_symlinks=False):
            add_folder(learners.setdefault(name, Learner(name)), path)
        elif entry.is_symlink() and entry.is_dir():
            learners.setdefault(name, Learner(name)).problems.append(f"{name} is a link, no folder.")
        else:
            ignored.append(name)
    if not learners:
        raise CourseError(
            f"There is no notebook in {folder}: it should hold NAME.ipynb, or NAME/ with notebooks in it."
        )
    return list(learners.values()), ignored


def add_folder(learner: Learner, folder: Path) -> None:
    try:
        files = sorted(path for path in folder.iterdir() if path.name.lower().endswith(".ipynb"))
    except OSError as error:
        learner.problems.append(f"{folder.name} cannot be read ({error.strerror}).")
        return
    files = [path for path in files if not path.name.startswith(".")]
    for path in files:
        learner.add(path)
    if not files:
        learner.problems.append(f"{folder.name} holds no notebook.")


def read_notebook(path: Path) -> Notebook:
    """The answer cells of a file.

    Raises:
        CourseError: it is no notebook that can be graded; the message begins after the file's name.
    """
    content = read_bytes(path)
    try:
        data = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        raise CourseError("is no notebook: it is not JSON text.") from None
    if not isinstance(data, dict) or data.get("nbformat") != 4 or not isinstance(data.get("cells"), list):
        raise CourseError("is no notebook of format 4: save it with JupyterLab.")
    notebook = Notebook(path.name)
    has_ids = False
    for cell in data["cells"]:
        name = id_of(cell)
        has_ids = has_ids or bool(name)
        if name and ANSWER.fullmatch(name):
            add_cell(notebook, name, cell)
        elif isinstance(cell, dict) and cell.get("cell_type") == "code" and len(notebook.elsewhere) < MAX_NAMES:
            notebook.elsewhere |= defined_by(source_of(cell) or "")
    if not has_ids and data["cells"]:
        raise CourseError(
            "has no cell ids (saved in a format before 4.5): copy the answers into a fresh exercise notebook."
        )
    return notebook


def id_of(cell: Any) -> str:
    """A cell's id; some editors keep it in the metadata."""
    if not isinstance(cell, dict):
        return ""
    metadata = cell.get("metadata")
    for name in (cell.get("id"), metadata.get("id") if isinstance(metadata, dict) else None):
        if isinstance(name, str) and name:
            return name
    return ""


def add_cell(notebook: Notebook, name: str, cell: dict[str, Any]) -> None:
    source = source_of(cell)
    if name in notebook.answers or name in notebook.problems:
        notebook.answers.pop(name, None)
        notebook.problems[name] = f"There are two cells {name}: delete one."
    elif cell.get("cell_type") != "code" or source is None:
        notebook.problems[name] = f"Cell {name} is no code cell."
    elif len(source) > MAX_SOURCE:
        notebook.problems[name] = f"Cell {name} has {len(source):,} characters: at most {MAX_SOURCE:,} are read."
    else:
        notebook.answers[name] = source


def source_of(cell: dict[str, Any]) -> str | None:
    source = cell.get("source")
    if isinstance(source, list) and all(isinstance(line, str) for line in source):
        source = "".join(source)
    return source if isinstance(source, str) else None


def defined_by(source: str) -> set[str]:
    """Names of functions, classes, values and modules at the top of a cell, which need not be Python."""
    names: set[str] = set()
    for function, value, modules in DEFINED.findall(source[:MAX_SOURCE]):
        names |= {function or value} - {""}
        names |= {part.split()[-1].split(".")[0] for part in modules.strip("() \t").split(",") if part.strip()}
    return names


def read_bytes(path: Path) -> bytes:
    """A regular file's content; no link is followed, no pipe waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        if path.is_symlink():
            raise CourseError("is a link: hand in the file itself.") from None
        raise CourseError(f"cannot be read ({error.strerror}).") from None
    try:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            raise CourseError("is a folder, no notebook.")
        if not stat.S_ISREG(found.st_mode):
            raise CourseError("is no ordinary file.")
        if found.st_size > MAX_BYTES:
            raise CourseError(f"has {found.st_size / 1e6:.0f} MB, at most {MAX_BYTES / 1e6:.0f}: clear its outputs.")
        if found.st_size == 0:
            raise CourseError("is empty.")
        with os.fdopen(os.dup(descriptor), "rb") as file:
            return file.read(MAX_BYTES)
    finally:
        os.close(descriptor)


def chapters_of(learners: Sequence[Learner]) -> list[str]:
    return sorted({chapter for learner in learners for chapter in learner.notebooks})
