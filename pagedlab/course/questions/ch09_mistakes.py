"""Chapter 09: what people get who count characters, forget the newcomer, or think that masked means free."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from pagedlab.course.drivers import ch09 as drivers
from pagedlab.course.drivers.ch09 import described
from pagedlab.course.drivers.records import parts
from pagedlab.course.questions.mistakes import Mistake


def through(drive: Any, *mistakes: Mistake) -> tuple[Mistake, ...]:
    """The same mistakes, with results in the form that the question's driver gives them."""
    return tuple(Mistake(mistake.says, partial(drive, mistake.do)) for mistake in mistakes)


# ---- q1: three prompts, one rectangle --------------------------------------------------------------------------------

Ids = Sequence[Sequence[int]]


def rectangle_mistake(says: str, count: Any = None, answer: Any = None) -> Mistake:
    """`count` replaces the lengths in tokens, `answer` what is made of the lengths."""

    def do(prompts: Sequence[str], ids: Ids) -> Any:
        lengths = [count(text) for text in prompts] if count else [len(tokens) for tokens in ids]
        cells = len(lengths) * max(lengths)
        return parts((answer or right)(lengths, cells - sum(lengths), cells), "tokens", "pads", "useful")

    def right(lengths: list[int], pads: int, cells: int) -> Any:
        return lengths, pads, sum(lengths) / cells

    return Mistake(says, do)


RECTANGLE_MISTAKES = (
    rectangle_mistake(
        "Those are characters. A token is what the tokenizer makes: count what encode() returns.", count=len
    ),
    rectangle_mistake(
        "Those are words. A token is what the tokenizer makes: count what encode() returns.",
        count=lambda text: len(text.split()),
    ),
    rectangle_mistake(
        "Masked is not free: pads are cells that are computed.", answer=lambda n, pads, cells: (n, pads, 1.0)
    ),
    rectangle_mistake(
        "That is the share of pads; asked is the useful share.", answer=lambda n, pads, cells: (n, pads, pads / cells)
    ),
    rectangle_mistake(
        "Asked is a share from 0 to 1, not per cent.", answer=lambda n, pads, cells: (n, pads, 100 * sum(n) / cells)
    ),
    rectangle_mistake(
        "Useful tokens are divided by all cells, not by the pads.",
        answer=lambda n, pads, cells: (n, pads, sum(n) / max(1, pads)),
    ),
    rectangle_mistake(
        "Those are the pads of each prompt: asked is their sum.",
        answer=lambda n, pads, cells: (n, [max(n) - x for x in n], sum(n) / cells),
    ),
    rectangle_mistake(
        "Those are all cells: pads are the cells without a real token.",
        answer=lambda n, pads, cells: (n, cells, sum(n) / cells),
    ),
    rectangle_mistake(
        "A rectangle is as wide as its longest prompt: nothing may be cut off.",
        answer=lambda n, pads, cells: (n, sum(max(0, min(n) - x) for x in n), 1.0),
    ),
    rectangle_mistake(
        "Only the shortest prompt is padded here: every row has to reach the full width.",
        answer=lambda n, pads, cells: (n, max(n) - min(n), sum(n) / (sum(n) + max(n) - min(n))),
    ),
    Mistake(
        "2, 5 and 10 are guesses. The tokenizer counts 1, 6 and 9, and other prompts have other lengths.",
        lambda prompts, ids: {"tokens": [2, 5, 10], "pads": 13, "useful": 17 / 30},
    ),
)

# ---- q2: who joins the rectangle -------------------------------------------------------------------------------------


def joining_mistake(says: str, do: Any) -> Mistake:
    """`do` gets decoding, newcomers, the width, and the right number of pads and of cells."""

    def wrong(decoding: int, newcomers: list[int]) -> Any:
        width = max(newcomers, default=1)
        cells = width * (decoding + len(newcomers))
        return do(decoding, newcomers, width, cells - decoding - sum(newcomers), cells)

    return Mistake(says, lambda *arguments: drivers.joining(wrong, *arguments))


JOINING_MISTAKES = (
    joining_mistake(
        "The rows are those that decode and those that join: 8 decoding and 1 joining are 9 rows, not 8.",
        lambda d, new, w, pads, cells: ((w - 1) * (d - 1), w * d),
    ),
    joining_mistake(
        "The rows are those that decode and those that join: 8 decoding and 1 joining are 9 rows, not 8.",
        lambda d, new, w, pads, cells: (w * d - d - sum(new), w * d),
    ),
    joining_mistake(
        "The newcomers have rows as well: they belong to the cells.",
        lambda d, new, w, pads, cells: (d * (w - 1), d * w),
    ),
    joining_mistake(
        "A shorter newcomer is padded, too.", lambda d, new, w, pads, cells: (d * (w - 1), w * (d + len(new)))
    ),
    joining_mistake(
        "A decoding request has one real token: it lacks width - 1 cells.",
        lambda d, new, w, pads, cells: (d * w + len(new) * w - sum(new), cells),
    ),
    joining_mistake(
        "The growth is not quadratic: each of the other rows lacks width - 1 tokens, once.",
        lambda d, new, w, pads, cells: ((w - 1) ** 2 * d, cells),
    ),
    joining_mistake(
        "The growth is not quadratic: each of the other rows lacks width - 1 tokens, once.",
        lambda d, new, w, pads, cells: (d * d * (w - 1), cells),
    ),
    joining_mistake(
        "The rectangle is as wide as the longest newcomer, not as all of them together.",
        lambda d, new, w, pads, cells: (
            (d + len(new)) * max(1, sum(new)) - d - sum(new),
            (d + len(new)) * max(1, sum(new)),
        ),
    ),
    joining_mistake(
        "Those are the useful cells: asked are the pads.", lambda d, new, w, pads, cells: (d + sum(new), cells)
    ),
    joining_mistake("Masked is not free: pads are cells that are computed.", lambda d, new, w, pads, cells: (0, cells)),
    joining_mistake(
        "Pads are cells of the rectangle: count them among all cells.",
        lambda d, new, w, pads, cells: (pads, d + sum(new)),
    ),
    joining_mistake("Asked are two numbers, not a share.", lambda d, new, w, pads, cells: pads / cells),
)

# ---- q3: when does a batch start? ------------------------------------------------------------------------------------


def launches(
    arrivals: Sequence[float],
    size: int,
    timeout: float,
    busy: float,
    when_full: bool = True,
    timed: bool = True,
    since_newest: bool = False,
    waits_for_device: bool = True,
    after_free: bool = False,
    closed_early: bool = False,
    no_limit: bool = False,
    excludes: bool = False,
    foresees: bool = False,
) -> list[tuple[float, int]]:
    """A dynamic batcher; every option is one way to go wrong."""
    batches: list[tuple[float, int]] = []
    free, first = 0.0, 0
    while first < len(arrivals):
        rest = arrivals[first:]
        start = (max(free, rest[0]) if after_free else rest[0]) + timeout
        if since_newest:
            start = next((a + timeout for a, b in pairwise(rest) if b > a + timeout), rest[-1] + timeout)
        if not timed:
            start = rest[-1] if len(rest) < size else rest[size - 1]
        if when_full and len(rest) >= size:
            start = min(start, rest[size - 1])
        if foresees and len(rest) < size:
            start = min(start, rest[-1])
        closes, start = start, max(start, free) if waits_for_device else start
        seen = closes if closed_early else start
        count = max(1, sum(a < seen if excludes else a <= seen for a in rest))
        batches.append((start, count if no_limit else min(count, size)))
        first += batches[-1][1]
        free = start + busy
    return batches


def launch_mistake(says: str, **options: Any) -> Mistake:
    return Mistake(says, lambda *arguments: launches(*arguments, **options))


def no_timeout(arrivals: Sequence[float], size: int, timeout: float, busy: float) -> list[tuple[float, int]]:
    return launches(arrivals, size, 0.0, busy)


LAUNCH_MISTAKES = through(
    drivers.launches,
    launch_mistake("A full batch does not wait for the time-out.", when_full=False),
    launch_mistake("That is static batching: it waits for a full batch, whatever the time-out says.", timed=False),
    launch_mistake("The time-out belongs to the oldest request: a newcomer does not start it anew.", since_newest=True),
    launch_mistake(
        "The device is busy: a batch cannot start before the one before it is done.", waits_for_device=False
    ),
    launch_mistake(
        (
            "The time-out counts from the arrival, while the device is busy too: it does not start when the device "
            "is free."
        ),
        after_free=True,
    ),
    launch_mistake("Who came while the device was still busy belongs to the batch as well.", closed_early=True),
    launch_mistake("A batch takes batch_size requests at most; the others stay in the queue.", no_limit=True),
    launch_mistake("Who comes at the very moment of the start belongs to the batch.", excludes=True),
    launch_mistake("The batcher does not know that nobody else will come: it waits for the time-out.", foresees=True),
    Mistake(
        "It starts with whoever is there: it must wait until the batch is full or the time-out is over.", no_timeout
    ),
    Mistake(
        "A pair for each batch: its start and its number of requests.", lambda *a: [start for start, _ in launches(*a)]
    ),
    Mistake(
        "A pair for each batch, not for each request.",
        lambda *a: [(start, count) for start, count in launches(*a) for _ in range(count)],
    ),
    Mistake(
        "The first number is when the batch starts, not when it is done.",
        lambda arrivals, size, timeout, busy: [(s + busy, n) for s, n in launches(arrivals, size, timeout, busy)],
    ),
)

# ---- q4: behind the longest ------------------------------------------------------------------------------------------

Waits = list[tuple[int, int]]


def static_seats(answers: Sequence[int], size: int, length: Any = max, idle: Any = None) -> Waits:
    """`length` says when a batch leaves, `idle` what is said of a seat, from its batch and its answer."""
    result: Waits = []
    start = 0
    for first in range(0, len(answers), size):
        batch = answers[first : first + size]
        result += [(start, idle(batch, m) if idle else length(batch) - m) for m in batch]
        start += length(batch)
    return result


def continuous_seats(answers: Sequence[int], size: int) -> Waits:
    free, result = [0] * size, []
    for answer in answers:
        seat = free.index(min(free))
        result.append((free[seat], 0))
        free[seat] += answer
    return result


def sorted_seats(answers: Sequence[int], size: int) -> Waits:
    order = sorted(range(len(answers)), key=lambda i: answers[i])
    found = dict(zip(order, static_seats([answers[i] for i in order], size), strict=True))
    return [found[i] for i in range(len(answers))]


def changed(change: Any) -> Any:
    """Of every pair (waited, idle), the answer and its index, make another pair."""
    return lambda answers, size: [
        change(waited, idle, answers[i], i) for i, (waited, idle) in enumerate(static_seats(answers, size))
    ]


def previous_batch(answers: Sequence[int], size: int) -> Waits:
    batches = [answers[first : first + size] for first in range(0, len(answers), size)]
    before = [0, *map(max, batches)]
    return [(before[i // size], idle) for i, (_, idle) in enumerate(static_seats(answers, size))]


SEAT_MISTAKES = through(
    drivers.seats,
    Mistake(
        "A row that is done is not free: it computes until its batch leaves.",
        changed(lambda waited, idle, m, i: (waited, 0)),
    ),
    Mistake(
        "That is continuous batching: a free seat is taken at once. A static batch leaves together.", continuous_seats
    ),
    Mistake(
        "Sorted by length: answers come in order of arrival, and nobody knows their lengths in advance.", sorted_seats
    ),
    Mistake("A batch leaves with its longest answer, not with its shortest.", lambda a, n: static_seats(a, n, min)),
    Mistake(
        "A batch leaves with its longest answer, not with its shortest.",
        lambda a, n: static_seats(a, n, min, lambda batch, m: 0),
    ),
    Mistake(
        "A seat is held until the longest answer of its own batch is complete, not of all.",
        lambda a, n: static_seats(a, n, max, lambda batch, m: max(a) - m),
    ),
    Mistake("All batches before it count, not only the last one.", previous_batch),
    Mistake(
        "Waiting is over when the batch starts: its own answer does not count.",
        changed(lambda waited, idle, answer, i: (waited + answer, idle)),
    ),
    Mistake(
        "The second number is what comes after the answer, not the answer itself.",
        changed(lambda waited, idle, answer, i: (waited, answer)),
    ),
    Mistake(
        "The second number is what comes after the answer: the answer itself does not count.",
        changed(lambda waited, idle, answer, i: (waited, idle + answer)),
    ),
    Mistake(
        "An answer of m tokens takes m steps: the first token comes from the step that computes the prompt.",
        lambda a, n: static_seats(a, n, lambda batch: max(batch) - 1, lambda batch, m: max(batch) - m),
    ),
    Mistake(
        "An answer of m tokens takes m steps: the first token comes from the step that computes the prompt.",
        lambda a, n: static_seats(a, n, lambda batch: max(batch) + 1, lambda batch, m: max(batch) - m),
    ),
    Mistake(
        "The last batch runs with empty seats: its requests are missing.",
        lambda a, n: static_seats(a[: len(a) // n * n], n),
    ),
    Mistake(
        "A batch leaves with its longest answer; the answers of a batch do not follow one another.",
        lambda a, n: static_seats(a, n, sum, lambda batch, m: max(batch) - m),
    ),
)

# ---- q5: right alone, wrong together ---------------------------------------------------------------------------------


def padded(
    rows: Sequence[Sequence[int]],
    pad: int,
    left: bool = True,
    restart: bool = True,
    clamp: bool = True,
    first: int = 0,
    causal: Any = torch.tril,
    sees_pads: bool = False,
    pads_see: str = "themselves",
    by_id: bool = False,
) -> dict[str, Any]:
    """Padded inputs; every option is one way to go wrong."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad)
    real = torch.zeros(len(rows), width, dtype=torch.bool)
    for number, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(len(row))
        ids[number, place] = torch.tensor(row)
        real[number, place] = True
    if by_id:
        real = ids != pad
    triangle = causal(torch.ones(width, width)).bool()
    keys = torch.ones_like(real) if sees_pads else real
    mask = triangle & keys[:, None, :]
    queries = real[:, :, None]
    itself = torch.eye(width).bool()
    others = {"themselves": itself, "nothing": itself & False, "everything": itself | True, "before": mask}[pads_see]
    mask = torch.where(queries, mask, others)
    counted = real.cumsum(dim=1) - 1 if restart else torch.arange(width).expand(len(rows), -1)
    positions = (counted.clamp(min=0) if clamp else counted) + first * real
    return described(ids, mask, positions)


def padded_mistake(says: str, **options: Any) -> Mistake:
    return Mistake(says, lambda rows, pad: padded(rows, pad, **options))


PADS_RIGHT = "Pads go to the left: the last column must hold the last token of every prompt."
POSITIONS = (
    "Positions count the pads: the first real token must be at position 0, or the prompt is not what it is alone."
)
EMPTY = "A pad that sees nothing has a softmax over nothing, which is NaN: let it see itself."
PADDED_MISTAKES = (
    padded_mistake(PADS_RIGHT, left=False, restart=False, pads_see="nothing"),
    padded_mistake(PADS_RIGHT, left=False),
    padded_mistake(PADS_RIGHT, left=False, restart=False),
    padded_mistake(POSITIONS, restart=False),
    padded_mistake(POSITIONS, restart=False, pads_see="nothing"),
    padded_mistake(EMPTY, pads_see="nothing"),
    padded_mistake("A pad sees itself alone: here it sees what is not its own.", pads_see="everything"),
    padded_mistake("A real token sees pads: it must see real tokens only.", sees_pads=True),
    padded_mistake("A real token sees pads: it must see real tokens only.", sees_pads=True, pads_see="before"),
    padded_mistake("The mask shows tokens that come later: a token sees what is up to itself.", causal=torch.triu),
    padded_mistake("The mask shows tokens that come later: a token sees what is up to itself.", causal=torch.ones_like),
    padded_mistake("Pads have position 0, not a negative one: no table of positions has a row for those.", clamp=False),
    padded_mistake("Positions count from 0.", first=1),
    padded_mistake("A real token may have the pad's id: go by lengths, not by ids.", by_id=True),
)
