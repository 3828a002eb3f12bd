"""What learners handed in: of each notebook nothing but the sources of its answer cells (see answer_cells, files).

A notebook is parsed as JSON; nothing in it is run.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pagedlab.course.answer_cells import ANSWER, Answers, answers_in, is_stub
from pagedlab.course.grading.files import Found, copy_number, handed_in, listed
from pagedlab.errors import CourseError


@dataclass
class Notebook:
    """One notebook of a learner: its file's name, and the answers in it."""

    file: str
    answers: Answers = field(default_factory=Answers)

    @property
    def chapter(self) -> str:
        """ "ch03", as most of its answers say, or ""."""
        names = (*self.answers.sources, *self.answers.problems)
        found = Counter(match[1] for name in names if (match := ANSWER.fullmatch(name)))
        return max(sorted(found), key=found.__getitem__, default="")

    @property
    def rank(self) -> tuple[bool, int]:
        """The greater counts, of two of a chapter: one in which something was answered; then the later copy."""
        is_answered = bool(self.answers.problems) or not all(map(is_stub, self.answers.sources.values()))
        return is_answered, copy_number(self.file)


@dataclass
class Learner:
    """What one learner handed in: notebooks by chapter, and a sentence for each file that is of no use."""

    name: str
    notebooks: dict[str, Notebook] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, found: Found) -> None:
        try:
            if found.read is None:
                raise CourseError(found.problem)
            notebook = notebook_of(found.name, found.read())
        except CourseError as error:
            self.problems.append(f"{found.name} {error}")
        except (OSError, MemoryError) as error:  # a disk that fails, JSON that grows: this file's problem alone
            self.problems.append(f"{found.name} cannot be read ({type(error).__name__}).")
        else:
            self.put(notebook)

    def put(self, notebook: Notebook) -> None:
        chapter = notebook.chapter
        if not chapter:
            self.problems.append(
                f"{notebook.file} has no answer cell: none is marked as one, and no question is checked in it."
            )
            return
        first = self.notebooks.setdefault(chapter, notebook)
        if first is notebook or first.answers.sources == notebook.answers.sources:
            return
        counts, other = (notebook, first) if notebook.rank > first.rank else (first, notebook)
        self.notebooks[chapter] = counts
        self.problems.append(f"{other.file} is a second notebook of {chapter}: only {counts.file} counts.")

    def why_without(self, chapter: str) -> str:
        """Why there is no notebook of a chapter: a file that may have been it, or there was none."""
        number = chapter.removeprefix("ch")
        likely = [problem for problem in self.problems if number in problem.partition(".ipynb")[0]]
        likely = likely or ([] if self.notebooks else self.problems)
        return likely[0] if likely else f"No {chapter} handed in."


def collect(folder: Path) -> tuple[list[Learner], list[str]]:
    """Learners by name, and the names of files that are nobody's work.

    Args:
        folder: of NAME.ipynb, NAME.zip or NAME/ with notebooks of several chapters; or as an LMS exports them

    Raises:
        CourseError: the folder cannot be read, or there is nothing in it.
    """
    learners: dict[str, Learner] = {}
    ignored = []
    for path in listed(folder):
        found = handed_in(path)
        for one in found:
            learners.setdefault(one.learner, Learner(one.learner)).add(one)
        if not found:
            ignored.append(path.name)
    if not learners:
        raise CourseError(
            f"There is no notebook in {folder}: it should hold NAME.ipynb, or NAME/ with notebooks in it."
        )
    return [learners[name] for name in sorted(learners)], ignored


def notebook_of(name: str, content: bytes) -> Notebook:
    """The answers in a file.

    Raises:
        CourseError: it is no notebook that can be graded; the message begins after the file's name.
    """
    try:
        data = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        raise CourseError("is no notebook: it is not JSON text.") from None
    if not isinstance(data, dict) or data.get("nbformat") != 4 or not isinstance(data.get("cells"), list):
        raise CourseError("is no notebook of format 4: save it with JupyterLab.")
    return Notebook(name, answers_in(data["cells"]))


def chapters_of(learners: Sequence[Learner]) -> list[str]:
    return sorted({chapter for learner in learners for chapter in learner.notebooks})
