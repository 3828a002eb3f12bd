"""Chapter 09: padding counted on texts and on steps, when a batch starts, who waits, and inputs that are right."""

from __future__ import annotations

import random
from collections.abc import Iterable
from functools import cache
from typing import Any, cast

import numpy as np
from tokenizers import Tokenizer

from pagedlab.course.drivers import ch09 as drivers
from pagedlab.course.questions.ch09_mistakes import (
    JOINING_MISTAKES,
    LAUNCH_MISTAKES,
    PADDED_MISTAKES,
    RECTANGLE_MISTAKES,
    SEAT_MISTAKES,
    Ids,
)
from pagedlab.course.questions.mistakes import named
from pagedlab.course.questions.model import Case, Kind, Question
from pagedlab.model_authoring.models.provision import default_model_path
from pagedlab.simulate.batching import simulate_dynamic, simulate_static
from pagedlab.simulate.cost_model import CostModel
from pagedlab.simulate.workloads import TraceRequest

# ---- q1: three prompts, one rectangle --------------------------------------------------------------------------------

THREE_PROMPTS = ["Hi", "Hello, how are you?", "The quick brown fox jumps over the lazy dog"]


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(default_model_path() / "tokenizer.json"))


def tokenized(prompts: list[str]) -> list[list[int]]:
    """Token ids of the course's model."""
    return [tokenizer().encode(prompt).ids for prompt in prompts]


def made_up(*lengths: int) -> tuple[list[str], list[list[int]]]:
    """Prompts of a tokenizer of our own: their tokens are neither their words nor their characters."""
    draw = random.Random(sum(lengths))
    prompts = [f"prompt {i} " + "word " * draw.randrange(9) + "." * draw.randrange(3) for i in range(len(lengths))]
    return prompts, [[draw.randrange(1, 999) for _ in range(n)] for n in lengths]


def rectangle_cases() -> Iterable[Case]:
    chinese = ["你好", "请用一句话解释量子计算", "Hi"]
    for name, prompts, ids in (
        ("A, B and C, the course's tokenizer", THREE_PROMPTS, tokenized(THREE_PROMPTS)),
        ("Chinese and English, the course's tokenizer", chinese, tokenized(chinese)),
        ("a tokenizer of 2, 5 and 10 tokens", *made_up(2, 5, 10)),
        ("one prompt", *made_up(7)),
        ("all of one length", *made_up(4, 4, 4)),
        ("many", *made_up(31, 2, 8, 16, 16, 90, 1)),
    ):
        tokens, pads, useful = counted_cells(ids)
        yield Case(name, (prompts, ids), {"tokens": tokens, "pads": pads, "useful": useful})


def counted_cells(ids: Ids) -> tuple[list[int], int, float]:
    """Counted cell by cell."""
    width = max(map(len, ids))
    cells = [column < len(tokens) for tokens in ids for column in range(width)]
    return [len(tokens) for tokens in ids], cells.count(False), cells.count(True) / len(cells)


# ---- q2: who joins the rectangle -------------------------------------------------------------------------------------


def joining_cases() -> Iterable[Case]:
    draw = random.Random(4)
    steps: list[tuple[int, list[int]]] = [(8, [100]), (7, [100]), (12, [250]), (5, [1]), (6, []), (0, [30, 20])]
    steps.append((3, [40, 10, 25]))
    steps += [(draw.randrange(1, 40), [draw.randrange(1, 300) for _ in range(draw.randrange(2, 5))]) for _ in range(2)]
    for decoding, newcomers in steps:
        _, pads, _ = counted_cells([[0] * n for n in [1] * decoding + newcomers])
        name = f"{decoding} decoding, joined by {', '.join(map(str, newcomers)) or 'nobody'}"
        yield Case(name, (decoding, newcomers), {"pads": pads, "cells": pads + decoding + sum(newcomers)})


# ---- q3, q4: batches on a clock --------------------------------------------------------------------------------------


class OneSpeed:
    """Stands in for a cost model: every step takes the same time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def seconds_of(self, rows: Any, sequences: Any, sampled: Any, pairs: Any, context: Any) -> float:
        return self.seconds


def one_speed(seconds: float) -> CostModel:
    return cast(CostModel, OneSpeed(seconds))


def launch_cases() -> Iterable[Case]:
    draw = random.Random(9)
    crowd = sorted(draw.randrange(120) / 4 for _ in range(30))
    for name, arrivals, size, timeout, busy in (
        ("the batch fills before the time-out", [0.0, 0.5, 1.0], 3, 5.0, 2.0),
        ("the time-out ends first", [0.0, 1.0, 9.0], 3, 2.0, 1.0),
        ("a trickle", [0.0, 1.5, 3.0, 4.5, 6.0], 4, 2.0, 0.25),
        ("the next batch fills while the device is busy", [0.0, 0.0, 1.0, 2.0, 3.0], 2, 1.0, 8.0),
        ("the oldest waits while the device is busy", [0.0, 1.0, 6.5, 7.0], 3, 2.0, 5.0),
        ("more come while it is busy than fit", [0.0, 1.0, 1.0, 1.0, 1.0, 1.0], 2, 0.5, 4.0),
        ("at the very moment", [0.0, 2.0, 4.0], 3, 2.0, 1.0),
        ("no time-out", [0.0, 0.5, 3.0], 4, 0.0, 1.0),
        ("thirty requests", crowd, 4, 1.5, 3.0),
    ):
        run = simulate_dynamic([TraceRequest(a, 1, 1) for a in arrivals], one_speed(busy), size, timeout)
        starts, counts = np.unique(run.started, return_counts=True)
        expected = {"start": starts, "requests": counts}
        yield Case(name, (arrivals, size, timeout, busy), expected)


def seat_cases() -> Iterable[Case]:
    draw = random.Random(6)
    for name, answers, size in (
        ("one batch", [4, 9, 2], 3),
        ("one batch, a seat empty", [4, 9], 3),
        ("three batches of two", [5, 1, 2, 8, 3, 3], 2),
        ("the last batch is not full", [6, 2, 7, 1, 4], 2),
        ("one seat", [3, 5, 2], 1),
        ("all alike", [4, 4, 4, 4], 2),
        ("twenty requests", [draw.randrange(1, 60) for _ in range(20)], 8),
    ):
        run = simulate_static([TraceRequest(0.0, 1, m) for m in answers], one_speed(1.0), size)
        expected = {"waited": run.started, "for nobody": run.released - run.finished}
        yield Case(name, (answers, size), expected)


# ---- q5: right alone, wrong together ---------------------------------------------------------------------------------


def padded_cases() -> Iterable[Case]:
    draw = random.Random(8)
    batches = {
        "two rows": ([[5, 6, 7], [8]], 0),
        "nothing to pad": ([[1, 2], [3, 4]], 0),
        "one row": ([[9, 8, 7]], 0),
        "the pad's id is a real token": ([[2, 2, 9, 2], [2, 7]], 2),
        "four rows": ([[draw.randrange(100) for _ in range(n)] for n in (3, 6, 1, 5)], 49),
    }
    for name, (rows, pad) in batches.items():
        yield Case(name, (rows, pad), token_by_token(rows, pad))


def token_by_token(rows: Ids, pad: int) -> dict[str, Any]:
    """Each rule of the text, asked for each query and each key."""
    width = max(map(len, rows))
    missing = [width - len(row) for row in rows]
    ids = [[pad] * pads + list(row) for pads, row in zip(missing, rows, strict=True)]
    positions = [[max(0, column - pads) for column in range(width)] for pads in missing]
    mask = [
        [[query == key or pads <= key <= query for key in range(width)] for query in range(width)] for pads in missing
    ]
    return drivers.described(ids, mask, positions)


QUESTIONS: tuple[Question, ...] = (
    Question(
        id="ch09.q1",
        title="Three prompts, one rectangle",
        kind=Kind.IMPLEMENT,
        difficulty=1,
        points=3,
        answer="rectangle",
        cases=rectangle_cases,
        hints=(
            "A text has characters, words and tokens, three different numbers. Who counts tokens?",
            (
                "lengths = [len(encode(prompt)) for prompt in prompts]. The rectangle is as wide as the longest, and"
                " has a row for each."
            ),
            "cells = len(lengths) * max(lengths). What is no real token is a pad, and sum(lengths) / cells is useful.",
        ),
        explain=named(*RECTANGLE_MISTAKES),
        tolerance=1e-3,
        drive=drivers.rectangle,
    ),
    Question(
        id="ch09.q2",
        title="Who joins the rectangle",
        kind=Kind.COMPUTE,
        difficulty=1,
        points=3,
        answer="joining",
        cases=joining_cases,
        hints=(
            "Draw the example on paper: a row for each request, one column for each token of the longest newcomer.",
            (
                "There are decoding + len(newcomers) rows. One decoding request brings 1 real token, a newcomer its "
                "whole prompt."
            ),
            (
                "cells = width * rows, and pads = cells - decoding - sum(newcomers). max() of an empty list needs a "
                "default."
            ),
        ),
        explain=named(*JOINING_MISTAKES),
        drive=drivers.joining,
    ),
    Question(
        id="ch09.q3",
        title="When does a batch start?",
        kind=Kind.IMPLEMENT,
        difficulty=3,
        points=4,
        answer="launches",
        cases=launch_cases,
        hints=(
            (
                "Go batch by batch. You know who is the oldest, and since when the device is free. Three moments "
                "matter for the start."
            ),
            (
                "The moment it is full: when request number first + batch_size - 1 comes, if there is one. The "
                "moment the oldest "
                "has waited enough. The earlier of the two counts; but not before the device is free."
            ),
            (
                "start = max(free, min(full, arrivals[first] + timeout)). Then count arrivals up to and including "
                "start, at most "
                "batch_size, go on behind them, and set free = start + busy."
            ),
        ),
        explain=named(*LAUNCH_MISTAKES),
        drive=drivers.launches,
        tolerance=1e-9,
    ),
    Question(
        id="ch09.q4",
        title="Behind the longest",
        kind=Kind.IMPLEMENT,
        difficulty=2,
        points=3,
        answer="seats",
        cases=seat_cases,
        hints=(
            "Cut the list into batches of batch_size, in order. How long does one batch take?",
            (
                "A batch takes as many steps as its longest answer. The next batch starts after the sum of all "
                "batches before it."
            ),
            (
                "For a batch that starts at `start`: (start, max(batch) - answer) for each answer; then start += "
                "max(batch)."
            ),
        ),
        explain=named(*SEAT_MISTAKES),
        drive=drivers.seats,
        tolerance=1e-9,
    ),
    Question(
        id="ch09.q5",
        title="Right alone, wrong together",
        kind=Kind.DIAGNOSE,
        difficulty=3,
        points=4,
        answer="padded_inputs",
        cases=padded_cases,
        hints=(
            (
                "Three reports, three places: where a row's tokens are put, what position they get, and rows of the "
                "mask without True."
            ),
            (
                "ids[number, width - len(row):] puts them on the right side. For a row with k pads, column c has "
                "position c - k. "
                "Which single entry of the mask makes a row of a pad harmless?"
            ),
            (
                "positions: real.cumsum(dim=1) - 1, with clamp(min=0) for the pads. mask: add the diagonal, "
                "torch.eye(width).bool(), "
                "with |. A real token sees itself anyway."
            ),
        ),
        explain=named(*PADDED_MISTAKES),
        drive=drivers.padded_inputs,
    ),
)
