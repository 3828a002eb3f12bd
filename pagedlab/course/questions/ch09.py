"""Chapter 09: padding counted on texts and on steps, when a batch starts, who waits, and inputs that are right."""

from __future__ import annotations

from pagedlab.course.drivers import ch09 as drivers
from pagedlab.course.questions.ch09_cases import (
    joining_cases,
    joining_fresh,
    launch_cases,
    launch_fresh,
    padded_cases,
    padded_fresh,
    rectangle_cases,
    rectangle_fresh,
    seat_cases,
    seat_fresh,
)
from pagedlab.course.questions.ch09_mistakes import (
    JOINING_MISTAKES,
    LAUNCH_MISTAKES,
    PADDED_MISTAKES,
    RECTANGLE_MISTAKES,
    SEAT_MISTAKES,
)
from pagedlab.course.questions.mistakes import named
from pagedlab.course.questions.model import Kind, Question

QUESTIONS: tuple[Question, ...] = (
    Question(
        id="ch09.q1",
        title="Three prompts, one rectangle",
        kind=Kind.IMPLEMENT,
        difficulty=1,
        points=3,
        answer="rectangle",
        cases=rectangle_cases,
        fresh=rectangle_fresh,
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
        fresh=joining_fresh,
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
        fresh=launch_fresh,
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
        fresh=seat_fresh,
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
        fresh=padded_fresh,
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
