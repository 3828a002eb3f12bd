"""The questions of the exercises, one module a chapter: the one place to edit a question's cases, points and hints.

Its text and its solution stand in solutions/, from which `pagedlab exercises build` makes exercises/.
"""

from __future__ import annotations

from difflib import get_close_matches

from pagedlab.course.questions import ch00, ch01, ch02, ch03, ch04, ch05, ch06, ch07, ch08, ch09, ch10, ch11, ch12
from pagedlab.course.questions.model import Case, Kind, Question
from pagedlab.errors import CourseError

__all__ = ["QUESTIONS", "Case", "Kind", "Question", "find", "of_chapter"]

QUESTIONS: tuple[Question, ...] = tuple(
    question
    for chapter in (ch00, ch01, ch02, ch03, ch04, ch05, ch06, ch07, ch08, ch09, ch10, ch11, ch12)
    for question in chapter.QUESTIONS
)


def find(identifier: str) -> Question:
    """The question with this id; raises CourseError if there is none."""
    if not isinstance(identifier, str):
        raise CourseError(f'Name the question first, as in check("ch03.q2"), not {type(identifier).__name__!r}.')
    for question in QUESTIONS:
        if question.id == identifier:
            return question
    ids = [question.id for question in QUESTIONS]
    if not of_chapter(identifier) and (near := get_close_matches(identifier.strip().lower(), ids, n=1)):
        raise CourseError(f'There is no question {identifier!r}: did you mean "{near[0]}"?')
    known = ", ".join(question.id for question in of_chapter(identifier) or QUESTIONS)
    raise CourseError(f"There is no question {identifier!r}: there are {known}.")


def of_chapter(identifier: str) -> list[Question]:
    """All questions of the chapter that "ch03.q2" belongs to."""
    chapter = identifier.split(".")[0]
    return [question for question in QUESTIONS if question.chapter == chapter]
