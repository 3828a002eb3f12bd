"""The grades as files: a table with a row a learner and a column a question, and every case with its message."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagedlab.course.display import format_value, plain_value
from pagedlab.course.exercises import Result, shortened
from pagedlab.errors import CourseError

if TYPE_CHECKING:
    from pagedlab.course.grading.grade import Book, Grade

FORMULA = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")
"""A cell that begins so is run as a formula by spreadsheets."""


def check_writable(paths: Sequence[Path]) -> None:
    """Refuse now what could not be written after an hour of grading.

    Raises:
        CourseError: the folder cannot be made or written to, or there is a folder of that name.
    """
    for path in paths:
        draft = draft_of(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.touch()
            draft.unlink()
        except OSError as error:
            raise CourseError(
                f"{path} cannot be written ({error.strerror}): name another file with --output."
            ) from None
        if path.is_dir():
            raise CourseError(f"{path} is a folder: name another file with --output.")


def write_both(book: Book, table: Path) -> None:
    """The table, and the JSON file beside it."""
    write_csv(book, table)
    write_json(book, table.with_suffix(".json"))


def write_somewhere(book: Book, table: Path) -> Path:
    """Write both; if they cannot be written where they should be, into a new folder. Returns the table's path.

    Raises:
        CourseError: there is no place for them anywhere.
    """
    try:
        write_both(book, table)
        return table
    except OSError as error:
        print(f"{table} cannot be written ({error.strerror}): the grades are elsewhere.", file=sys.stderr)
    try:
        elsewhere = Path(tempfile.mkdtemp(prefix="grades-")) / table.name
        write_both(book, elsewhere)
        return elsewhere
    except OSError as error:
        raise CourseError(
            f"The grades cannot be written anywhere ({error.strerror}): make room, grade again."
        ) from None


def write_csv(book: Book, path: Path) -> None:
    """learner, one column a question, total."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["learner", *(question.id for question in book.questions), "total"])
    for learner in book.learners:
        grades = book.grades.get(learner.name, {})
        points = [grades[question.id].points if question.id in grades else "" for question in book.questions]
        table.writerow([harmless(learner.name), *points, book.total(learner)])
    write(path, text.getvalue())


def write_json(book: Book, path: Path) -> None:
    """Points, reasons, and of each case what came out, what is right, and what to say of it."""
    learners = {}
    for learner in book.learners:
        grades = book.grades.get(learner.name, {})
        name = printable(learner.name)
        while name in learners:  # of two files, one named by what the other's escapes look like
            name += "'"
        learners[name] = {
            "total": book.total(learner),
            "files": {chapter: printable(notebook.file) for chapter, notebook in sorted(learner.notebooks.items())},
            "problems": [printable(problem) for problem in learner.problems],
            "questions": {
                question.id: detail(grades[question.id]) for question in book.questions if question.id in grades
            },
        }
    of = {question.id: question.points for question in book.questions}
    content = {"points": of, "seed": book.seed, "not isolated": book.not_isolated, "learners": learners}
    write(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def detail(grade: Grade) -> dict[str, Any]:
    return {
        "points": grade.points,
        "reason": printable(grade.reason),
        "cases": [told(result) for result in grade.results],
        "fresh cases": [{**told(result), "arguments": arguments_of(result)} for result in grade.fresh],
    }


def arguments_of(result: Result) -> str:
    """What a case that nobody has seen was called with."""
    return shortened(json.dumps(plain_value(result.case.arguments), default=str))


def told(result: Result) -> dict[str, Any]:
    return {
        "case": result.case.name,
        "passed": result.passed,
        "got": printable(result.got),
        "expected": shortened(format_value(result.case.expected)),
        "note": printable(result.note),
    }


def harmless(name: str) -> str:
    """A name that no spreadsheet takes for a formula."""
    name = printable(name)
    return f"'{name}" if name.lstrip().startswith(FORMULA) or name.startswith(FORMULA) else name


def printable(text: str) -> str:
    """Control characters and halves of characters, which a file's name or an answer's text may hold, as escapes."""
    return "".join(
        letter if letter.isprintable() or letter in "\n " else letter.encode("unicode_escape").decode()
        for letter in text
    )


def draft_of(path: Path) -> Path:
    """No other grader's: two of them may write into one folder."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def write(path: Path, text: str) -> None:
    """Replace a file by one rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(path)
    try:
        draft.write_text(text, encoding="utf-8", newline="\n")
        os.replace(draft, path)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()
