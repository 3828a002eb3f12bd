"""Chapter 04: requests whose slots are counted, scripts for best fit, and scripts for blocks: as shown, and drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from random import Random
from typing import Any

from pagedlab.course.drivers.ch04 import replay_blocks, replay_runs
from pagedlab.course.questions.model import Case
from pagedlab.course.questions.numbers import Number, between
from pagedlab.course.questions.twins import anew, as_shown, drawn
from pagedlab.simulate.allocators import BestFit, PagedAllocator, make_allocator

Script = list[tuple[Any, ...]]

# ---- q2: four ways to be empty ---------------------------------------------------------------------------------------

Request = tuple[str, int, int, int]
"""Kind, prompt, output, and how much of the output is written."""


def census_cases() -> Iterable[Case]:
    return censuses(census_requests(between(as_shown), Random(4)))


def census_fresh(draw: Random) -> Iterable[Case]:
    return censuses(census_requests(between(anew(draw)), draw))


def census_requests(number: Number, draw: Random) -> Iterable[Request]:
    """The window is 2,048, a block 16 slots."""
    yield "reserve-max", number(50, 20, 900), number(50, 30, 900), number(10, 1, 29)
    yield "power-of-two", number(100, 20, 900), number(300, 270, 500), number(20, 1, 200)
    power = 2 ** number(8, 5, 9)
    yield "power-of-two", number(300, 20, 900), power, power
    prompt = number(1000, 600, 1000)
    yield "power-of-two", prompt, number(1030, 1025, 2048 - prompt), number(7, 1, 600)
    yield "oracle", number(161, 100, 900), number(338, 210, 900), number(100, 1, 200)
    output = number(12, 1, 60)
    yield "oracle", 2 ** number(9, 6, 10) - output, output, 0
    yield "paged", 16 * number(1, 1, 20) + number(14, 1, 14), number(50, 20, 200), 0
    yield "paged", 16 * number(1, 1, 30) + number(14, 12, 14), number(4, 5, 9), 1
    written = number(8, 1, 15)
    yield "paged", 16 * number(3, 2, 30) - written, written + number(82, 20, 300), written
    output = number(3, 1, 16)
    yield "paged", 16 * number(1, 1, 30) + number(8, 1, 15) - output, output, output
    for kind in ("reserve-max", "power-of-two", "oracle", "paged"):
        output = draw.randrange(40, 900)
        yield kind, draw.randrange(20, 900), output, draw.randrange(1, output)


def censuses(requests: Iterable[Request]) -> Iterable[Case]:
    for kind, prompt, output, written in requests:
        memory = make_allocator(kind, 4096)
        assert memory.allocate("one", prompt, output) and memory.extend("one", written)
        counts = memory.counts()
        expected = {
            "tokens": counts.token,
            "reserved": counts.reserved,
            "internal": counts.internal,
            "rounding": counts.external,
        }
        yield Case(f"{kind}: {prompt} + {written} of {output}", (kind, prompt, output, written), expected)


# ---- q3: best fit ----------------------------------------------------------------------------------------------------


class OurBestFit:
    """pagedlab's BestFit with the methods of the question."""

    def __init__(self, capacity: int) -> None:
        self.memory = BestFit(capacity)

    def take(self, size: int) -> int | None:
        run = self.memory.take(size)
        return run.start if run else None

    def give(self, start: int) -> None:
        if start not in self.memory.used:
            raise KeyError(start)
        self.memory.give(start)

    def gaps(self) -> list[tuple[int, int]]:
        return [(start, size) for start, size in self.memory.free_runs()]

    def compact(self) -> dict[int, int]:
        return self.memory.compact()


def run_cases() -> Iterable[Case]:
    return replayed_runs(run_scripts(between(as_shown), Random(6)))


def run_fresh(draw: Random) -> Iterable[Case]:
    return drawn(replayed_runs(run_scripts(between(anew(draw)), draw)))


def replayed_runs(scripts: Mapping[str, tuple[int, Script]]) -> Iterable[Case]:
    for name, (capacity, script) in scripts.items():
        yield Case(name, (capacity, script), replay_runs(OurBestFit, capacity, script))


def run_scripts(number: Number, draw: Random) -> dict[str, tuple[int, Script]]:
    """Each a capacity and what is done."""
    scripts: dict[str, tuple[int, Script]] = {}
    a, b, c = number(3, 2, 9), number(4, 2, 9), number(3, 2, 9)
    scripts["one after another"] = (a + b + c, take(a, b, c + 1, c, 1))
    small, wall = number(2, 2, 5), number(1, 1, 3)
    middle = small + number(1, 1, 3)
    large = middle + number(1, 1, 3)
    rest = number(5, 1, 6)
    holes = take(middle, wall, large, wall, small, rest) + give(0, middle + wall, middle + large + 2 * wall)
    capacity = small + middle + large + 2 * wall + rest
    scripts["the smallest gap that is large enough"] = (capacity, [*holes, *take(small, middle, 1)])
    a, wall, rest = number(2, 2, 6), number(1, 1, 3), number(7, 2, 9)
    script = [*take(a, wall, a, rest), *give(0, a + wall), *take(a)]
    scripts["two gaps of one size"] = (2 * a + wall + rest, script)
    a, b, c = number(4, 2, 7), number(4, 2, 7), number(4, 2, 7)
    scripts["merge with the gap before"] = (a + b + c, [*take(a, b, c), *give(0, a), *take(a + b)])
    a, b, c = number(4, 2, 7), number(4, 2, 7), number(4, 2, 7)
    scripts["merge with the gap after"] = (a + b + c, [*take(a, b, c), *give(a, 0), *take(a + b)])
    a, b, c = number(4, 2, 7), number(4, 2, 7), number(4, 2, 7)
    scripts["merge with both"] = (a + b + c, [*take(a, b, c), *give(0, a + b, a), *take(a + b + c)])
    a, b, rest = number(4, 2, 8), number(4, 2, 8), number(4, 2, 8)
    script = [*take(a, b), *give(a, a, number(3, 1, a - 1)), *take(b + rest)]
    scripts["given back twice"] = (a + b + rest, script)
    a, b, c, rest = number(3, 2, 5), number(5, 5, 8), number(4, 2, 4), number(4, 2, 6)
    script = [*take(a, b, c), *give(0), *take(a + rest), ("compact",), *take(a + rest), *give(b)]
    scripts["compact, and go on"] = (a + b + c + rest, script)
    a, rest = number(2, 2, 5), number(2, 1, 6)
    script = [*take(a, a, a, a), *give(0, 2 * a), ("compact",), ("compact",), *give(a)]
    scripts["compact twice"] = (4 * a + rest, script)
    capacity = number(40, 36, 60)
    scripts["thirty random actions"] = (capacity, random_script(capacity, 30, draw))
    return scripts


def take(*sizes: int) -> Script:
    return [("take", size) for size in sizes]


def give(*starts: int) -> Script:
    return [("give", start) for start in starts]


def random_script(capacity: int, length: int, draw: Random) -> Script:
    """Runs are given back where best fit has put them."""
    memory = BestFit(capacity)
    script: Script = []
    for number in range(length):
        if number % 15 == 14:
            script.append(("compact",))
            memory.compact()
        elif memory.used and draw.random() < 0.5:
            start = draw.choice(sorted(memory.used))
            memory.give(start)
            script.append(("give", start))
        else:
            size = draw.randrange(1, 13)
            memory.take(size)
            script.append(("take", size))
    return script


# ---- q5: blocks that come back ---------------------------------------------------------------------------------------


class OurBlocks:
    """The engine's way with blocks, from pagedlab's PagedAllocator; what is thrown away is a shorter request anew."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.size = block_size
        self.memory = PagedAllocator(num_blocks * block_size, block_size, watermark=0.0)

    @property
    def tables(self) -> dict[Any, list[int]]:
        return self.memory.tables

    @property
    def free_ids(self) -> list[int]:
        return list(self.memory.free_queue)

    def extend(self, name: str, num_tokens: int) -> bool:
        if name in self.memory:
            fits = self.memory.num_tokens(name) + num_tokens <= self.memory.capacity
            return fits and self.memory.extend(name, num_tokens)
        if not self.memory.allocate(name, 1, output_tokens=self.memory.capacity - 1):
            return False
        if not self.extend(name, num_tokens - 1):
            self.memory.free(name)
            return False
        return True

    def shrink(self, name: str, num_tokens: int) -> None:
        left = self.memory.num_tokens(name) - num_tokens
        self.memory.free(name)
        assert self.extend(name, left)

    def free(self, name: str) -> None:
        if name not in self.memory:
            raise KeyError(name)
        self.memory.free(name)


def block_cases() -> Iterable[Case]:
    return replayed_blocks(block_scripts(between(as_shown), Random(9)))


def block_fresh(draw: Random) -> Iterable[Case]:
    return drawn(replayed_blocks(block_scripts(between(anew(draw)), draw)))


def replayed_blocks(scripts: Mapping[str, tuple[int, int, Script]]) -> Iterable[Case]:
    for name, (num_blocks, size, script) in scripts.items():
        yield Case(name, (num_blocks, size, script), replay_blocks(OurBlocks, num_blocks, size, script))


def block_scripts(number: Number, draw: Random) -> dict[str, tuple[int, int, Script]]:
    """Each a number of blocks, their size, and what is done."""
    scripts: dict[str, tuple[int, int, Script]] = {}
    size, more = number(4, 2, 9), number(2, 1, 5)
    script = [extend("A", size), extend("A", 1), extend("B", more * size), extend("A", size - 1)]
    scripts["a block exactly full"] = (2 + more, size, script)
    blocks, size = number(3, 2, 5), number(3, 2, 4)
    scripts["token by token"] = (blocks, size, [extend("A", 1)] * (blocks * size + 1))
    size, left = number(4, 3, 9), number(1, 1, 4)
    script = [extend("A", size + number(1, 1, size - 1)), extend("B", left * size + number(5, 1, 2 * size))]
    script += [extend("B", left * size - number(1, 1, size - 1))]
    scripts["refused, then less is asked"] = (2 + left, size, script)
    blocks, size = number(3, 3, 7), number(4, 2, 9)
    script = [extend("A", size), extend("A", blocks * size), extend("A", (blocks - 2) * size)]
    scripts["refused while it grows"] = (blocks, size, script)
    blocks, size = number(2, 2, 6), number(4, 2, 9)
    script = [extend("A", (blocks - 1) * size + number(1, 1, size - 1)), extend("B", number(1, 1, size))]
    scripts["a refused stranger is unknown"] = (blocks, size, [*script, ("free", "B"), ("free", "A")])
    size, more = number(4, 3, 9), number(2, 1, 5)
    last = number(3, 2, size - 1)
    script = [extend("A", size + last), ("shrink", "A", number(2, 1, last - 1)), extend("B", more * size)]
    scripts["thrown away within a block"] = (2 + more, size, script)
    blocks, size = number(4, 4, 8), number(4, 2, 9)
    last, left = number(2, 1, size - 1), number(3, 1, size - 1)
    script = [extend("A", 3 * size + last), ("shrink", "A", 2 * size + last - left)]
    scripts["thrown away across blocks"] = (blocks, size, [*script, extend("B", (blocks - 2) * size)])
    blocks, size = number(4, 4, 8), number(4, 2, 9)
    last = number(2, 1, size - 1)
    script = [extend("A", 2 * size + last), ("shrink", "A", last), extend("A", 1)]
    scripts["thrown away to a full block"] = (blocks, size, script)
    blocks, size = number(4, 2, 8), number(4, 2, 9)
    script = [extend("A", size + number(2, 1, size - 1)), ("free", "A"), ("free", "A"), extend("B", blocks * size)]
    scripts["freed twice"] = (blocks, size, script)
    blocks, size = number(4, 3, 8), number(4, 2, 9)
    script = [extend("A", size + number(2, 1, size - 1)), ("free", "A"), extend("A", number(3, 1, size - 1))]
    scripts["ended, and begun again"] = (blocks, size, [*script, ("free", "A")])
    blocks, size = number(6, 5, 8), number(4, 3, 5)
    scripts["a long day"] = (blocks, size, random_day(blocks, size, 24, draw))
    return scripts


def extend(name: str, num_tokens: int) -> tuple[Any, ...]:
    return "extend", name, num_tokens


def random_day(num_blocks: int, block_size: int, length: int, draw: Random) -> Script:
    blocks = OurBlocks(num_blocks, block_size)
    script: Script = []
    for _ in range(length):
        name = draw.choice("ABC")
        tokens = blocks.memory.num_tokens(name) if name in blocks.memory else 0
        kind = draw.choice(["extend", "extend", "shrink", "free"])
        if kind == "shrink" and tokens > 1:
            script.append(("shrink", name, draw.randrange(1, min(tokens, 6))))
            blocks.shrink(*script[-1][1:])
        elif kind == "free" and tokens:
            script.append(("free", name))
            blocks.free(name)
        else:
            script.append(("extend", name, draw.randrange(1, 7)))
            blocks.extend(*script[-1][1:])
    return script
