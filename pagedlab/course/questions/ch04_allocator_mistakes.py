"""Chapter 04: what allocators do that lose gaps, move too much, or give blocks back twice."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from pagedlab.course.drivers.ch04 import replay_blocks, replay_runs
from pagedlab.course.questions.mistakes import Mistake, any_of, or_first_difference
from pagedlab.course.questions.model import Case

# ---- q3: best fit ----------------------------------------------------------------------------------------------------


class LooseFit:
    """A best fit whose options are the ways to go wrong."""

    choose, merges, keeps_rest, checks, slides, counts_all, ties = "best", "both", True, True, "all", False, "low"

    def __init__(self, capacity: int) -> None:
        self.capacity, self.used = capacity, dict[int, int]()
        self.free = [(0, capacity)]

    def gaps(self) -> list[tuple[int, int]]:
        return sorted(gap for gap in self.free if gap[1])

    def take(self, size: int) -> int | None:
        fitting = [(start, free) for start, free in self.gaps() if free >= size]
        if not fitting:
            return None
        order = {"best": lambda gap: gap[1], "worst": lambda gap: -gap[1], "first": lambda gap: gap[0]}[self.choose]
        start, free = min(fitting if self.ties == "low" else fitting[::-1], key=order)
        self.free.remove((start, free))
        if self.keeps_rest:
            self.free.append((start + size, free - size))
        self.used[start] = size
        return start

    def give(self, start: int) -> None:
        if not self.checks and start not in self.used:
            return
        gap = (start, self.used.pop(start))
        for other in self.gaps():
            before, after = other[0] + other[1] == gap[0], other[0] == gap[0] + gap[1]
            if (before and self.merges in ("both", "before")) or (after and self.merges in ("both", "after")):
                self.free.remove(other)
                gap = (min(gap[0], other[0]), gap[1] + other[1])
        self.free.append(gap)

    def compact(self) -> dict[int, int]:
        moves, top, used = {}, 0, {}
        runs = sorted(self.used.items(), key=lambda run: -run[1] if self.slides == "sorted" else 0)
        for start, size in runs:
            moves[start], used[top], top = top, size, top + size
        if self.slides == "none":
            return {start: to for start, to in moves.items() if start != to}
        self.used, self.free = used, [(top, self.capacity - top)]
        if self.slides == "backwards":
            return {to: start for start, to in moves.items() if start != to}
        return {start: to for start, to in moves.items() if start != to or self.counts_all}


def run_mistake(says: str, **options: Any) -> Mistake:
    kind = type("Mistaken", (LooseFit,), options)
    return Mistake(says, lambda capacity, script: replay_runs(kind, capacity, script))


RUN_MISTAKES = (
    run_mistake(
        "That is first fit: the lowest gap. Best fit takes the smallest gap that is large enough.", choose="first"
    ),
    run_mistake(
        "That is worst fit: it takes the largest gap. Best fit takes the smallest one that is large enough.",
        choose="worst",
    ),
    run_mistake("Of gaps of one size take the lowest.", ties="high"),
    run_mistake(
        "Gaps do not merge: two that touch must become one, or large requests are refused for no reason.", merges="none"
    ),
    run_mistake("A gap merges only with the one before it: it must with the one after it, too.", merges="before"),
    run_mistake("A gap merges only with the one after it: it must with the one before it, too.", merges="after"),
    run_mistake("What is left of a gap stays free: a request gets its size, not all of the gap.", keeps_rest=False),
    run_mistake("Giving back what is not in use is an error: raise KeyError.", checks=False),
    run_mistake("After compaction the runs are at their new places, and all that is free is one gap.", slides="none"),
    run_mistake("Compaction keeps the order of the runs: sliding down needs no sorting by size.", slides="sorted"),
    run_mistake("A run that stays where it is has not moved: nothing is copied.", counts_all=True),
    run_mistake("`compact` returns old start -> new start, not the other way round.", slides="backwards"),
)

runs_explained = or_first_difference(any_of(*RUN_MISTAKES))


# ---- q5: blocks that come back ---------------------------------------------------------------------------------------


class LooseBlocks:
    """Blocks with a table a request; the options are the ways to go wrong, the first four are those of the question."""

    too_early, keeps, loses, forgives = False, False, False, False
    rounds_down, refuses_last, keeps_one_more, leaks, cuts_nothing, counts_refused, silent = (False,) * 7

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size, self.free_ids = block_size, list(range(num_blocks))
        self.tables, self.lengths = dict[str, list[int]](), dict[str, int]()

    def blocks_for(self, length: int) -> int:
        if self.rounds_down:
            return length // self.block_size
        return length // self.block_size + 1 if self.too_early else -(-length // self.block_size)

    def extend(self, name: str, num_tokens: int) -> bool:
        known = name in self.tables
        table, length = self.tables.get(name, []), self.lengths.get(name, 0) + num_tokens
        needed = self.blocks_for(length) - len(table)
        free = len(self.free_ids) - self.refuses_last
        if self.counts_refused or self.keeps or needed <= free:
            self.tables[name], self.lengths[name] = table, length
        if needed > 0 and needed > free:
            if self.keeps:
                table += [self.free_ids.pop(0) for _ in range(free)]
            elif self.counts_refused and not known:
                self.tables[name] = []
            return False
        table += [self.free_ids.pop(0) for _ in range(needed)]
        return True

    def shrink(self, name: str, num_tokens: int) -> None:
        self.lengths[name] -= num_tokens
        keep = self.lengths[name] // self.block_size if self.loses else -(-self.lengths[name] // self.block_size)
        keep += self.keeps_one_more
        table = self.tables[name]
        if not self.leaks:
            self.free_ids += table[keep:]
        if not self.cuts_nothing:
            self.tables[name] = table[:keep]

    def free(self, name: str) -> None:
        if self.forgives:
            self.free_ids += self.tables[name]
            self.lengths[name] = 0
        elif name in self.tables or not self.silent:
            self.free_ids += self.tables.pop(name)
            del self.lengths[name]


EARLY = "A block that is exactly full needs no other block after it: round n / block_size up, and no further."
KEPT = "A refused request must leave everything as it was: its length grew, or blocks stayed with it."
LOST = "A block that still holds one token may not be given back: `shrink` rounds up, too."
TWICE = "A request that was freed is gone: freed once more it must raise KeyError, not give the same blocks away again."
FAULTS = {"too_early": EARLY, "keeps": KEPT, "loses": LOST, "forgives": TWICE}


def block_mistake(says: str, **options: Any) -> Mistake:
    kind = type("Mistaken", (LooseBlocks,), options)
    return Mistake(says, lambda *arguments: replay_blocks(kind, *arguments))


BLOCK_MISTAKES = (
    block_mistake("A refused request has not grown: its length must stay as it was.", counts_refused=True),
    *(block_mistake(says, **{fault: True}) for fault, says in FAULTS.items()),
    block_mistake("Rounded down: the tokens of a partly filled block have no place.", rounds_down=True),
    block_mistake(
        "The last free block may be taken too: refuse only if more are needed than are free.", refuses_last=True
    ),
    block_mistake("`shrink` keeps a block that holds no token any more.", keeps_one_more=True),
    block_mistake("Blocks are lost: what a request gives up must be in free_ids again.", leaks=True),
    block_mistake(
        "A block is free and still in a table: cut the table where the blocks are given back.", cuts_nothing=True
    ),
    block_mistake("To free a request that is not there is a mistake of the caller: raise KeyError.", silent=True),
)
TWO_FAULTS = [block_mistake(f"{FAULTS[a]} {FAULTS[b]}", **{a: True, b: True}) for a, b in pairwise([*FAULTS, *FAULTS])]

one_block_mistake, two_block_mistakes = any_of(*BLOCK_MISTAKES), any_of(*TWO_FAULTS)


def known_block_mistakes(case: Case, got: Any) -> str:
    if says := one_block_mistake(case, got) or two_block_mistakes(case, got):
        return says
    if isinstance(got, list) and "two places" in str(got):
        return "A block is in two places: two requests will write over each other's tokens."
    return ""


blocks_explained = or_first_difference(known_block_mistakes)
