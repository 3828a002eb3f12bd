"""Chapter 01: answers of several results, each result by its name."""

from __future__ import annotations

from typing import Any

from pagedlab.course.drivers.records import parts


def part(answer: Any, key: str) -> Any:
    """One entry of an answer that is a dictionary."""
    return answer[key]


def step(answer: Any, *arguments: Any) -> dict[str, Any] | None:
    """What a decode step was found to be."""
    return named(answer(*arguments), "FLOP per byte", "bound by", "seconds")


def bill(answer: Any, *arguments: Any) -> dict[str, Any] | None:
    """What a service was found to need."""
    return named(answer(*arguments), "GPUs", "dollars a million")


def named(values: Any, *names: str) -> dict[str, Any] | None:
    """A name for each value; a function that returns nothing is told so elsewhere."""
    return None if values is None else parts(values, *names)
