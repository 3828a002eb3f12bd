"""check() tries an answer case by case and says what is not right yet; hint() helps in three steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pagedlab.course import progress, questions
from pagedlab.course.comparison import matches
from pagedlab.course.display import badge, emit, format_value, plain_value, table, text
from pagedlab.course.questions import Case, Question

hints_given: dict[str, int] = {}
"""How many hints of each question this kernel has shown."""


@dataclass(frozen=True)
class Result:
    """What an answer did in one case; `note` names the misunderstanding behind a wrong one, if it is known."""

    case: Case
    passed: bool
    got: str
    note: str = ""


def check(identifier: str, answer: Any) -> None:
    """Try an answer and show, case by case, what it gave and what is right.

    Args:
        identifier: of the question, "ch03.q2".
        answer: the reader's function or value. What it raises is shown as its result.

    Raises:
        CourseError: there is no such question.
    """
    question = questions.find(identifier)
    results = run_cases(question, answer)
    points = earned(question, results)
    best = progress.record(question, points)
    show_results(question, results, points, progress.bar(questions.of_chapter(identifier), best))


def run_cases(question: Question, answer: Any) -> list[Result]:
    """Every case, one by one; a failure in one does not stop the next."""
    return [run_case(question, case, answer) for case in question.cases()]


def run_case(question: Question, case: Case, answer: Any) -> Result:
    try:
        got = plain_value(answer(*case.arguments) if callable(answer) else answer)
    except Exception as error:  # the reader's code may raise anything
        return Result(case, False, f"{type(error).__name__}: {error}")
    if matches(got, plain_value(case.expected), question.tolerance, absolute=False):
        return Result(case, True, format_value(got))
    if got is None:
        return Result(case, False, "None", "Your function returns nothing: end it with `return`.")
    return Result(case, False, format_value(got), question.explain(case, got))


def earned(question: Question, results: list[Result]) -> int:
    """Points in proportion to the cases that are right, rounded down."""
    return question.points * sum(result.passed for result in results) // len(results)


def show_results(question: Question, results: list[Result], points: int, bar: str) -> None:
    solved = all(result.passed for result in results)
    words = "right in every case" if solved else f"{sum(r.passed for r in results)} of {len(results)} cases are right"
    plain = [f"{question.id}: {words}, {points} of {question.points} points"]
    rows = []
    said: set[str] = set()
    for result in results:
        note = "" if result.note in said else result.note
        said.add(note)
        sign = "✓" if result.passed else "✗"
        expected = format_value(result.case.expected)
        line = f"  {sign} {result.case.name}: got {result.got}"
        plain.append(line if result.passed else f"{line}, expected {expected}. {note}".rstrip())
        rows.append([sign, text(result.case.name), text(result.got), text(expected), text(note)])
    plain.append(bar)
    if not solved:
        plain.append(f'Stuck? hint("{question.id}")')
    heading = f"<p>{badge('pass' if solved else 'fail')} <b>{question.id}</b>: {words}, {plain[0].split(', ')[-1]}</p>"
    help_line = "" if solved else f"<br>Stuck? <code>hint(&quot;{question.id}&quot;)</code>"
    results_table = table(["", "case", "got", "expected", ""], *rows)
    emit("\n".join(plain), f"{heading}{results_table}<p><code>{bar}</code>{help_line}</p>")


def hint(identifier: str) -> None:
    """Show the next hint of a question; run the cell again for the one after. There are three.

    Raises:
        CourseError: there is no such question.
    """
    question = questions.find(identifier)
    number = min(hints_given.get(identifier, 0) + 1, len(question.hints))
    hints_given[identifier] = number
    shown = question.hints[number - 1]
    more = "Run the cell again for the next one." if number < len(question.hints) else "That is the last one."
    title = f"Hint {number} of {len(question.hints)}"
    emit(f"{title}: {shown}\n{more}", f"<p><b>{title}.</b> {text(shown)}<br><i>{more}</i></p>")
