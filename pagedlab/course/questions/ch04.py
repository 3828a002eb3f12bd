"""Chapter 04: a server by hand, four ways to be empty, best fit with compaction, histories that fragment, blocks."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil

from pagedlab.basics.kv_size import layout_of
from pagedlab.course.drivers.ch01 import part
from pagedlab.course.drivers.ch04 import replay_blocks, replay_history, replay_runs
from pagedlab.course.questions.ch04_allocator_mistakes import blocks_explained, runs_explained
from pagedlab.course.questions.ch04_cases import (
    block_cases,
    block_fresh,
    census_cases,
    census_fresh,
    run_cases,
    run_fresh,
)
from pagedlab.course.questions.ch04_mistakes import CENSUS_MISTAKES, SERVER_MISTAKES, history_explained
from pagedlab.course.questions.mistakes import any_of, named_by_part
from pagedlab.course.questions.model import Case, Kind, Question
from pagedlab.simulate.allocators import Buddy

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


# ---- q4: histories ---------------------------------------------------------------------------------------------------


def history_cases() -> Iterable[Case]:
    for name, first_fit, buddy in (
        ("only first fit refuses", "refuses", "places"),
        ("only buddy refuses", "places", "refuses"),
        ("both refuse", "refuses", "refuses"),
    ):
        yield Case(name, (name,), {"first fit": first_fit, "buddy": buddy, "enough is free": True})


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
        explain=any_of(*CENSUS_MISTAKES),
        fresh=census_fresh,
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
        fresh=run_fresh,
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
        is_value=True,
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
        fresh=block_fresh,
        drive=replay_blocks,
    ),
)
