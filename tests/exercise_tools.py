"""For tests of exercises and grading: masters, banks of answers, and a tiny master of chapter 00's question."""

from __future__ import annotations

import importlib
import linecache
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from answers import Answers
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from pagedlab.course import exercises, notebooks, questions
from pagedlab.course.exercises import Result
from pagedlab.course.masters import BEGIN, END, cell_id
from pagedlab.course.questions import Case, Question

REPOSITORY = Path(__file__).parent.parent
MASTERS = sorted((REPOSITORY / "solutions").glob("*.ipynb"))
EXERCISES = sorted((REPOSITORY / "exercises").glob("*.ipynb"))
ASKED = [question for question in questions.QUESTIONS if question.chapter != "ch00"]
INTERPRETED = ("ch08",)
"""Chapters whose answers are Triton kernels: tried where Triton was told to interpret before it was imported."""
IS_INTERPRETER = os.environ.get("TRITON_INTERPRET") == "1"
IDS = [question.id for question in ASKED if (question.chapter in INTERPRETED) == IS_INTERPRETER]


@cache
def with_cases(identifier: str) -> Question:
    """The question with cases that are made once: what is expected costs time."""
    question = questions.find(identifier)
    cases = list(question.cases())
    return replace(question, cases=lambda: cases)


@cache
def master_cells(chapter: str) -> dict[str, str]:
    (path,) = (path for path in MASTERS if path.name[:2] == chapter[2:])
    return {cell.id: cell.source for cell in notebooks.read(path).cells}


def bank(question: Question) -> Answers:
    return importlib.import_module(f"answers.{question.chapter}").BANK[question.id]


numbers = count()


def run_cell(source: str, namespace: dict[str, Any]) -> None:
    """As IPython does it: what the cell defines has source code that can be read."""
    name = f"<answer {next(numbers)}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    exec(compile(source, name, "exec"), namespace)


def tried(
    identifier: str,
    source: str,
    until: str | None = None,
    cases: Sequence[Case] | None = None,
    results: list[Result] | None = None,
) -> tuple[int, str]:
    """Points of an answer cell, run behind the master's setup and given cells; and all that a reader is told.

    Args:
        until: once the reader is told this, the other cases are left out
        cases: instead of those of the question
        results: a list to which each case's is added
    """
    question = with_cases(identifier)
    cells = master_cells(question.chapter)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    run_cell(cells[f"{question.chapter}-setup"], namespace)
    run_cell(cells.get(cell_id(question, "given"), ""), namespace)
    try:
        run_cell(source, namespace)
    except Exception as error:  # in the notebook the cell fails, and nothing is checked
        return 0, f"{type(error).__name__}: {error}"
    results = [] if results is None else results
    for case in question.cases() if cases is None else cases:
        results.append(exercises.run_case(question, case, namespace.get(question.answer, ...)))
        if until and not results[-1].passed and until in f"{results[-1].got} {results[-1].note}":
            break
    told = " | ".join(f"{result.case.name}: {result.got} {result.note}" for result in results if not result.passed)
    return exercises.earned(question, results), told


TEXT = "## Question 1: Blocks for a text\n\ndifficulty ●○○ · 2 points · implement\n\nWrite `blocks_needed(n)`."
SOLUTION = f'''def blocks_needed(n):
    """Whole blocks."""
    {BEGIN}
    return -(-n // 16)
    {END}'''


def small_master(**sources: str) -> Any:
    """A master of chapter 00's question; a cell's source by its part, as in answer="..."."""
    cells = {
        "title": "# Exercises 00\n\n2 points in all.",
        "setup": "from pagedlab.course import check, hint",
        "text": TEXT,
        "answer": SOLUTION,
        "check": 'check("ch00.q1")',
        "hint": '# hint("ch00.q1")',
        "end": "That is all.",
    }
    notebook = new_notebook()
    for name, source in {**cells, **sources}.items():
        make = new_markdown_cell if name in ("title", "text", "end") else new_code_cell
        number = "ch00" if name in ("title", "setup", "end") else "ch00-q1"
        notebook.cells.append(make(source, id=f"{number}-{name}"))
    return notebook
