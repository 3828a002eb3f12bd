"""The grades as files: a table with a row a learner and a column a question, and every case with its message."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagedlab.course.display import format_value, plain_value
from pagedlab.course.exercises import Result, shortened
from pagedlab.errors import CourseError

if TYPE_CHECKING:
    from pagedlab.course.grading.grade import Book, Grade

FORMULA = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")
"""A cell that begins so is run as a formula by spreadsheets."""

MAX_DETAIL, LEAST_DETAIL = 8_000, 100
"""Characters of an answer's results that are written down, in all its cases; and of each, however long others are."""


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
    write(path, [text.getvalue()])


def write_json(book: Book, path: Path) -> None:
    """Points, reasons, and of each case what came out, what is right, and what to say of it."""
    of = {question.id: question.points for question in book.questions}
    head = json.dumps({"points": of, "seed": book.seed, "not isolated": book.not_isolated}, indent=1)
    write(path, chain([head.removesuffix("\n}"), ',\n "learners": {'], learners_in_json(book), ["\n }\n}\n"]))


def learners_in_json(book: Book) -> Iterator[str]:
    """An entry each, one at a time: all together may be hundreds of megabytes."""
    names: set[str] = set()
    arguments: dict[int, str] = {}  # of the fresh cases, which are everybody's
    for learner in book.learners:
        grades = book.grades.get(learner.name, {})
        name = printable(learner.name)
        while name in names:  # of two files, one named by what the other's escapes look like
            name += "'"
        entry = {
            "total": book.total(learner),
            "files": {chapter: printable(notebook.file) for chapter, notebook in sorted(learner.notebooks.items())},
            "problems": [printable(problem) for problem in learner.problems],
            "questions": {
                question.id: detail(grades[question.id], arguments)
                for question in book.questions
                if question.id in grades
            },
        }
        text = json.dumps({name: entry}, indent=1, ensure_ascii=False)
        lines = text.removeprefix("{").removesuffix("\n}").replace("\n", "\n ")
        yield lines if not names else f",{lines}"
        names.add(name)


def detail(grade: Grade, arguments: dict[int, str]) -> dict[str, Any]:
    room = MAX_DETAIL
    cases = []
    for result in (*grade.results, *grade.fresh):
        cases.append(told(result, max(room, LEAST_DETAIL)))
        room -= len(cases[-1]["got"])
    fresh = cases[len(grade.results) :]
    for case, result in zip(fresh, grade.fresh, strict=True):
        if id(result.case) not in arguments:
            arguments[id(result.case)] = shortened(json.dumps(plain_value(result.case.arguments), default=str))
        case["arguments"] = arguments[id(result.case)]
    return {
        "points": grade.points,
        "reason": shortened(printable(grade.reason)),
        "cases": cases[: len(grade.results)],
        "fresh cases": fresh,
    }


def told(result: Result, room: int) -> dict[str, Any]:
    """What came out stands there as far as there is room for it, in characters."""
    got = printable(result.got[: room + 1])
    return {
        "case": result.case.name,
        "passed": result.passed,
        "got": got if len(got) <= room else f"{got[:room]} …",
        "expected": shortened(format_value(result.case.expected)),
        "note": shortened(printable(result.note)),
    }


def harmless(name: str) -> str:
    """A name that no spreadsheet takes for a formula."""
    name = printable(name)
    return f"'{name}" if name.lstrip().startswith(FORMULA) or name.startswith(FORMULA) else name


def printable(text: str) -> str:
    """Control characters and halves of characters, which a file's name or an answer's text may hold, as escapes."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter in "\n " else letter.encode("unicode_escape").decode()
        for letter in text
    )


def draft_of(path: Path) -> Path:
    """No other grader's: two of them may write into one folder."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def write(path: Path, parts: Iterable[str]) -> None:
    """Replace a file by one rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(path)
    try:
        with draft.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(parts)
        os.replace(draft, path)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()
