"""Chapter 04: an allocator replays a script; histories are replayed on chapter 04's first fit and buddy allocator."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

Operation = tuple[Any, ...]
"""("take", 5): the name of a method and its arguments."""

# ---- an allocator of runs --------------------------------------------------------------------------------------------


def replay_runs(allocator_class: Any, capacity: int, script: Sequence[Operation]) -> list[str]:
    """What each operation of the script gives, in words, and all gaps at the end."""
    memory = allocator_class(capacity)
    lines = [f"{name} {' '.join(map(str, numbers))}: {result_of(memory, name, numbers)}" for name, *numbers in script]
    return [*(line.replace(" :", ":") for line in lines), f"gaps: {gaps_in_words(memory.gaps())}"]


def result_of(memory: Any, name: str, numbers: Sequence[int]) -> str:
    try:
        result = getattr(memory, name)(*numbers)
    except KeyError:
        return "KeyError"
    if name == "compact":
        return ", ".join(f"{int(old)} to {int(new)}" for old, new in sorted(result.items())) or "nothing moved"
    if name == "give":
        return "done"
    return "refused" if result is None else f"at {int(result)}"


def gaps_in_words(gaps: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{int(size)} at {int(start)}" for start, size in gaps) or "none"


# ---- histories, on first fit and on a buddy allocator ----------------------------------------------------------------

CAPACITY = 8
MAX_ACTIONS = 7


class FirstFit:
    """Chapter 04's MyFirstFit."""

    def __init__(self) -> None:
        self.used: dict[int, int] = {}

    def gaps(self) -> list[tuple[int, int]]:
        edges = [(0, 0), *sorted(self.used.items()), (CAPACITY, 0)]
        found = [(start + size, after - start - size) for (start, size), (after, _) in pairwise(edges)]
        return [(start, size) for start, size in found if size]

    def take(self, size: int) -> int | None:
        for start, free in self.gaps():
            if free >= size:
                self.used[start] = size
                return start
        return None

    def give(self, start: int) -> None:
        del self.used[start]


class Buddy:
    """Chapter 04's MyBuddy."""

    def __init__(self) -> None:
        self.used: dict[int, int] = {}
        self.free: dict[int, set[int]] = {1 << k: set() for k in range(CAPACITY.bit_length())}
        self.free[CAPACITY].add(0)

    def take(self, size: int) -> int | None:
        fitting = [larger for larger in self.free if larger >= size and self.free[larger]]
        if not fitting:
            return None
        block = min(fitting)
        start = min(self.free[block])
        self.free[block].remove(start)
        while block > size:
            block //= 2
            self.free[block].add(start + block)
        self.used[start] = size
        return start

    def give(self, start: int) -> None:
        size = self.used.pop(start)
        while start ^ size in self.free[size]:
            self.free[size].remove(start ^ size)
            start, size = min(start, start ^ size), 2 * size
        self.free[size].add(start)


def replay_history(histories: Any, key: str) -> dict[str, Any]:
    """What the last `take` of a history meets on either allocator; or why it is no history."""
    history = [tuple(action) for action in histories[key]]
    if not history or history[-1][0] != "take":
        return {"no history": "the last action must be a take"}
    if len(history) > MAX_ACTIONS:
        return {"no history": f"{len(history)} actions"}
    memories: tuple[FirstFit, Buddy] = (FirstFit(), Buddy())
    sizes: list[int] = []
    starts: list[list[int]] = []  # of each take, on either memory
    for number, (action, value) in enumerate(history):
        if action not in ("take", "give"):
            return {"no history": f"no action {action}"}
        if action == "take" and value not in (1, 2, 4, 8):
            return {"no history": f"size {value}"}
        if action == "give":
            if not 0 <= value < len(sizes) or not sizes[value]:
                return {"no history": f"give {value}: that take is not in memory"}
            memories[0].give(starts[value][0])
            memories[1].give(starts[value][1])
            sizes[value] = 0
            continue
        free = CAPACITY - sum(sizes)
        places = [memories[0].take(value), memories[1].take(value)]
        if number == len(history) - 1:
            words = ["refuses" if place is None else "places" for place in places]
            return {"first fit": words[0], "buddy": words[1], "enough is free": free >= value}
        if None in places:
            return {"no history": f"action {number + 1} is refused already"}
        sizes.append(value)
        starts.append([place for place in places if place is not None])
    raise AssertionError("the last action is a take")


# ---- blocks ----------------------------------------------------------------------------------------------------------


def replay_blocks(paged_class: Any, num_blocks: int, block_size: int, script: Sequence[Operation]) -> list[str]:
    """After each operation: what it said, how many blocks are free, and whether one is in two places."""
    memory = paged_class(num_blocks, block_size)
    lines = []
    for name, owner, *numbers in script:
        try:
            said = getattr(memory, name)(owner, *numbers)
        except KeyError:
            said = "KeyError"
        said = "yes" if said is True else "no" if said is False else said or "done"
        lines.append(f"{name} {owner}: {said}, {len(memory.free_ids)} free{held_twice(memory)}")
    return lines


def held_twice(memory: Any) -> str:
    ids = [*memory.free_ids, *(block for table in memory.tables.values() for block in table)]
    return ", a block is in two places" if len(set(ids)) < len(ids) else ""
