"""`pagedlab grade`: every answer of every learner tried in isolation and compared here; the results as CSV and JSON."""

from __future__ import annotations

import re
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tqdm import tqdm

from pagedlab.course import notebooks
from pagedlab.course.answer_cells import unmarked
from pagedlab.course.exercise_notebooks import chapter_of
from pagedlab.course.exercises import NOT_ANSWERED, Result, earned, judge, judge_error
from pagedlab.course.grading import codec, report
from pagedlab.course.grading.server import Outcome, Server
from pagedlab.course.grading.submissions import Learner, Notebook, chapters_of, collect
from pagedlab.course.masters import cell_id, master_problems, stubbed
from pagedlab.course.questions import Case, Question, of_chapter
from pagedlab.errors import CourseError

SAVE_SECONDS = 10.0
"""How often what was graded until now is written; less often where writing takes long."""


@dataclass
class Grade:
    """One learner's answer to one question.

    Attributes:
        points: of the question's
        reason: why there are none, if that has nothing to do with the cases
        results: case by case, of those that check shows
        fresh: of those that were drawn for this run
    """

    question: Question
    points: int = 0
    reason: str = ""
    results: list[Result] = field(default_factory=list)
    fresh: list[Result] = field(default_factory=list)


@dataclass
class Book:
    """All grades of a run, as far as it has come: grades[learner][question id]. The seed drew its fresh cases."""

    questions: list[Question]
    learners: list[Learner]
    seed: int
    grades: dict[str, dict[str, Grade]] = field(default_factory=dict)
    not_isolated: list[str] = field(default_factory=list)

    def put(self, learner: Learner, grade: Grade) -> None:
        self.grades.setdefault(learner.name, {})[grade.question.id] = grade

    def total(self, learner: Learner) -> int:
        return sum(grade.points for grade in self.grades.get(learner.name, {}).values())


@dataclass(frozen=True)
class Sheet:
    """A question as it is put to everybody: its cases, what each is called with, and the master's cells around it.

    Attributes:
        cases: those that check shows, then fresh ones
        num_shown: how many check shows
        arguments: of each case, as codec.dumps writes them
        before: (name, source) of the cells before the answer
        stub: the answer cell as it was handed out
    """

    question: Question
    cases: list[Case]
    num_shown: int
    arguments: list[str]
    before: list[tuple[str, str]]
    stub: str


def grade_command(
    submissions: str, output: str, chapter: str | None, jobs: int, solutions: str, seed: int | None = None
) -> int:
    """Grade a folder; 0 unless it cannot be read, 130 after Ctrl-C. What was graded is written as it comes."""
    table = Path(output)
    if table.suffix != ".csv":
        raise CourseError(f"The results are a table: name a file that ends in .csv, not {output}.")
    if jobs < 1:
        raise CourseError(f"--jobs must be 1 or more, not {jobs}.")

    report.check_writable([table, table.with_suffix(".json")])
    said: set[str] = set()

    def save(book: Book) -> None:
        """What cannot be written now may be written next time, and does not end hours of grading."""
        try:
            report.write_both(book, table)
        except OSError as error:
            problem = f"The grades could not be written ({error.strerror}: {table.parent}); the grader tries again."
            if problem not in said:
                said.add(problem)
                tqdm.write(problem, file=sys.stderr)

    hidden = [table.parent]
    book, interrupted = grade_folder(Path(submissions), Path(solutions), chapter, jobs, hidden, seed, save)
    table = report.write_somewhere(book, table)
    print(f"{len(book.learners)} learners, {len(book.questions)} questions: {table}, {table.with_suffix('.json')}")
    if troubled := [learner for learner in book.learners if learner.problems]:
        number = "A learner" if len(troubled) == 1 else f"{len(troubled)} learners"
        print(f"{number} handed in a file that does not count: see `problems` in {table.with_suffix('.json')}.")
    return 130 if interrupted else 0


def grade_folder(
    folder: Path,
    solutions: Path,
    chapter: str | None = None,
    jobs: int = 1,
    hidden: Sequence[Path] = (),
    seed: int | None = None,
    save: Callable[[Book], None] = lambda book: None,
) -> tuple[Book, bool]:
    """Grade what is in a folder. Returns the grades, and whether Ctrl-C came in between.

    Args:
        folder: of submissions (see submissions.collect)
        solutions: where the masters are
        chapter: "ch03": only this one; else all that were handed in
        jobs: trials at a time
        hidden: directories that no answer may read, besides these two
        seed: of the fresh cases, the same ones for everybody; None draws it
        save: called now and then with what was graded until now

    Raises:
        CourseError: a folder cannot be read, or a master is not in order.
    """
    learners, ignored = collect(folder)
    for name in ignored:
        print(f"{report.printable(name)} is no notebook (.ipynb): ignored.", file=sys.stderr)
    chapters = [chapter] if chapter else known_chapters(learners, solutions)
    seed = secrets.randbits(32) if seed is None else seed
    sheets = {name: sheets_of(name, solutions, seed) for name in chapters}
    book = Book([sheet.question for name in chapters for sheet in sheets[name]], learners, seed)
    jobs_in_all = sum(len(sheets[name]) for name in chapters) * len(learners)
    try:
        with tqdm(total=jobs_in_all, unit="answer", disable=None, leave=False) as bar:
            for name in chapters:
                grade_chapter(book, sheets[name], jobs, [*hidden, folder, solutions], bar, save)
    except KeyboardInterrupt:
        print("Stopped: what was graded until now is written.", file=sys.stderr)
        return book, True
    return book, False


def known_chapters(learners: Sequence[Learner], solutions: Path) -> list[str]:
    """Chapters that were handed in and can be graded; one that cannot is its learners' problem, not everybody's."""
    found = chapters_of(learners)
    known = [name for name in found if of_chapter(name) and master_of(name, solutions)]
    for name in sorted({*found} - {*known}) if known else ():
        print(f"There is no master of {name} in {solutions}: it is not graded.", file=sys.stderr)
        for learner in learners:
            if name in learner.notebooks:
                learner.problems.append(f"{learner.notebooks.pop(name).file} is of {name}, which is not graded.")
    return known or found


def master_of(chapter: str, solutions: Path) -> Path | None:
    paths = sorted(solutions.glob("[0-9][0-9]_*.ipynb"))
    return next((path for path in paths if chapter_of(path) == chapter), None)


def sheets_of(chapter: str, solutions: Path, seed: int) -> list[Sheet]:
    """The questions of a chapter with their master's cells, and with the fresh cases of a seed.

    Raises:
        CourseError: there is no such chapter or master, or the master is not in order.
    """
    questions = of_chapter(chapter)
    path = master_of(chapter, solutions)
    if path is None or not questions:
        raise CourseError(f"There is no master of {chapter} in {solutions}: name the folder with --solutions.")
    master = notebooks.read(path)
    for problem in master_problems(master, chapter, questions):
        raise CourseError(f"{path}: {problem}")
    cells = {cell.id: cell.source for cell in master.cells}
    return [sheet_of(question, cells, seed) for question in questions]


def sheet_of(question: Question, cells: dict[str, str], seed: int) -> Sheet:
    shown = list(question.cases())
    cases = [*shown, *fresh_cases(question, seed)]
    before = [("setup", cells[f"{question.chapter}-setup"])]
    if (given := cells.get(cell_id(question, "given"))) is not None:
        before.append(("given", given))
    stub = stubbed(cells[cell_id(question, "answer")], question.answer)
    return Sheet(question, cases, len(shown), [codec.dumps(case.arguments) for case in cases], before, stub)


def fresh_cases(question: Question, seed: int) -> list[Case]:
    """The cases that a seed draws for a question; each question has its own."""
    return list(question.fresh(Random(f"{seed} {question.id}"))) if question.fresh else []


def grade_chapter(
    book: Book,
    sheets: Sequence[Sheet],
    jobs: int,
    hidden: Sequence[Path],
    bar: Any,
    save: Callable[[Book], None],
) -> None:
    next_save = time.monotonic() + SAVE_SECONDS
    with Server([sheet.question for sheet in sheets], hidden) as server:
        if server.missing and not book.not_isolated:
            book.not_isolated = server.missing
            tqdm.write(f"Not isolated on this machine: {'; '.join(server.missing)}.", file=sys.stderr)
        pool = ThreadPoolExecutor(jobs)
        try:
            for learner, grade in graded(server, book.learners, sheets, pool, jobs):
                book.put(learner, grade)
                bar.update()
                if (now := time.monotonic()) > next_save:
                    save(book)
                    took = time.monotonic() - now
                    next_save = now + max(SAVE_SECONDS, 20 * took)
        finally:
            # Ends what still runs, which sets the threads free.
            server.close()
            pool.shutdown(cancel_futures=True)


def graded(
    server: Server, learners: Sequence[Learner], sheets: Sequence[Sheet], pool: ThreadPoolExecutor, jobs: int
) -> Iterator[tuple[Learner, Grade]]:
    """Grades as they come, with `jobs` trials under way."""
    todo = ((learner, sheet) for learner in learners for sheet in sheets)
    running: dict[Future[Grade], tuple[Learner, Question]] = {}
    while True:
        for learner, sheet in todo:
            running[pool.submit(grade_answer, server, learner, sheet)] = learner, sheet.question
            if len(running) >= 2 * jobs:
                break
        if not running:
            return
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            learner, question = running.pop(future)
            try:
                yield learner, future.result()
            except Exception as error:  # a fault of the grader's: costs this one grade, and nobody else's
                yield learner, Grade(question, reason=f"The grader failed ({type(error).__name__}: {error}).")


def grade_answer(server: Server, learner: Learner, sheet: Sheet) -> Grade:
    """One answer: looked up, tried, compared."""
    question = sheet.question
    notebook = learner.notebooks.get(question.chapter)
    if notebook is None:
        return Grade(question, reason=learner.why_without(question.chapter))
    name = cell_id(question, "answer")
    if name in notebook.answers.problems:
        return Grade(question, reason=notebook.answers.problems[name])
    if name not in notebook.answers.sources:
        return Grade(question, reason=f"There is no cell {name}: write the answer into the cell that was there for it.")
    source = notebook.answers.sources[name]
    if unmarked(source).strip() in ("", sheet.stub.strip()):
        return Grade(question, reason=f"{NOT_ANSWERED}.")
    outcome = server.try_answer(question, [*sheet.before, ("answer", source)], sheet.arguments)
    grade = compared(sheet, outcome)
    if grade.points < question.points and (said := left_outside(grade, notebook)):
        grade.reason = f"{grade.reason.removesuffix('.')}. {said}" if grade.reason else said
    return grade


NOT_DEFINED = re.compile(r"NameError: name '(\w+)' is not defined")


def left_outside(grade: Grade, notebook: Notebook) -> str:
    """A sentence if what an answer lacks is defined in another cell: it was split, or a helper stands elsewhere."""
    results = [*grade.results, *grade.fresh]
    missing = [match[1] for result in results if (match := NOT_DEFINED.match(result.got))]
    missing += [grade.question.answer for result in results if result.note == NOT_ANSWERED]
    for name in missing:
        if notebook.answers.is_elsewhere(name, cell_id(grade.question, "answer")):
            return f"{name} is defined in another cell of the notebook: only what stands in the answer cell counts."
    return ""


def compared(sheet: Sheet, outcome: Outcome) -> Grade:
    """Points of what a trial sent back; a case that it did not come to is wrong, for the reason that it ended."""
    question = sheet.question
    by_case = {frame["case"]: frame for frame in reversed(outcome.frames)}  # the first one counts
    results = [
        result_of(question, case, by_case.get(n), by_case.get(-1), outcome) for n, case in enumerate(sheet.cases)
    ]
    shown, fresh = results[: sheet.num_shown], results[sheet.num_shown :]
    grade = Grade(question, *points_of(question, shown, fresh), shown, fresh)
    if not any(result.passed for result in results):
        grade.reason = next((result.note or result.got for result in results), "")
    if outcome.ended != "done":
        grade.reason = sentence(outcome.ended)
    return grade


def points_of(question: Question, shown: list[Result], fresh: list[Result]) -> tuple[int, str]:
    """What check shows counts, unless the answer does far worse in fresh cases; then those count. With the reason.

    Half as well is the bound: an honest answer, wrong in some kinds of cases, is wrong in about as many fresh ones. One
    that is right in all that check shows must be right in three quarters: a table beside a half right answer is not.
    """
    points = earned(question, shown)
    bound = 0.75 if share(shown) == 1 else share(shown) / 2
    if not points or not fresh or share(fresh) >= bound:
        return points, ""
    right = sum(result.passed for result in fresh)
    return earned(question, fresh), (
        f"Right in cases that check shows, but only in {right} of {len(fresh)} others of the same kind: "
        "these were drawn when grading, and count."
    )


def share(results: list[Result]) -> float:
    return sum(result.passed for result in results) / len(results)


def result_of(
    question: Question, case: Case, own: dict[str, Any] | None, for_all: dict[str, Any] | None, outcome: Outcome
) -> Result:
    frame = for_all or own
    if frame is None:
        return Result(case, False, "nothing", sentence(outcome.ended))
    if "value" in frame:
        return judge(question, case, frame["value"])
    if "raised" in frame:
        return judge_error(question, case, *frame["raised"])
    if "refused" in frame:
        said = str(frame["refused"])[:500]
        return Result(case, False, "nothing", said if said.startswith("The ") else f"The answer {said}")
    return Result(case, False, "nothing", NOT_ANSWERED)


def sentence(ended: str) -> str:
    """How a trial ended, for a reader."""
    if ended == "done":
        return "The answer ended before it came to this case."
    return f"The answer did not come to its end: {ended}."
