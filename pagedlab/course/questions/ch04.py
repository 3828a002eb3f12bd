"""Chapter 04: a server by hand, four ways to be empty, best fit with compaction, histories that fragment, blocks."""

from __future__ import annotations

import random
from collections.abc import Iterable
from math import ceil
from typing import Any

from pagedlab.basics.kv_size import layout_of
from pagedlab.course.drivers.ch01 import part
from pagedlab.course.drivers.ch04 import replay_blocks, replay_history, replay_runs
from pagedlab.course.questions.ch04_allocator_mistakes import blocks_explained, runs_explained
from pagedlab.course.questions.ch04_mistakes import CENSUS_MISTAKES, SERVER_MISTAKES, history_explained
from pagedlab.course.questions.mistakes import named, named_by_part
from pagedlab.course.questions.model import Case, Kind, Question
from pagedlab.simulate.allocators import BestFit, Buddy, PagedAllocator, make_allocator

# ---- q1: a server by hand --------------------------------------------------------------------------------------------

SHAPE = {"num_hidden_layers": 48, "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128}
SHAPE |= {"hidden_size": 5120}
MEMORY, WINDOW, LENGTH, BLOCK = 7 * 2**30, 4096, 900, 16


def server_parts() -> Iterable[Case]:
    bytes_per_token = layout_of(SHAPE).bytes_per_token()
    slots = MEMORY // bytes_per_token
    last_block = ceil(LENGTH / BLOCK) * BLOCK - LENGTH
    for name, value in {
        "bytes_per_token": bytes_per_token,
        "slots": slots,
        "reserve_max": slots // WINDOW,
        "first_fit": slots // LENGTH,
        "buddy": count_until_refused(Buddy(slots), LENGTH),
        "last_block": last_block,
        "compaction_ms": 1000 * 20_000 * bytes_per_token * 2 / 1e12,
    }.items():
        yield Case(name, (name,), value)


def count_until_refused(memory: Buddy, size: int) -> int:
    count = 0
    while memory.take(size):
        count += 1
    return count


# ---- q2: four ways to be empty ---------------------------------------------------------------------------------------


def census_cases() -> Iterable[Case]:
    draw = random.Random(4)
    requests = [
        ("reserve-max", 50, 50, 10),
        ("power-of-two", 100, 300, 20),
        ("power-of-two", 300, 256, 256),
        ("power-of-two", 1000, 1030, 7),
        ("oracle", 161, 338, 100),
        ("oracle", 500, 12, 0),
        ("paged", 30, 50, 0),
        ("paged", 30, 4, 1),
        ("paged", 40, 90, 8),
        ("paged", 21, 3, 3),
    ]
    for kind in ("reserve-max", "power-of-two", "oracle", "paged"):
        output = draw.randrange(40, 900)
        requests.append((kind, draw.randrange(20, 900), output, draw.randrange(1, output)))
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

Script = list[tuple[Any, ...]]


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
    holes: Script = [("take", size) for size in (3, 1, 4, 1, 2, 5)] + give(0, 4, 9)
    scripts: dict[str, tuple[int, Script]] = {
        "one after another": (10, [("take", 3), ("take", 4), ("take", 4), ("take", 3), ("take", 1)]),
        "the smallest gap that is large enough": (16, [*holes, ("take", 2), ("take", 3), ("take", 1)]),
        "two gaps of one size": (12, [("take", 2), ("take", 1), ("take", 2), ("take", 7), *give(0, 3), ("take", 2)]),
        "merge with the gap before": (12, [("take", 4)] * 3 + [*give(0, 4), ("take", 8)]),
        "merge with the gap after": (12, [("take", 4)] * 3 + [*give(4, 0), ("take", 8)]),
        "merge with both": (12, [("take", 4)] * 3 + [*give(0, 8, 4), ("take", 12)]),
        "given back twice": (12, [("take", 4), ("take", 4), *give(4, 4, 3), ("take", 8)]),
        "compact, and go on": (
            16,
            [("take", 3), ("take", 5), ("take", 4), *give(0), ("take", 7), ("compact",), ("take", 7), *give(5)],
        ),
        "compact twice": (10, [("take", 2)] * 4 + [*give(0, 4), ("compact",), ("compact",), ("give", 2)]),
    }
    scripts["thirty random actions"] = (40, random_script(40, 30, seed=6))
    for name, (capacity, script) in scripts.items():
        yield Case(name, (capacity, script), replay_runs(OurBestFit, capacity, script))


def give(*starts: int) -> Script:
    return [("give", start) for start in starts]


def random_script(capacity: int, length: int, seed: int) -> Script:
    """Runs are given back where best fit has put them."""
    draw, memory = random.Random(seed), BestFit(capacity)
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


# ---- q4: histories ---------------------------------------------------------------------------------------------------


def history_cases() -> Iterable[Case]:
    for name, first_fit, buddy in (
        ("only first fit refuses", "refuses", "places"),
        ("only buddy refuses", "places", "refuses"),
        ("both refuse", "refuses", "refuses"),
    ):
        yield Case(name, (name,), {"first fit": first_fit, "buddy": buddy, "enough is free": True})


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
    scripts: dict[str, tuple[int, int, Script]] = {
        "a block exactly full": (
            4,
            4,
            [("extend", "A", 4), ("extend", "A", 1), ("extend", "B", 8), ("extend", "A", 3)],
        ),
        "token by token": (3, 3, [("extend", "A", 1)] * 9 + [("extend", "A", 1)]),
        "refused, then less is asked": (3, 4, [("extend", "A", 5), ("extend", "B", 9), ("extend", "B", 3)]),
        "refused while it grows": (3, 4, [("extend", "A", 4), ("extend", "A", 12), ("extend", "A", 4)]),
        "a refused stranger is unknown": (2, 4, [("extend", "A", 5), ("extend", "B", 1), ("free", "B"), ("free", "A")]),
        "thrown away within a block": (4, 4, [("extend", "A", 7), ("shrink", "A", 2), ("extend", "B", 8)]),
        "thrown away across blocks": (4, 4, [("extend", "A", 14), ("shrink", "A", 7), ("extend", "B", 8)]),
        "thrown away to a full block": (4, 4, [("extend", "A", 10), ("shrink", "A", 2), ("extend", "A", 1)]),
        "freed twice": (4, 4, [("extend", "A", 6), ("free", "A"), ("free", "A"), ("extend", "B", 16)]),
        "ended, and begun again": (4, 4, [("extend", "A", 6), ("free", "A"), ("extend", "A", 3), ("free", "A")]),
    }
    scripts["a long day"] = (6, 4, random_day(6, 4, length=24, seed=9))
    for name, (num_blocks, size, script) in scripts.items():
        yield Case(name, (num_blocks, size, script), replay_blocks(OurBlocks, num_blocks, size, script))


def random_day(num_blocks: int, block_size: int, length: int, seed: int) -> Script:
    draw, blocks = random.Random(seed), OurBlocks(num_blocks, block_size)
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


QUESTIONS: tuple[Question, ...] = (
    Question(
        id="ch04.q1",
        title="A server by hand",
        kind=Kind.COMPUTE,
        difficulty=1,
        points=3,
        answer="server",
        cases=server_parts,
        hints=(
            "Begin with one token: a key and a value, for each layer and each KV head. All else is division.",
            "Requests come whole, so round down; blocks come whole too, so a request's last block is rounded up. "
            "A buddy block for 900 slots has a power of two of slots.",
            "bytes = 2 × layers × KV heads × head_dim × 2. A copy reads every byte and writes it again: count both.",
        ),
        explain=named_by_part(SERVER_MISTAKES),
        tolerance=1e-3,
        drive=part,
    ),
    Question(
        id="ch04.q2",
        title="Four ways to be empty",
        kind=Kind.IMPLEMENT,
        difficulty=2,
        points=3,
        answer="census",
        cases=census_cases,
        hints=(
            "Three numbers decide: how many slots the request asks for, how many it is really given, and how many "
            "tokens it will have at its end.",
            "tokens are there now; reserved = will be written later, in slots that it has; internal = asked for, and "
            "never written; rounding = given beyond what was asked.",
            "paged: it has ceil(now / 16) × 16 slots. Of those, min(end, slots) - now are reserved, and "
            "max(0, slots - end) are internal. The others: reserved is end - now.",
        ),
        explain=named(*CENSUS_MISTAKES),
    ),
    Question(
        id="ch04.q3",
        title="Best fit, and what compaction moves",
        kind=Kind.IMPLEMENT,
        difficulty=2,
        points=4,
        answer="BestFit",
        cases=run_cases,
        hints=(
            "Remember only what is in use: start -> size. All gaps follow from that, merged already.",
            "Sort the runs by address. The gaps lie between the end of one and the start of the next, and behind the "
            "last. Best fit is the smallest gap that is large enough; of equal ones, the lowest.",
            "take: min((size, start) of the gaps with size >= wanted). compact: go through the runs in order with a "
            "counter `top`; a run moves to top, then top grows by its size. Note the moves where start != top.",
        ),
        explain=runs_explained,
        drive=replay_runs,
    ),
    Question(
        id="ch04.q4",
        title="Three histories",
        kind=Kind.DIAGNOSE,
        difficulty=2,
        points=3,
        answer="histories",
        cases=history_cases,
        hints=(
            "All sizes are powers of two, so nothing is lost to rounding. Draw the eight slots twice, one row for each "
            "allocator, and follow the same history in both.",
            "First fit packs requests tightly, from address 0 on; a buddy puts a request of 2 at an even address. When "
            "is the tight place the worse one? And which two free neighbours does a buddy never merge?",
            "Only first fit: a 1 at address 0, a larger one behind it, then the 1 leaves. Only buddy: free the blocks "
            "at 2 and at 4, which touch and are no buddies. Both: leave free runs at either end of the memory.",
        ),
        explain=history_explained,
        drive=replay_history,
    ),
    Question(
        id="ch04.q5",
        title="Blocks that come back wrong",
        kind=Kind.DIAGNOSE,
        difficulty=3,
        points=4,
        answer="Paged",
        cases=block_cases,
        hints=(
            "Run it on paper, blocks of 4: a request of exactly 4 tokens; one that is refused; one that shrinks from "
            "7 to 5; one that is freed twice. Which blocks are where after each?",
            "How many blocks do n tokens need? Use the same rounding wherever a table grows or shrinks. Look whether "
            "enough blocks are free before you change anything. A request that is freed must be forgotten.",
            "needed = ceil(new length / block_size) - len(table), refuse if needed > free. shrink keeps ceil(new "
            "length / block_size) blocks. free uses tables.pop(name), which raises KeyError by itself.",
        ),
        explain=blocks_explained,
        drive=replay_blocks,
    ),
)
