"""Chapter 07, question 1: where a step writes, and what people get who misread a block table."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

from pagedlab.course.questions.mistakes import Mistake, named
from pagedlab.course.questions.model import Case
from pagedlab.course.questions.twins import Pick, anew, as_shown, drawn

Lists = Sequence[Sequence[int]]


def slots_of(table: Sequence[int], block_size: int) -> list[int]:
    return [block * block_size + slot for block in table for slot in range(block_size)]


def slot_cases() -> Iterable[Case]:
    return steps(random.Random(7), as_shown)


def slot_fresh(draw: random.Random) -> Iterable[Case]:
    return drawn(steps(draw, anew(draw)))


def steps(draw: random.Random, pick: Pick) -> Iterable[Case]:
    for name, shown_tables, size, computed, new in short_steps(pick):
        times = pick(1, range(2, 100))  # other ids, as unlike each other as before: 101 is a prime
        tables = [[block * times % 101 for block in table] for table in shown_tables]
        yield slot_case(name, tables, computed, new, size)
    for shown in (4, 8):
        size = pick(shown, (shown - 1, shown + 1))
        ids = draw.sample(range(100), 24)
        tables = [ids[8 * i : 8 * i + 8] for i in range(3)]
        computed = [draw.randrange(1, 4 * size) for _ in tables]
        new = [draw.randrange(1, size + 2) for _ in tables]
        yield slot_case(f"three chunks, blocks of {size}", tables, computed, new, size)


def short_steps(pick: Pick) -> Iterable[tuple[str, Lists, int, list[int], list[int]]]:
    """Tables (their ids may be others), block size, tokens computed, tokens to compute."""
    s = pick(4, (3, 5, 6, 7))
    yield "one prompt", [[9, 4, 6]], s, [0], [3 * s - 1]
    s = pick(4, (3, 5, 6, 7))
    yield "three decodes", [[8, 2], [5], [1, 7, 3]], s, [s + 1, s - 2, 2 * s + 1], [1, 1, 1]
    s = pick(16, (8, 12, 32))
    yield "a decode that opens a block", [[6, 1]], s, [s], [1]
    s = pick(4, (3, 5, 6, 7))
    yield "a chunk across three blocks", [[0, 9, 4, 7]], s, [s - 1], [s + 3]
    s = pick(4, (5, 6, 7))
    name = "a decode, a prompt, and one with nothing to do"
    yield name, [[3, 12], [5, 8, 2], [11]], s, [s, 0, s - 1], [1, s + 2, 0]
    yield "blocks of one slot", [[4, 2, 9, 1]], 1, [1], [3]


def slot_case(name: str, tables: Lists, computed: list[int], new: list[int], size: int) -> Case:
    rows = zip(tables, computed, new, strict=True)
    expected = [slot for table, start, n in rows for slot in slots_of(table, size)[start : start + n]]
    return Case(name, (tables, computed, new, size), expected)


def slots_by(
    tables: Lists, computed: Sequence[int], new: Sequence[int], size: int, find: Any, ends: bool = False, shift: int = 0
) -> list[list[int]]:
    return [
        [find(table, position + shift, size) for position in range(start, n if ends else start + n)]
        for table, start, n in zip(tables, computed, new, strict=True)
    ]


def rule(table: Sequence[int], position: int, size: int) -> int:
    return table[position // size] * size + position % size


def flat(rows: list[list[int]]) -> list[int]:
    return [slot for row in rows for slot in row]


def slot_mistake(says: str, find: Any = rule, **options: Any) -> Mistake:
    return Mistake(
        says, lambda tables, computed, new, size: flat(slots_by(tables, computed, new, size, find, **options))
    )


SLOT_MISTAKES = (
    slot_mistake(
        "The blocks of a sequence lie in no order: ask the table which physical block a logical block is.",
        lambda table, position, size: position,
    ),
    slot_mistake(
        "A sorted table is another table: its order says which block comes first.",
        lambda t, p, s: rule(sorted(t), p, s),
    ),
    slot_mistake(
        "Tokens of the next block are not behind this one: look up every block, not only the first.",
        lambda table, position, size: table[0] * size + position,
    ),
    slot_mistake("A physical block begins at slot block × block_size.", lambda t, p, s: t[p // s] + p % s),
    slot_mistake("That is the slot within the block. Where in the pool is the block?", lambda t, p, s: p % s),
    slot_mistake("That is the block's first slot. Where in the block is the token?", lambda t, p, s: t[p // s] * s),
    slot_mistake(
        "That overwrites the token that was computed last: the first new one has position `computed`.", shift=-1
    ),
    slot_mistake("Positions count from 0: the first new token has position `computed`.", shift=1),
    slot_mistake("`new` is how many tokens come, not the position where they end.", ends=True),
    Mistake(
        "That overwrites the start of the request: new tokens come after those that are computed.",
        lambda tables, computed, new, size: flat(slots_by(tables, [0] * len(new), new, size, rule)),
    ),
    Mistake(
        "Each request has a block table of its own.",
        lambda tables, computed, new, size: flat(slots_by([tables[0]] * len(new), computed, new, size, rule)),
    ),
    Mistake(
        "One flat list is asked, not a list for each request.",
        lambda tables, computed, new, size: slots_by(tables, computed, new, size, rule),
    ),
)
known_slots = named(*SLOT_MISTAKES)


def slots_explained(case: Case, got: Any) -> str:
    """Nothing of an empty list or an exception: too many mistakes end in those."""
    return known_slots(case, got) if isinstance(got, list) and got else ""
