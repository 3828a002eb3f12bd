"""Fresh cases as twins of shown ones: one table makes both, and says of each value what may stand in its place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from random import Random
from typing import Protocol, TypeVar

from pagedlab.course.questions.model import Case

T = TypeVar("T")


class Pick(Protocol):
    """Chooses a value for a case: the one that `check` shows, or another one that keeps what the case is there for."""

    def __call__(self, shown: T, others: Sequence[T]) -> T: ...


def as_shown(shown: T, others: Sequence[T]) -> T:
    return shown


def anew(draw: Random) -> Pick:
    """Always one of the others, which may hold the shown one too."""

    def pick(shown: T, others: Sequence[T]) -> T:
        while (value := draw.choice(others)) == shown:
            pass
        return value

    return pick


def drawn(cases: Iterable[Case]) -> Iterable[Case]:
    """The same cases, under names that say so."""
    for case in cases:
        yield replace(case, name=f"{case.name}, drawn")
