"""The questions that a notebook can ask: what a right answer does, how many points it earns, and three hints each.

One place to edit. A question is checked by calling the answer on cases; the expected values come from pagedlab itself
or from arithmetic that is written here, never from a stored result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pagedlab.errors import CourseError


@dataclass(frozen=True)
class Case:
    """One trial of an answer.

    Attributes:
        name: what is tried, in words
        arguments: the answer is called with these; an answer that is no function is compared as it is
        expected: what it must return
    """

    name: str
    arguments: tuple[Any, ...]
    expected: Any


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        id: "ch03.q2"
        points: for an answer that is right in all cases
        cases: makes the cases, when they are needed
        hints: three, from a nudge to nearly the answer
        explain: says which misunderstanding gives a wrong result, or "" if it is none that we know
        tolerance: relative, of numbers
    """

    id: str
    points: int
    cases: Callable[[], Iterable[Case]]
    hints: tuple[str, str, str]
    explain: Callable[[Case, Any], str]
    tolerance: float = 0.0


def find(identifier: str) -> Question:
    """The question with this id; raises CourseError if there is none."""
    for question in QUESTIONS:
        if question.id == identifier:
            return question
    known = ", ".join(question.id for question in QUESTIONS)
    raise CourseError(f"There is no question {identifier!r}: the course has {known}.")


def of_chapter(identifier: str) -> list[Question]:
    """All questions of the chapter that "ch03.q2" belongs to."""
    chapter = identifier.split(".")[0]
    return [question for question in QUESTIONS if question.id.split(".")[0] == chapter]


# ---- chapter 00 --------------------------------------------------------------------------------------------------

BLOCK_SIZE = 16


def blocks_needed_cases() -> Iterable[Case]:
    for num_tokens in (1, 15, 16, 17, 32, 100):
        blocks = 0
        while blocks * BLOCK_SIZE < num_tokens:
            blocks += 1
        tokens = "token" if num_tokens == 1 else "tokens"
        yield Case(f"{num_tokens} {tokens}", (num_tokens,), blocks)


def blocks_needed_explained(case: Case, got: Any) -> str:
    (num_tokens,) = case.arguments
    if got == num_tokens // BLOCK_SIZE:
        return "Rounded down: the tokens of the last, partly filled block have no place."
    if got == num_tokens // BLOCK_SIZE + 1:
        return "One block too many where the tokens fill the last block exactly."
    return "That is not rounded to whole blocks." if isinstance(got, float) else ""


QUESTIONS: tuple[Question, ...] = (
    Question(
        id="ch00.q1",
        points=2,
        cases=blocks_needed_cases,
        hints=(
            "Try it by hand: how many boxes of 16 do 17 eggs need?",
            "Whole boxes, rounded up: a partly filled block is still a block.",
            "Rounding up in whole numbers: (n + 15) // 16, or math.ceil(n / 16).",
        ),
        explain=blocks_needed_explained,
    ),
)
