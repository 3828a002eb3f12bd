"""check() tries an answer case by case and says what is not right yet; hint() helps in three steps."""

from __future__ import annotations

import contextlib
import io
import re
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pagedlab.course import progress, questions
from pagedlab.course.comparison import matches
from pagedlab.course.display import badge, emit, format_value, plain_value, table, text
from pagedlab.course.grading import codec
from pagedlab.course.masters import STUB
from pagedlab.course.questions import Case, Question

NOT_ANSWERED = "not answered yet"
MAX_SHOWN = 2_000
"""Characters of a result."""

MAX_IN_TABLE = 300
"""Characters of a result that stand in its table at full height."""

MAX_TIMES, MAX_MORE = 10, 10_000
"""How many values more than the right result a wrong one may have, and still be shown and explained."""

MAX_RAISED = 400
"""Characters of an exception's message: it stands in every case that raises it."""

MAX_PRINTED = 5_000
"""Characters that an answer may print while it is checked; the rest is counted."""

KINDS = {bool: "True or False", str: "a text", list: "a list", dict: "a dictionary", type(None): "None"}
"""In words, what a result can be besides a number."""

MISSING = object()
"""Stands for an answer that was not passed."""

hints_given: dict[str, int] = {}
"""How many hints of each question this kernel has shown."""


@dataclass(frozen=True)
class Result:
    """What an answer did in one case; `note` names the misunderstanding behind a wrong one, if it is known."""

    case: Case
    passed: bool
    got: str
    note: str = ""


def check(identifier: str, answer: Any = MISSING) -> None:
    """Try an answer and show, case by case, what it gave and what is right.

    Args:
        identifier: of the question, "ch03.q2".
        answer: the reader's function, class or value; without it, the one that the calling notebook has under the
            name that the question asks for. What it raises is shown as its result.

    Raises:
        CourseError: there is no such question.
    """
    question = questions.find(identifier)
    if answer is MISSING:
        answer = sys._getframe(1).f_globals.get(question.answer, ...)
    with bounded_output():
        results = run_cases(question, answer)
    points = earned(question, results)
    best = progress.record(question, points)
    bar = progress.bar(questions.of_chapter(identifier), best)
    if all(result.note == NOT_ANSWERED for result in results):
        show_unanswered(question, bar)
    else:
        show_results(question, results, points, bar)


def run_cases(question: Question, answer: Any) -> list[Result]:
    """Every case, one by one; a failure in one does not stop the next."""
    return [run_case(question, case, answer) for case in question.cases()]


def run_case(question: Question, case: Case, answer: Any) -> Result:
    if answer is ...:
        return Result(case, False, "nothing", NOT_ANSWERED)
    if answer is None:
        return Result(case, False, "None", f"`{question.answer}` is None: nothing was assigned to it yet.")
    # Copies, as a grader sends and receives them: an answer cannot change a case, and only plain values are compared.
    arguments = codec.through(case.arguments)
    try:
        got = codec.through(question.drive(answer, *arguments))
    except codec.CodecError as error:
        return Result(case, False, "something else", f"The answer {error}")
    except (Exception, SystemExit) as error:  # the reader's code may raise anything; Ctrl-C stops all the same
        result = judge_error(question, case, type(error).__name__, str(error))
        return result if result.note == NOT_ANSWERED else replace(result, got=f"{result.got}{place(error)}")
    return judge(question, case, got)


@contextlib.contextmanager
def bounded_output() -> Iterator[None]:
    """What an answer prints helps to mend it, but not a million lines of it."""
    bounded = Bounded()
    with contextlib.redirect_stdout(bounded):
        yield
    if bounded.dropped:
        print(f"\n… and {bounded.dropped:,} characters more that your answer printed.")


class Bounded(io.TextIOBase):
    """A standard output that passes on what comes first and counts the rest."""

    def __init__(self) -> None:
        self.out, self.left, self.dropped = sys.stdout, MAX_PRINTED, 0

    def write(self, text: str) -> int:
        kept = text[: self.left]
        self.left -= len(kept)
        self.dropped += len(text) - len(kept)
        if kept:
            self.out.write(kept)
        return len(text)

    def flush(self) -> None:
        self.out.flush()


def place(error: BaseException) -> str:
    """Where in the notebook it was raised: the last line that is not a library's."""
    found = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__") == "__main__":
            found = f" (line {line} of the cell, in {frame.f_code.co_name})"
    return found


def judge(question: Question, case: Case, got: Any) -> Result:
    """Compare what came back, made of plain values, with what must."""
    try:
        got = plain_value(got)
        if (number := size(got)) > MAX_TIMES * size(plain_value(case.expected)) + MAX_MORE:
            return Result(case, False, f"{number:,} values", "Those are far more values than were asked for.")
        shown = shortened(shown_value(got))
        right = matches(got, plain_value(case.expected), question.tolerance, question.absolute)
    except (TypeError, ValueError, OverflowError):  # a set of texts and numbers, a number beyond all bounds
        return Result(case, False, "something else", "That cannot be compared with a right result.")
    if right:
        return Result(case, True, shown)
    if got is None:
        return Result(case, False, "None", "Your function returns nothing: end it with `return`.")
    return Result(case, False, shown, explained(question, case, got) or other_kind(got, plain_value(case.expected)))


def shown_value(value: Any) -> str:
    """As format_value, where nothing at all would say nothing."""
    return format_value(value) or f"an empty {kind_of(plain_value(value)).split()[-1]}"


def kind_of(value: Any) -> str:
    return KINDS.get(type(value), "a number")


def other_kind(got: Any, expected: Any) -> str:
    """A sentence if a result is another kind of thing than the right one, which may look the same: "3" and 3."""
    if isinstance(got, list) and isinstance(expected, list) and got and expected:
        if len(got) != len(expected):
            return f"That is a list of {len(got):,}, but one of {len(expected):,} is asked for."
        return next((said for pair in zip(got, expected, strict=True) if (said := other_kind(*pair))), "")
    if isinstance(got, dict) and isinstance(expected, dict):
        return next((said for key in expected if key in got and (said := other_kind(got[key], expected[key]))), "")
    found, asked = kind_of(got), kind_of(expected)
    return f"{str(got)[:40]!r} is {found}, but {asked} is asked for." if found != asked else ""


def size(value: Any) -> int:
    """How many numbers and texts: a long text counts for its length, an empty list for one."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return 1 + sum(map(size, value))
    return 1 + len(value) // MAX_SHOWN if isinstance(value, str) else 1


def judge_error(question: Question, case: Case, kind: str, message: str) -> Result:
    if kind == "NotImplementedError" and message == STUB:
        return Result(case, False, "nothing", NOT_ANSWERED)
    raised = f"{kind}: {message}"
    shown = raised if len(raised) <= MAX_RAISED else f"{raised[:MAX_RAISED]} …"
    return Result(case, False, shown, explained(question, case, raised))


def explained(question: Question, case: Case, got: Any) -> str:
    """What the question says of a wrong result; nothing if the result is of a shape that it did not think of."""
    try:
        return shortened(question.explain(case, got))
    except Exception:
        return ""


def shortened(shown: str) -> str:
    return shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]} …"


def earned(question: Question, results: list[Result]) -> int:
    """Points in proportion to the cases that are right, rounded down."""
    return question.points * sum(result.passed for result in results) // len(results)


def show_unanswered(question: Question, bar: str) -> None:
    """No case is shown: that would be half of the answer."""
    todo = f"define {{}} in the cell marked “Answer: {question.id}”, and run that cell"
    line = f"{question.id}: {NOT_ANSWERED} ({todo.format(question.answer)}), 0 of {question.points} points"
    name = f"<code>{question.answer}</code>"
    markup = f"<p>{badge('fail')} <b>{question.id}</b>: {NOT_ANSWERED}: {todo.format(name)}</p>"
    emit(f"{line}\n{bar}", f"{markup}<p><code>{bar}</code></p>")


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
        expected = shown_value(result.case.expected)
        line = f"  {sign} {result.case.name}: got {result.got}"
        plain.append(line if result.passed else f"{line}, expected {expected}. {note}".rstrip())
        rows.append([sign, text(result.case.name), value_markup(result.got), value_markup(expected), note_markup(note)])
    plain.append(bar)
    if not solved:
        plain.append(f'Stuck? hint("{question.id}")')
    heading = f"<p>{badge('pass' if solved else 'fail')} <b>{question.id}</b>: {words}, {plain[0].split(', ')[-1]}</p>"
    help_line = "" if solved else f"<br>Stuck? <code>hint(&quot;{question.id}&quot;)</code>"
    results_table = table(["", "case", "got", "expected", ""], *rows)
    emit("\n".join(plain), f"{heading}{results_table}<p><code>{bar}</code>{help_line}</p>")


def value_markup(shown: str) -> str:
    """A result in a table: a long one scrolls in a few lines, so that the cases stay in sight."""
    if len(shown) <= MAX_IN_TABLE:
        return text(shown)
    return f'<div style="max-height:8em;overflow:auto;overflow-wrap:anywhere">{text(shown)}</div>'


def note_markup(note: str) -> str:
    """What a case says of the mistake behind it: wide enough to read beside long results, with its `code` as code."""
    return f'<div style="min-width:18em">{with_code(note)}</div>' if note else ""


def with_code(words: str) -> str:
    """Escaped for HTML; what stands between backticks is shown as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", text(words))


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
    emit(f"{title}: {shown}\n{more}", f"<p><b>{title}.</b> {with_code(shown)}<br><i>{more}</i></p>")
