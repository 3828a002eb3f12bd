"""Banks of answers to the exercises' questions: right ones written in other ways, and wrong ones that people write."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Answers:
    """Answers to one question, each the text of a cell.

    Attributes:
        right: (what is different about it, source)
        wrong: (the mistake, source, what the message to the reader must contain)
        remembers: names of wrong answers that know nothing but cases that check shows: the grader takes their points
    """

    right: list[tuple[str, str]]
    wrong: list[tuple[str, str, str]]
    remembers: frozenset[str] = frozenset()
