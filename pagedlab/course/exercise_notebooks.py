"""`pagedlab exercises`: make exercises/ from the masters in solutions/, or say which of them differ.

What it makes has no outputs and no execution counts, so that nbval runs every cell and compares none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pagedlab.course import notebooks, questions
from pagedlab.course.answer_cells import is_stub, mark, sign_of
from pagedlab.course.masters import cell_id, master_problems, stubbed
from pagedlab.course.questions import Question
from pagedlab.errors import CourseError

MASTERS = "solutions"
EXERCISES = "exercises"
ASKED_IN_ITS_CHAPTER = ("ch00",)
"""Chapters whose question shows how check works and stands in the chapter itself."""


def build_command(check: bool = False, force: bool = False, root: Path | None = None) -> int:
    """`pagedlab exercises build`: 1 if a master is not in order, or with `check` if a file differs; else 0.

    Args:
        check: write nothing
        force: overwrite files that hold a reader's answers, too
        root: the repository; the current directory, if it is left out
    """
    root = root or Path()
    masters = master_paths(root)
    found = list(missing_masters(masters)) + list(orphans(root, masters))
    written = 0
    for path in masters:
        master = notebooks.read(path)
        wrong = master_problems(master, chapter_of(path), questions_of(path))
        found += [f"{path}: {problem}" for problem in wrong]
        if wrong:
            continue
        target = root / EXERCISES / path.name
        content = notebooks.serialise(exercise_of(master, questions_of(path)))
        if target.is_file() and target.read_text(encoding="utf-8") == content:
            continue
        if check:
            found.append(f"{target} is not what its master gives: run `pagedlab exercises build`.")
        elif holds_answers(target) and not force:
            found.append(f"{target} holds answers: copy them to another file, or overwrite them with --force.")
        else:
            target.parent.mkdir(exist_ok=True)
            notebooks.write(target, content)
            written += 1
            print(f"{target}: written")
    for problem in found:
        print(problem)
    if not found:
        print(f"{len(masters)} exercise notebooks in order.")
    return int(bool(found))


def master_paths(root: Path) -> list[Path]:
    paths = sorted((root / MASTERS).glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise CourseError(f"There are no masters in {root / MASTERS}: go to the repository's root.")
    return paths


def chapter_of(path: Path) -> str:
    """ "ch03" of 03_kv_cache.ipynb."""
    return f"ch{path.name[:2]}"


def questions_of(path: Path) -> list[Question]:
    return questions.of_chapter(chapter_of(path))


def missing_masters(masters: Sequence[Path]) -> Iterator[str]:
    chapters = {question.chapter for question in questions.QUESTIONS} - set(ASKED_IN_ITS_CHAPTER)
    for chapter in sorted(chapters - set(map(chapter_of, masters))):
        yield f"{chapter} has questions but no master in {MASTERS}/."


def orphans(root: Path, masters: Sequence[Path]) -> Iterator[str]:
    names = {path.name for path in masters}
    for path in sorted((root / EXERCISES).glob("*.ipynb")):
        if path.name not in names:
            yield f"{path} has no master in {MASTERS}/: delete it."


def exercise_of(master: Any, asked: Sequence[Question]) -> Any:
    """The exercise notebook of a master that is in order: no solutions, no outputs, answers marked."""
    answers = {cell_id(question, "answer"): question for question in asked}
    notebook = notebooks.normalised(master)
    for cell in notebook.cells:
        if cell.id in answers:
            cell.source = stubbed(cell.source, answers[cell.id].answer)
            mark(cell, answers[cell.id])
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def holds_answers(path: Path) -> bool:
    """Has a reader worked in this file? A cell was run, or an answer cell has no stub left."""
    if not path.is_file():
        return False
    try:
        cells = notebooks.read(path).cells
    except CourseError:
        return True  # whatever it is, it is not what was generated
    for cell in cells:
        if cell.cell_type != "code":
            continue
        if cell.execution_count is not None or cell.outputs:
            return True
        if sign_of(cell, cell.source)[0] and not is_stub(cell.source):
            return True
    return False
