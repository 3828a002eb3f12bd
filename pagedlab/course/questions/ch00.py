"""Chapter 00: the toy question that shows how check and hint work."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Any

from pagedlab.course.questions.model import Case, Kind, Question

BLOCK_SIZE = 16


def blocks_needed_cases() -> Iterable[Case]:
    return texts(1, 15, 16, 17, 32, 100)


def blocks_needed_fresh(draw: Random) -> Iterable[Case]:
    """Below, at and above a multiple, as above."""
    a, b, c, d, e = (BLOCK_SIZE * number for number in draw.sample(range(3, 5_000), 5))
    return texts(a - 1, b, c + 1, d, e - draw.randrange(2, 15))


def texts(*lengths: int) -> Iterable[Case]:
    for num_tokens in lengths:
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
        title="Blocks for a text",
        kind=Kind.IMPLEMENT,
        difficulty=1,
        points=2,
        answer="blocks_needed",
        cases=blocks_needed_cases,
        hints=(
            "Try it by hand: how many boxes of 16 do 17 eggs need?",
            "Whole boxes, rounded up: a partly filled block is still a block.",
            "Rounding up in whole numbers: (n + 15) // 16, or math.ceil(n / 16).",
        ),
        explain=blocks_needed_explained,
        fresh=blocks_needed_fresh,
    ),
)
