"""Chapter 09: the cases of its questions, those that check shows and fresh ones from the same tables."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from itertools import permutations
from random import Random
from typing import Any, cast

import numpy as np
from tokenizers import Tokenizer

from pagedlab.course.drivers import ch09 as drivers
from pagedlab.course.questions.ch09_mistakes import Ids
from pagedlab.course.questions.model import Case
from pagedlab.course.questions.numbers import between, different
from pagedlab.course.questions.twins import Pick, anew, as_shown, drawn
from pagedlab.model_authoring.models.provision import default_model_path
from pagedlab.simulate.batching import simulate_dynamic, simulate_static
from pagedlab.simulate.cost_model import CostModel
from pagedlab.simulate.workloads import TraceRequest

# ---- q1: three prompts, one rectangle --------------------------------------------------------------------------------

THREE_PROMPTS = ["Hi", "Hello, how are you?", "The quick brown fox jumps over the lazy dog"]
ENGLISH = (
    "Good morning!",
    "What's a KV cache?",
    "Tell me: why is the sky blue?",
    "Write a poem, short and sad, about paged attention.",
    "Unbelievable!",
    "2 + 2 = 4, isn't it?",
    "Name three cities, please.",
)
"""None has as many tokens as words."""
CHINESE = ("你好", "请用一句话解释量子计算", "今天天气怎么样？", "给我讲一个故事", "谢谢你的帮助", "什么是注意力机制？")


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(default_model_path() / "tokenizer.json"))


def tokenized(prompts: list[str]) -> list[list[int]]:
    """Token ids of the course's model."""
    return [tokenizer().encode(prompt).ids for prompt in prompts]


def made_up(*lengths: int, seed: int | None = None) -> tuple[list[str], list[list[int]]]:
    """Prompts of a tokenizer of our own: their tokens are neither their words nor their characters."""
    draw = Random(sum(lengths) if seed is None else seed)
    prompts = [f"prompt {i} " + "word " * draw.randrange(9) + "." * draw.randrange(3) for i in range(len(lengths))]
    return prompts, [[draw.randrange(1, 999) for _ in range(n)] for n in lengths]


def rectangle_cases() -> Iterable[Case]:
    return rectangles(as_shown)


def rectangle_fresh(draw: Random) -> Iterable[Case]:
    return drawn(rectangles(anew(draw)))


def rectangles(pick: Pick) -> Iterable[Case]:
    three = pick(THREE_PROMPTS, [list(prompts) for prompts in permutations(ENGLISH, 3)])
    name = pick("A, B and C, the course's tokenizer", ("three prompts, the course's tokenizer",))
    yield rectangle_case(name, three, tokenized(three))
    mixed = pick([*CHINESE[:2], "Hi"], [[*two, one] for two in permutations(CHINESE, 2) for one in ENGLISH])
    yield rectangle_case("Chinese and English, the course's tokenizer", mixed, tokenized(mixed))
    middling = range(2, 60)
    a, b, c, n = pick(2, (1, 3)), pick(5, (4, 6, 7)), pick(10, (9, 11, 12)), pick(4, middling)
    many = [pick(n, middling) for n in (31, 2, 8, 16, 16)]
    for name, lengths in (
        (f"a tokenizer of {a}, {b} and {c} tokens", [a, b, c]),
        ("one prompt", [pick(7, middling)]),
        ("all of one length", [n, n, n]),
        ("many", [*many, pick(90, range(60, 99)), 1]),
    ):
        yield rectangle_case(name, *made_up(*lengths, seed=pick(sum(lengths), range(2**31))))


def rectangle_case(name: str, prompts: list[str], ids: list[list[int]]) -> Case:
    tokens, pads, useful = counted_cells(ids)
    return Case(name, (prompts, ids), {"tokens": tokens, "pads": pads, "useful": useful})


def counted_cells(ids: Ids) -> tuple[list[int], int, float]:
    """Counted cell by cell."""
    width = max(map(len, ids))
    cells = [column < len(tokens) for tokens in ids for column in range(width)]
    return [len(tokens) for tokens in ids], cells.count(False), cells.count(True) / len(cells)


# ---- q2: who joins the rectangle -------------------------------------------------------------------------------------


def joining_cases() -> Iterable[Case]:
    return joinings(Random(4), as_shown)


def joining_fresh(draw: Random) -> Iterable[Case]:
    return drawn(joinings(draw, anew(draw)))


def joinings(draw: Random, pick: Pick) -> Iterable[Case]:
    long, short = range(60, 300), range(2, 50)
    steps: list[tuple[int, list[int]]] = [
        (pick(8, range(10, 20)), [pick(100, long)]),
        (pick(7, range(3, 10)), [pick(100, long)]),
        (pick(12, range(20, 40)), [pick(250, long)]),
        (pick(5, short), [1]),
        (pick(6, short), []),
        (0, [pick(30, range(21, 50)), pick(20, range(2, 20))]),
        (pick(3, range(2, 9)), [pick(40, range(30, 60)), pick(10, range(2, 12)), pick(25, range(12, 30))]),
    ]
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
    return clocks(Random(9), as_shown)


def launch_fresh(draw: Random) -> Iterable[Case]:
    return drawn(clocks(draw, anew(draw)))


def clocks(draw: Random, pick: Pick) -> Iterable[Case]:
    """Fresh cases run on another clock: every time in another unit, from another zero. All of them are exact."""
    crowd = sorted(draw.randrange(120) / 4 for _ in range(30))
    for name, shown, size, timeout, busy in (
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
        unit, zero = pick(1.0, (0.5, 1.5, 2.0, 2.5, 3.0)), pick(0.0, [half / 2 for half in range(1, 40)])
        arrivals = [arrival * unit + zero for arrival in shown]
        yield launch_case(name, arrivals, size, timeout * unit, busy * unit)


def launch_case(name: str, arrivals: list[float], size: int, timeout: float, busy: float) -> Case:
    run = simulate_dynamic([TraceRequest(a, 1, 1) for a in arrivals], one_speed(busy), size, timeout)
    starts, counts = np.unique(run.started, return_counts=True)
    return Case(name, (arrivals, size, timeout, busy), {"start": starts, "requests": counts})


def seat_cases() -> Iterable[Case]:
    return seatings(Random(6), as_shown)


def seat_fresh(draw: Random) -> Iterable[Case]:
    return drawn(seatings(draw, anew(draw)))


def seatings(draw: Random, pick: Pick) -> Iterable[Case]:
    """Fresh answers have other lengths, and the same one is the longest, the second longest, and so on."""
    for name, shown, size in (
        ("one batch", [4, 9, 2], 3),
        ("one batch, a seat empty", [4, 9], 3),
        ("three batches of two", [5, 1, 2, 8, 3, 3], 2),
        ("the last batch is not full", [6, 2, 7, 1, 4], 2),
        ("one seat", [3, 5, 2], 1),
        ("all alike", [4, 4, 4, 4], 2),
    ):
        lengths = sorted({*shown})
        others = dict(zip(lengths, sorted(different(between(pick), *lengths)), strict=True))
        yield seat_case(name, [others[length] for length in shown], size)
    yield seat_case("twenty requests", [draw.randrange(1, 60) for _ in range(20)], 8)


def seat_case(name: str, answers: list[int], size: int) -> Case:
    run = simulate_static([TraceRequest(0.0, 1, m) for m in answers], one_speed(1.0), size)
    return Case(name, (answers, size), {"waited": run.started, "for nobody": run.released - run.finished})


# ---- q5: right alone, wrong together ---------------------------------------------------------------------------------


def padded_cases() -> Iterable[Case]:
    return batches(Random(8), as_shown)


def padded_fresh(draw: Random) -> Iterable[Case]:
    return drawn(batches(draw, anew(draw)))


def batches(draw: Random, pick: Pick) -> Iterable[Case]:
    """Fresh rows are some tokens longer, with other ids: what was the pad's is so again."""
    for name, shown, shown_pad in (
        ("two rows", [[5, 6, 7], [8]], 0),
        ("nothing to pad", [[1, 2], [3, 4]], 0),
        ("one row", [[9, 8, 7]], 0),
        ("the pad's id is a real token", [[2, 2, 9, 2], [2, 7]], 2),
        ("four rows", [[draw.randrange(100) for _ in range(n)] for n in (3, 6, 1, 5)], pick(49, (100,))),
    ):
        more = pick(0, range(1, 4))
        ids = sorted({shown_pad, *(token for row in shown for token in row)})
        others = dict(zip(ids, different(between(pick), *ids, highest=400), strict=True))
        rows = [[others[token] for token in row[:1] * more + row] for row in shown]
        yield Case(name, (rows, others[shown_pad]), token_by_token(rows, others[shown_pad]))


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
