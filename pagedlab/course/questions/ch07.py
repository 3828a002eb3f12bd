"""Chapter 07: where a step writes, softmax in pieces, prefixes found by whole blocks, copies before writes."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from pagedlab.basics.attention import OnlineSoftmax
from pagedlab.course.drivers.ch07 import NUM_BLOCKS, merge_all, replay_prefixes, replay_tables, sharing
from pagedlab.course.questions.ch07_mistakes import (
    HIDDEN,
    PREFIX_MISTAKES,
    SHARING_MISTAKES,
    SLOT_MISTAKES,
    Blocks,
    State,
    merge_explained,
    softmax_explained,
    tables_explained,
    whole_softmax,
)
from pagedlab.course.questions.mistakes import named
from pagedlab.course.questions.model import Case, Kind, Question
from pagedlab.simulate.kv_memory import KVMemory
from pagedlab.simulate.sharing import Family

# ---- q1: where a step writes -----------------------------------------------------------------------------------------


def slots_of(table: Sequence[int], block_size: int) -> list[int]:
    return [block * block_size + slot for block in table for slot in range(block_size)]


def slot_cases() -> Iterable[Case]:
    draw = random.Random(7)
    steps = {
        "one prompt": ([[9, 4, 6]], [0], [11], 4),
        "three decodes": ([[8, 2], [5], [1, 7, 3]], [5, 2, 9], [1, 1, 1], 4),
        "a decode that opens a block": ([[6, 1]], [16], [1], 16),
        "a chunk across three blocks": ([[0, 9, 4, 7]], [3], [7], 4),
        "a decode, a prompt, and one with nothing to do": ([[3, 12], [5, 8, 2], [11]], [4, 0, 3], [1, 6, 0], 4),
        "blocks of one slot": ([[4, 2, 9, 1]], [1], [3], 1),
    }
    for size in (4, 8):
        ids = draw.sample(range(100), 24)
        tables = [ids[8 * i : 8 * i + 8] for i in range(3)]
        computed = [draw.randrange(1, 4 * size) for _ in tables]
        new = [draw.randrange(1, size + 2) for _ in tables]
        steps[f"three chunks, blocks of {size}"] = (tables, computed, new, size)
    for name, (tables, computed, new, size) in steps.items():
        rows = zip(tables, computed, new, strict=True)
        expected = [slot for table, start, n in rows for slot in slots_of(table, size)[start : start + n]]
        yield Case(name, (tables, computed, new, size), expected)


# ---- q2: the softmax that forgets ------------------------------------------------------------------------------------


def blocks_of(*scores: Sequence[float], dim: int = 1, seed: int = 0) -> Blocks:
    values = torch.Generator().manual_seed(seed)
    draw = [torch.randint(-9, 10, (len(row), dim), generator=values).double() for row in scores]
    return [(torch.tensor(row, dtype=torch.float64), value) for row, value in zip(scores, draw, strict=True)]


def softmax_cases() -> Iterable[Case]:
    draw = random.Random(3)
    rows = [[draw.gauss(0, 3) for _ in range(n)] for n in (4, 4, 1, 4, 3)]
    for name, blocks in {
        "the largest score comes first": blocks_of([2.0, 0.5], [1.0, 0.0], seed=1),
        "the scores rise": blocks_of([0.0], [math.log(2)], [math.log(5)], dim=2, seed=2),
        "the scores rise and fall": blocks_of([1.0, 0.0], [3.0, 2.0], [0.0, 2.5], seed=3),
        "scores of 1,000": blocks_of([998.0, 1000.0], [1001.0, 999.0], seed=4),
        "scores of -1,000": blocks_of([-1001.0], [-1000.0, -999.0], seed=5),
        "the first block is hidden": blocks_of([HIDDEN, HIDDEN], [0.5, 1.0], [2.0, HIDDEN], dim=3, seed=6),
        "a block in the middle is hidden": blocks_of([0.5, 1.0], [HIDDEN, HIDDEN], [2.0, 0.0], seed=7),
        "five random blocks": blocks_of(*rows, dim=4, seed=8),
    }.items():
        yield Case(name, (blocks,), whole_softmax(blocks))


# ---- q3: merge -------------------------------------------------------------------------------------------------------


def state_of(scores: Tensor, values: Tensor) -> State:
    """scores [heads, n], values [heads, n, dim]"""
    rows = scores[:, None]  # one query
    state = OnlineSoftmax.empty(rows.shape[:-1], values.shape[-1], like=values).update(rows, values)
    return state.maximum[:, 0], state.denominator[:, 0], state.numerator[:, 0]


def merge_cases() -> Iterable[Case]:
    draw = torch.Generator().manual_seed(11)
    for name, heads, lengths, shift, hidden in (
        ("the right maximum is larger", 1, (2, 3), 5.0, None),
        ("the left maximum is larger", 1, (4, 2), -5.0, None),
        ("three heads, each with its own maximum", 3, (5, 5), 0.0, None),
        ("scores near 1,000", 2, (3, 3), 1000.0, None),
        ("the left one saw nothing in head 1", 2, (3, 4), 0.0, 0),
        ("the right one saw nothing in head 1", 2, (3, 4), 0.0, 1),
        ("four parts, merged one after another", 3, (6, 1, 4, 4), 1.0, None),
    ):
        scores = torch.randn(heads, sum(lengths), generator=draw, dtype=torch.float64) * 2
        values = torch.randint(-9, 10, (heads, sum(lengths), 2), generator=draw).double()
        scores += shift * torch.arange(sum(lengths)) / sum(lengths)
        parts = list(scores.split(lengths, dim=1))
        if hidden is not None:
            parts[hidden][1] = HIDDEN
        pairs = zip(parts, values.split(lengths, dim=1), strict=True)
        maximum, total, output = state_of(torch.cat(parts, dim=1), values)
        yield Case(name, ([state_of(*pair) for pair in pairs],), {"maximum": maximum, "sum": total, "output": output})


# ---- q4: a cache of prefixes -----------------------------------------------------------------------------------------

Script = list[tuple[Any, ...]]


def engine_finds(block_size: int, script: Script) -> list[int]:
    """The engine's block manager: a prompt is remembered when it has been computed."""
    memory, found = KVMemory(2000, block_size), []
    for name, tokens in script:
        hits = memory.create("one", tokens)
        if name == "find":
            found.append(hits)
        else:
            assert memory.allocate("one", len(tokens))
            memory.write("one", hits, tokens[hits:])
        memory.free("one")
    return found


def prefix_cases() -> Iterable[Case]:
    draw = random.Random(5)
    text = [draw.randrange(100, 900) for _ in range(40)]
    scripts: dict[str, tuple[int, Script]] = {
        "nothing remembered yet": (4, [("find", text[:9])]),
        "one token more than two blocks": (4, [("remember", text[:10]), ("find", text[:9])]),
        "exactly two blocks": (4, [("remember", text[:8]), ("find", text[:8])]),
        "one block, sent again": (8, [("remember", text[:8]), ("find", text[:8]), ("find", text[:1])]),
        "in common: one block and a half": (8, [("remember", text[:30]), ("find", text[:12] + [1] * 9)]),
        "the same second block after another first": (
            4,
            [("remember", text[:12]), ("find", [1, 2, 3, 4, *text[4:13]]), ("find", text[4:13])],
        ),
        "a hole in the middle": (4, [("remember", text[:16]), ("find", [*text[:4], 0, *text[5:17]])]),
        "the last block was only partly full": (4, [("remember", text[:6]), ("find", text[:6]), ("find", text[:12])]),
        "two prompts remembered": (
            4,
            [("remember", text[:13]), ("remember", [7] * 9), ("find", text[:13]), ("find", [7] * 13)],
        ),
        "to find is not to remember": (4, [("find", text[:10]), ("find", text[:10])]),
    }
    random_script: Script = []
    for _ in range(40):
        name = draw.choice(["remember", "find"])
        random_script.append((name, [draw.randrange(2) for _ in range(draw.randrange(1, 12))]))
    scripts["forty prompts of two words"] = (2, random_script)
    for name, (size, script) in scripts.items():
        yield Case(name, (size, script), engine_finds(size, script))


# ---- q5: copy before the write ---------------------------------------------------------------------------------------


def engine_tables(block_size: int, script: Script, num_blocks: int = NUM_BLOCKS) -> dict[str, Any]:
    memory = KVMemory(num_blocks + 1, block_size, enable_prefix_caching=False)
    words: list[str] = []
    for name, *arguments in script:
        owner = arguments[0]
        if name == "append":
            length = memory.requests[owner].num_computed_tokens
            assert memory.allocate(owner, length + 1)
            words.append(f"{owner}{length}")
            memory.write(owner, length, [len(words) - 1])
        else:
            method: Any = {"create": memory.create, "fork": memory.fork, "end": memory.free}[name]
            method(*arguments)
    memory.check_integrity()
    texts = {owner: [words[token] for token in memory.gather(owner)] for owner in memory.requests}
    return {"copies": memory.num_copies, "free": memory.num_free, "read back": texts}


def table_cases() -> Iterable[Case]:
    def grow(name: str, count: int) -> Script:
        return [("append", name)] * count

    start: Script = [("create", "A")]
    scripts: dict[str, tuple[int, Script]] = {
        "no fork at all": (4, start + grow("A", 9)),
        "the child writes first": (4, [*start, *grow("A", 5), ("fork", "A", "B"), *grow("B", 2), *grow("A", 2)]),
        "the parent writes first": (4, [*start, *grow("A", 6), ("fork", "A", "B"), *grow("A", 1), *grow("B", 1)]),
        "a fork at a full block": (4, [*start, *grow("A", 8), ("fork", "A", "B"), *grow("B", 1), *grow("A", 1)]),
        "three children": (
            4,
            [*start, *grow("A", 3), *(("fork", "A", name) for name in "BCD"), *(("append", name) for name in "DCBA")],
        ),
        "the parent ends": (4, [*start, *grow("A", 6), ("fork", "A", "B"), ("end", "A"), *grow("B", 3)]),
        "a stranger comes after the parent": (
            2,
            [
                *start,
                ("create", "Z"),
                *grow("Z", 1),
                *grow("A", 14),
                ("fork", "A", "B"),
                ("end", "A"),
                ("end", "Z"),
                ("create", "C"),
                *grow("C", 2),
            ],
        ),
        "everybody ends": (4, [*start, *grow("A", 5), ("fork", "A", "B"), *grow("B", 1), ("end", "A"), ("end", "B")]),
        "a fork of a fork": (
            2,
            [
                *start,
                *grow("A", 3),
                ("fork", "A", "B"),
                *grow("B", 2),
                ("fork", "B", "C"),
                *grow("C", 2),
                *grow("B", 1),
            ],
        ),
    }
    for name, (size, script) in scripts.items():
        yield Case(name, (size, script), engine_tables(size, script))


# ---- q6: what sharing saves ------------------------------------------------------------------------------------------


def sharing_cases() -> Iterable[Case]:
    for prompt, written, samples, size in (
        (100, 30, 4, 16),
        (64, 30, 4, 16),
        (33, 1, 6, 16),
        (33, 0, 6, 16),
        (10, 50, 3, 16),
        (1000, 200, 2, 32),
        (70, 25, 1, 8),
        (19, 58, 6, 1),
    ):
        family = Family(prompt, samples, max(1, written), size)
        for _ in range(written):
            family.write_token()
        count = family.count()
        name = f"{prompt} + {written} tokens, {samples} samples, blocks of {size}"
        yield Case(name, (prompt, written, samples, size), {"in use": count.held, "saved": count.saving})


QUESTIONS: tuple[Question, ...] = (
    Question(
        id="ch07.q1",
        title="Where a step writes",
        kind=Kind.IMPLEMENT,
        difficulty=1,
        points=2,
        answer="slot_mapping",
        cases=slot_cases,
        hints=(
            (
                "Go through the requests one by one, and in each through the positions of its new tokens. The first "
                "has position `computed`."
            ),
            (
                "Divide a position by the block size: the quotient says which entry of the table, the remainder "
                "which slot of that block."
            ),
            (
                "slot = table[position // block_size] * block_size + position % block_size, for position from "
                "computed to computed + new - 1."
            ),
        ),
        explain=named(*SLOT_MISTAKES),
    ),
    Question(
        id="ch07.q2",
        title="The softmax that forgets",
        kind=Kind.DIAGNOSE,
        difficulty=3,
        points=4,
        answer="attend",
        cases=softmax_cases,
        hints=(
            (
                "Take the example by hand: write down maximum, total and output after every block. Which of them "
                "still belong to the old maximum when ln 2 comes?"
            ),
            (
                "Everything that was summed relative to the old maximum is multiplied by exp(old - new). And what is"
                " -inf - -inf?"
            ),
            (
                "One factor, exp(maximum - new), for total and output alike. If `new` is still -inf, nothing was "
                "visible so far: go on to the next block."
            ),
        ),
        explain=softmax_explained,
        tolerance=1e-6,
        absolute=True,
    ),
    Question(
        id="ch07.q3",
        title="Two processors, one answer",
        kind=Kind.IMPLEMENT,
        difficulty=2,
        points=3,
        answer="merge",
        cases=merge_cases,
        hints=(
            "Both halves would simply be added if they were relative to the same maximum.",
            (
                "The common maximum is the larger one, head by head. Bring each half to it: multiply its total and "
                "its output by exp(own maximum - common maximum)."
            ),
            (
                "The factors are [heads], the outputs [heads, dim]: factor[:, None] * output. exp(-inf) is 0, so a "
                "half that saw nothing needs no special case. Do not divide."
            ),
        ),
        explain=merge_explained,
        tolerance=1e-4,
        drive=merge_all,
    ),
    Question(
        id="ch07.q4",
        title="A cache of prefixes",
        kind=Kind.IMPLEMENT,
        difficulty=3,
        points=4,
        answer="PrefixCache",
        cases=prefix_cases,
        hints=(
            (
                "Keep a set with one entry for each full block that was remembered. What must an entry be made of, "
                "so that equal entries mean equal tokens from the start on?"
            ),
            (
                "An entry of a block: its tokens together with the entry of the block before it. Walk along the "
                "prompt's blocks until one is missing. Which blocks may you ask for, if the last token is never "
                "covered?"
            ),
            (
                "key = (key of the block before, tuple(block's tokens)), or its hash. For find, ask only for the "
                "blocks that end before the last token: (len(tokens) - 1) // block_size of them."
            ),
        ),
        explain=named(*PREFIX_MISTAKES),
        drive=replay_prefixes,
    ),
    Question(
        id="ch07.q5",
        title="Copy before the write",
        kind=Kind.DIAGNOSE,
        difficulty=2,
        points=4,
        answer="Tables",
        cases=table_cases,
        hints=(
            (
                "Two places change what others see: the write into a block, and the return of a block. Ask `counts` "
                "in both."
            ),
            (
                "In append: slot 0 opens a new block, and nothing is shared there. Otherwise look at the count of "
                "the block that will be written. In end: a block is free when its count falls to 0."
            ),
            (
                "If the count is above 1: lower it, take() a new block, put that into the table, return (old, new). "
                "In end, lower every count, and give back only the blocks whose count is now 0."
            ),
        ),
        explain=tables_explained,
        drive=replay_tables,
    ),
    Question(
        id="ch07.q6",
        title="What sharing saves",
        kind=Kind.COMPUTE,
        difficulty=2,
        points=3,
        answer="sharing",
        cases=sharing_cases,
        hints=(
            "How many blocks does one sequence's table have? Which of those entries name the same block in all tables?",
            (
                "Full blocks of the prompt stay common. The partly filled one was copied for the first token written"
                " into it; before any token is written, it is common too."
            ),
            (
                "table = ceil((prompt + written) / block_size), common = prompt // block_size (or all of the table "
                "if written is 0). In use: common + samples * (table - common); without sharing: samples * table."
            ),
        ),
        explain=named(*SHARING_MISTAKES),
        tolerance=1e-3,
        drive=sharing,
    ),
)
