"""What a question is: cases to try, points, three hints, and what to say of a wrong result."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Any

from pagedlab.course.drivers import call


class Kind(StrEnum):
    """What the reader is asked to do."""

    IMPLEMENT = "implement"
    COMPUTE = "compute"
    DIAGNOSE = "diagnose"


@dataclass(frozen=True)
class Case:
    """One trial of an answer.

    Attributes:
        name: what is tried, in words
        arguments: what the question's driver passes to the answer: plain values and tensors
        expected: what must come back, from pagedlab itself or from arithmetic that stands beside the question
    """

    name: str
    arguments: tuple[Any, ...]
    expected: Any


def nothing_known(case: Case, got: Any) -> str:
    """Names no misunderstanding."""
    return ""


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        id: "ch03.q2"
        title: a few words
        kind: what the reader is asked to do
        difficulty: 1 (a few minutes), 2 (needs thought), 3 (half an hour)
        points: for an answer that is right in all cases; fewer cases earn a share, rounded down
        answer: the name that the reader's cell defines
        cases: makes the cases, when they are needed; always the same, and `check` shows them
        fresh: draws other cases of the same kinds, in about the same proportions. Only the grader tries them, so that
            results which were written down instead of computed earn nothing; None where the answer is a value
        hints: three, from a nudge to nearly the answer
        explain: says which misunderstanding gives a wrong result (the text of an exception, if it raised), or ""
        tolerance: of numbers, relative, or absolute if `absolute` is set
        drive: called as drive(answer, *arguments) where the answer runs, which in grading is not this process: a
            function at the top of a module in pagedlab.course.drivers. It returns plain values or tensors
        is_value: the answer is a value, and `drive` finds out whether it is right. A grader then calls `drive` with a
            copy in another process, in which nothing of the reader's has run that could change what `drive` finds
        allowed: modules of pagedlab that an answer may import, with everything below them
        seconds: that all cases together may take in grading
    """

    id: str
    title: str
    kind: Kind
    difficulty: int
    points: int
    answer: str
    cases: Callable[[], Iterable[Case]]
    hints: tuple[str, str, str]
    explain: Callable[[Case, Any], str] = nothing_known
    tolerance: float = 0.0
    absolute: bool = False
    drive: Callable[..., Any] = call
    fresh: Callable[[Random], Iterable[Case]] | None = None
    is_value: bool = False
    allowed: tuple[str, ...] = ()
    seconds: float = 20.0

    @property
    def chapter(self) -> str:
        """ "ch03"."""
        return self.id.split(".")[0]
