"""Whole numbers in a table of cases: those that check shows, or twins of them from a range."""

from __future__ import annotations

from collections.abc import Callable

from pagedlab.course.questions.twins import Pick

Number = Callable[[int, int, int], int]
"""number(shown, lowest, highest)."""


def between(pick: Pick) -> Number:
    """Picks a number from the lowest to the highest; where those leave no other one, the shown one."""

    def number(shown: int, lowest: int, highest: int) -> int:
        return shown if shown == lowest == highest else pick(shown, range(lowest, highest + 1))

    return number


def different(number: Number, *shown: int, highest: int = 60) -> list[int]:
    """For numbers that differ from each other, numbers from 1 on that do."""
    while True:
        found = [number(value, 1, highest) for value in shown]
        if len({*found}) == len(found):
            return found
