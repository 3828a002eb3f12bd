"""Chapter 07, questions 2 and 3: the softmax of blocks, its parts merged, and what is forgotten in it."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from pagedlab.basics.attention import OnlineSoftmax
from pagedlab.course.comparison import matches
from pagedlab.course.drivers.ch07 import merge_all
from pagedlab.course.questions.mistakes import Mistake, named
from pagedlab.course.questions.model import Case
from pagedlab.course.questions.twins import Pick, anew, as_shown, drawn

Blocks = list[tuple[Tensor, Tensor]]
HIDDEN = -math.inf
OVERFLOWS = 700
"""exp of a score beyond it is infinite, or 0 below its negative."""

State = tuple[Tensor, Tensor, Tensor]
"""Maximum [heads], sum [heads], output [heads, dim]."""

# ---- q2: the softmax that forgets ------------------------------------------------------------------------------------


def softmax_cases() -> Iterable[Case]:
    for number, (name, dim, rows) in enumerate(score_rows(random.Random(3))):
        yield softmax_case(name, rows, dim, number + 1)


def softmax_fresh(draw: random.Random) -> Iterable[Case]:
    """Scores with the same order and the same gaps but for a factor, other values."""
    for name, dim, rows in score_rows(draw):
        base = max(score for row in rows for score in row)
        spread, shift = draw.uniform(0.8, 1.3), draw.uniform(-0.4, 0.4)
        moved = [[base + (score - base) * spread + shift for score in row] for row in rows]
        yield softmax_case(f"{name}, drawn", moved, dim, draw.randrange(2**31))


def score_rows(draw: random.Random) -> Iterable[tuple[str, int, list[list[float]]]]:
    """Width of the values, and the scores block by block."""
    yield "the largest score comes first", 1, [[2.0, 0.5], [1.0, 0.0]]
    yield "the scores rise", 2, [[0.0], [math.log(2)], [math.log(5)]]
    yield "the scores rise and fall", 1, [[1.0, 0.0], [3.0, 2.0], [0.0, 2.5]]
    yield "scores of 1,000", 1, [[998.0, 1000.0], [1001.0, 999.0]]
    yield "scores of -1,000", 1, [[-1001.0], [-1000.0, -999.0]]
    yield "the first block is hidden", 3, [[HIDDEN, HIDDEN], [0.5, 1.0], [2.0, HIDDEN]]
    yield "a block in the middle is hidden", 1, [[0.5, 1.0], [HIDDEN, HIDDEN], [2.0, 0.0]]
    yield "five random blocks", 4, [[draw.gauss(0, 3) for _ in range(n)] for n in (4, 4, 1, 4, 3)]


def softmax_case(name: str, rows: list[list[float]], dim: int, seed: int) -> Case:
    draw = torch.Generator().manual_seed(seed)
    values = [torch.randint(-9, 10, (len(row), dim), generator=draw).double() for row in rows]
    blocks = [(torch.tensor(row, dtype=torch.float64), value) for row, value in zip(rows, values, strict=True)]
    return Case(name, (blocks,), whole_softmax(blocks))


def whole_softmax(blocks: Blocks) -> Tensor:
    scores, values = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    return scores.softmax(0) @ values


def online(blocks: Blocks, sum_factor: Any = math.exp, output_factor: Any = math.exp, skip_low: bool = False) -> Tensor:
    """The online softmax; the factors are functions of (old maximum - new maximum)."""
    maximum, total, output = HIDDEN, torch.tensor(0.0), torch.zeros(blocks[0][1].shape[1], dtype=torch.float64)
    for scores, values in blocks:
        new = max(maximum, scores.max().item())
        if new == HIDDEN or (skip_low and scores.max().item() < maximum):
            continue
        weights = (scores - new).exp()
        change = maximum - new if maximum > HIDDEN else 0.0
        total = total * sum_factor(change) + weights.sum()
        output = output * output_factor(change) + weights @ values
        maximum = new
    return output / total


def forget(change: float) -> float:
    return 1.0


def turned(change: float) -> float:
    return math.exp(-change)


def mean_of_blocks(blocks: Blocks) -> Tensor:
    return torch.stack([whole_softmax([block]) for block in blocks if block[0].max() > HIDDEN]).mean(0)


SOFTMAX_MISTAKES = named(
    Mistake(
        "The output is never rescaled: what was summed so far is still relative to the old maximum.",
        lambda blocks: online(blocks, output_factor=forget),
    ),
    Mistake(
        "The sum is never rescaled: what was summed so far is still relative to the old maximum.",
        lambda blocks: online(blocks, sum_factor=forget),
    ),
    Mistake(
        "Nothing is rescaled: sum and output are still relative to the old maximum when a new one comes.",
        lambda blocks: online(blocks, forget, forget),
    ),
    Mistake(
        "The factor is upside down: a rising maximum makes what was summed so far smaller, by exp(old - new).",
        lambda blocks: online(blocks, turned, turned),
    ),
    Mistake(
        (
            "A mean of the blocks' results is an approximation: a block counts by its weights. Nothing is "
            "approximated here."
        ),
        mean_of_blocks,
    ),
    Mistake("That is the last block alone.", lambda blocks: whole_softmax(blocks[-1:])),
    Mistake(
        "Blocks with low scores may not be skipped: that is an approximation. Nothing is approximated here.",
        lambda blocks: online(blocks, skip_low=True),
    ),
    Mistake(
        "That is a sum for all blocks of separate softmaxes. Divide once, at the end, by the sum over all blocks.",
        lambda blocks: torch.stack([whole_softmax([block]) for block in blocks]).sum(0),
    ),
    absolute=True,
)


def softmax_explained(case: Case, got: Any) -> str:
    if not isinstance(got, list) or not all(isinstance(x, float) for x in got):
        return ""
    if not any(map(math.isnan, got)):
        return SOFTMAX_MISTAKES(case, got)
    largest = [scores.max().item() for scores, _ in case.arguments[0]]
    if HIDDEN in largest:
        return "NaN: in a block that is hidden completely, the maximum is -inf, and -inf - -inf is NaN."
    if max(largest) > OVERFLOWS:
        return "exp of a large score overflows: subtract the maximum so far before exp."
    if max(largest) < -OVERFLOWS:
        return "All weights became 0, and 0 / 0 is NaN: the maximum must start at -inf, not at 0."
    return ""


# ---- q3: merge -------------------------------------------------------------------------------------------------------


def state_of(scores: Tensor, values: Tensor) -> State:
    """scores [heads, n], values [heads, n, dim]"""
    rows = scores[:, None]  # one query
    state = OnlineSoftmax.empty(rows.shape[:-1], values.shape[-1], like=values).update(rows, values)
    return state.maximum[:, 0], state.denominator[:, 0], state.numerator[:, 0]


def merge_cases() -> Iterable[Case]:
    return merges(11, as_shown)


def merge_fresh(draw: random.Random) -> Iterable[Case]:
    return drawn(merges(draw.randrange(2**31), anew(draw)))


def merges(seed: int, pick: Pick) -> Iterable[Case]:
    """Scores and values are drawn by the seed; which part has the largest score is said here, head by head."""
    draw = torch.Generator().manual_seed(seed)
    few = range(2, 6)
    for name, lengths, top, level, hidden in (
        ("the right maximum is larger", (pick(2, few), pick(3, few)), (1,), 0.0, None),
        ("the left maximum is larger", (pick(4, few), pick(2, few)), (0,), 0.0, None),
        ("three heads, each with its own maximum", (pick(5, few), pick(5, few)), (0, 1, 0), 0.0, None),
        ("scores near 1,000", (3, 3), (1, 0), pick(1000.0, range(900, 1100)), None),
        ("the left one saw nothing in head 1", (pick(3, few), pick(4, few)), (0, 1), 0.0, 0),
        ("the right one saw nothing in head 1", (pick(3, few), pick(4, few)), (1, 0), 0.0, 1),
        ("four parts, merged one after another", (pick(6, few), 1, pick(4, few), 4), (3, 2, 1), 0.0, None),
    ):
        scores = torch.randn(len(top), sum(lengths), generator=draw, dtype=torch.float64) * 2 + level
        values = torch.randint(-9, 10, (len(top), sum(lengths), 2), generator=draw).double()
        parts = list(scores.split(lengths, dim=1))
        for head, part in enumerate(top):
            largest, own = scores[head].argmax(), parts[part][head].argmax() + sum(lengths[:part])
            scores[head, [largest, own]] = scores[head, [own, largest]]
        if hidden is not None:
            parts[hidden][1] = HIDDEN
        pairs = zip(parts, values.split(lengths, dim=1), strict=True)
        maximum, total, output = state_of(scores, values)
        yield Case(name, ([state_of(*pair) for pair in pairs],), {"maximum": maximum, "sum": total, "output": output})


def merged(
    left: State, right: State, factors: Any = None, on: tuple[bool, bool] = (True, True), divide: bool = False
) -> State:
    maximum = torch.maximum(left[0], right[0])
    mine, theirs = (factors or own_factors)(left[0], right[0], maximum)
    total = left[1] * (mine if on[0] else 1) + right[1] * (theirs if on[0] else 1)
    output = (
        left[2] * (mine if on[1] else torch.ones(1))[:, None] + right[2] * (theirs if on[1] else torch.ones(1))[:, None]
    )
    return maximum, total, output / total[:, None] if divide else output


def own_factors(left: Tensor, right: Tensor, maximum: Tensor) -> tuple[Tensor, Tensor]:
    return (left - maximum).exp(), (right - maximum).exp()


def merge_mistake(says: str, **options: Any) -> Mistake:
    return Mistake(says, lambda parts: merge_all(lambda left, right: merged(left, right, **options), parts))


def averaged(left: State, right: State) -> State:
    maximum, total, _ = merged(left, right)
    return maximum, total, (left[2] / left[1][:, None] + right[2] / right[1][:, None]) / 2


MERGE_MISTAKES = (
    merge_mistake(
        "Added as they are: each half is relative to its own maximum. Rescale both to the common one.",
        on=(False, False),
    ),
    merge_mistake("The sum is rescaled, the output is not.", on=(True, False)),
    merge_mistake("The output is rescaled, the sum is not.", on=(False, True)),
    merge_mistake(
        "The factor is upside down: rescaling to a larger maximum makes a half smaller.",
        factors=lambda left, right, maximum: ((maximum - left).exp(), (maximum - right).exp()),
    ),
    merge_mistake(
        "Only the left half is rescaled: in other heads it is the right half that has the smaller maximum.",
        factors=lambda left, right, maximum: ((left - right).exp(), torch.ones_like(left)),
    ),
    merge_mistake(
        "Only one half is rescaled: either can have the smaller maximum.",
        factors=lambda left, right, maximum: ((left - maximum).exp(), torch.ones_like(left)),
    ),
    merge_mistake(
        "Only one half is rescaled: either can have the smaller maximum.",
        factors=lambda left, right, maximum: (torch.ones_like(left), (right - maximum).exp()),
    ),
    merge_mistake(
        "The factors are swapped: each half is rescaled from its own maximum.",
        factors=lambda left, right, maximum: ((right - maximum).exp(), (left - maximum).exp()),
    ),
    merge_mistake("Do not divide yet: a third part may follow, and must be added to undivided sums.", divide=True),
    Mistake(
        "A mean of the two results is an approximation: each half counts by its sum of weights.",
        lambda parts: merge_all(averaged, parts),
    ),
)


known_merge = named(*MERGE_MISTAKES)


def merge_explained(case: Case, got: Any) -> str:
    if isinstance(got, str):
        return "`maximum` and `total` are [heads], `output` is [heads, dim]: give the factor a last dimension." * (
            "must match the size" in got or "broadcast" in got
        )
    known = known_merge(case, got)
    if known:
        return known
    if any(math.isnan(x) for x in floats([*got.values()])):
        if any(HIDDEN in maximum for maximum, _, _ in case.arguments[0]):
            return "NaN: where a half saw nothing, its maximum is -inf. Subtract the common maximum, which is finite."
        return ""
    right = case.expected["maximum"].tolist()
    if floats(got["maximum"]) and not matches(got["maximum"], right, 1e-6, False):
        return "The maximum of the whole is the larger of the two, head by head."
    return ""


def floats(got: Any) -> list[float]:
    """The numbers of nested lists; nothing else."""
    if isinstance(got, list):
        return [x for part in got for x in floats(part)]
    return [got] if isinstance(got, float) else []
