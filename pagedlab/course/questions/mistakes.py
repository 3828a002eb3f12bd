"""Names the misunderstanding behind a wrong result: makes the same mistakes on purpose, and compares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pagedlab.course.comparison import matches
from pagedlab.course.display import plain_value
from pagedlab.course.questions.model import Case


@dataclass(frozen=True)
class Mistake:
    """One way to be wrong.

    Attributes:
        says: to the reader, in a sentence or two: what was done, and why it is not right
        do: called with a case's arguments; gives what somebody with this misunderstanding gets
    """

    says: str
    do: Callable[..., Any]


def named(*mistakes: Mistake, tolerance: float = 1e-6, absolute: bool = False) -> Callable[[Case, Any], str]:
    """For `Question.explain`: what the first mistake says that gives the same result in this case, or ""."""

    def explain(case: Case, got: Any) -> str:
        return next(shown_by(mistakes, case, got, tolerance, absolute), "")

    return explain


MAX_LIKELY = 3


def any_of(*mistakes: Mistake, tolerance: float = 1e-6, absolute: bool = False) -> Callable[[Case, Any], str]:
    """As `named`, for results that many mistakes give: tells all that it may be, or nothing if those are too many."""

    def explain(case: Case, got: Any) -> str:
        likely = list(dict.fromkeys(shown_by(mistakes, case, got, tolerance, absolute)))
        if len(likely) == 1:
            return likely[0]
        return f"Either: {' Or: '.join(likely)}" if 1 < len(likely) <= MAX_LIKELY else ""

    return explain


def shown_by(mistakes: Iterable[Mistake], case: Case, got: Any, tolerance: float, absolute: bool) -> Iterator[str]:
    """What the mistakes say that give this result, but for those that do not show in this case."""
    right = plain_value(case.expected)
    for mistake in mistakes:
        result = outcome(mistake, case)
        if matches(got, result, tolerance, absolute) and not matches(result, right, tolerance, absolute):
            yield mistake.says


def outcome(mistake: Mistake, case: Case) -> Any:
    """What the mistake gives; if it raises, the text that a reader's answer gives that raises the same."""
    try:
        return plain_value(mistake.do(*case.arguments))
    except Exception as error:  # a mistake may fail in any way, as a reader's answer may
        return f"{type(error).__name__}: {error}"


def or_first_difference(known: Callable[[Case, Any], str]) -> Callable[[Case, Any], str]:
    """For `Question.explain` where the driver gives a list of lines: the first that differs, if no mistake is known."""

    def explain(case: Case, got: Any) -> str:
        if says := known(case, got):
            return says
        if not isinstance(got, list):
            return ""
        for line, right in zip(got, case.expected, strict=False):
            if line != right:
                return f"It differs first here: {line}. Right is: {right}."
        return ""

    return explain


def named_by_part(parts: Mapping[str, list[tuple[float, str]]], tolerance: float = 1e-3) -> Callable[[Case, Any], str]:
    """For `Question.explain` where the driver is `part`: of each part of the answer, values and what they come from."""

    def explain(case: Case, got: Any) -> str:
        key = case.arguments[0]
        if isinstance(got, str):
            return f'Give "{key}" as a number: {{"{key}": 123, ...}}.' if "Error" not in got else missing(key, got)
        for value, says in parts.get(key, []):
            if matches(got, value, tolerance, False):
                return says
        return ""

    return explain


def missing(key: str, error: str) -> str:
    if error.startswith("KeyError"):
        return f'The dictionary has no entry "{key}" yet.'
    return f'Make it a dictionary with an entry "{key}".'
