"""Chapter 08: the floor of a decode, kernels that walk a table, merge parts and mask a prompt, how often to split."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

import torch

from pagedlab.basics import masks
from pagedlab.basics.attention import attention
from pagedlab.course.drivers.ch08 import run_decode, run_merge, run_prefill, summary
from pagedlab.course.questions.ch08_kernel_mistakes import decode_explained, prefill_explained
from pagedlab.course.questions.ch08_mistakes import FLOOR_MISTAKES, SPLIT_MISTAKES, merge_explained
from pagedlab.course.questions.mistakes import named
from pagedlab.course.questions.model import Case, Kind, Question

# ---- q1: the floor ---------------------------------------------------------------------------------------------------


def floor_cases() -> Iterable[Case]:
    draw = random.Random(8)
    shapes = {
        "Llama-3.1-8B, 16 × 4,096 on an H100": (16, 4096, 32, 8, 128, 2, 3029),
        "SmolLM2-135M, one chat on a laptop": (1, 1000, 9, 3, 64, 4, 40),
        "Llama-2-7B, no groups": (8, 2048, 32, 32, 128, 2, 1935),
        "one byte a number": (64, 8192, 64, 8, 128, 1, 4800),
    }
    for name in ("drawn at random", "drawn at random again"):
        kv_heads = draw.choice([2, 4, 8])
        shapes[name] = (draw.randrange(1, 99), draw.randrange(1, 9999), 3 * kv_heads, kv_heads, 80, 2, 700)
    for name, shape in shapes.items():
        batch, context, _, kv_heads, head_dim, size, rate = shape
        cache = torch.empty(2, batch, context, kv_heads, head_dim, dtype=torch.int8, device="meta")
        yield Case(name, shape, cache.nbytes * size / (rate * 1e3))


# ---- q2 and q4: one token over the table -----------------------------------------------------------------------------


def decode_case(
    name: str,
    table: list[int],
    length: int,
    heads: int = 2,
    kv_heads: int = 1,
    largest: int | None = None,
    by: float = 1,
) -> Case:
    """Blocks of 4 slots, heads of 4 numbers. Other sequences' blocks hold numbers, free slots of our own hold NaN.

    Args:
        largest: the position with the largest score, in all heads.
        by: all scores are so many times larger.
    """
    draw = torch.Generator().manual_seed(len(name))
    keys, values = torch.randn(2, 7, 4, kv_heads, 4, generator=draw)
    query = torch.randn(heads, 4, generator=draw).abs()
    slots = [block * 4 + slot for block in table for slot in range(4)]
    for cache in (keys, values):
        cache.view(28, kv_heads, 4)[slots[length:]] = math.nan
    if largest is not None:
        keys.view(28, kv_heads, 4)[slots[largest]] = 2.0
    keys *= by
    key, value = (cache.view(28, kv_heads, 4)[slots[:length]] for cache in (keys, values))
    return Case(name, (query, keys, values, table, length), attention(query[None], key, value)[0])


def walk_cases() -> Iterable[Case]:
    yield decode_case("one block, full", [3], 4, largest=0)
    yield decode_case("three blocks in no order", [5, 0, 2], 12, largest=0)
    yield decode_case("the last block partly filled", [6, 1], 6, largest=1)
    yield decode_case("the last score is the largest", [2, 4, 0], 11, largest=10)
    yield decode_case("scores in the hundreds", [4, 1], 7, largest=5, by=150)
    yield decode_case("four query heads, two KV heads", [1, 6], 8, heads=4, kv_heads=2, largest=2)
    yield decode_case("six query heads, two KV heads, rising", [6, 3, 1], 9, heads=6, kv_heads=2, largest=8)


def repair_cases() -> Iterable[Case]:
    yield decode_case("one head, one block", [3], 4, heads=1, largest=0)
    yield decode_case("the last score is the largest", [2, 4, 0], 12, largest=11)
    yield decode_case("slots that are nobody's", [5, 0], 6, largest=0)
    yield decode_case("four query heads, two KV heads", [1, 6], 8, heads=4, kv_heads=2, largest=2)
    yield decode_case("heads in groups, and rising scores", [6, 0, 4], 12, heads=4, kv_heads=2, largest=10)
    yield decode_case("everything together", [4, 2, 5], 9, heads=6, kv_heads=2, largest=8)


# ---- q3: merge -------------------------------------------------------------------------------------------------------


def merge_case(name: str, lengths: list[int], heads: int = 2, shift: float = 0.0) -> Case:
    """Scores and values of one context, cut into parts of these lengths."""
    draw = torch.Generator().manual_seed(len(name))
    scores = torch.randn(heads, sum(lengths), generator=draw) + shift
    values = torch.randn(heads, sum(lengths), 4, generator=draw)
    cut = list(zip(scores.split(lengths, 1), values.split(lengths, 1), strict=True))
    parts = torch.stack([s.softmax(1)[:, None] @ v for s, v in cut])[:, :, 0]
    lse = torch.stack([s.logsumexp(1) for s, _ in cut])
    whole = (scores.softmax(1)[:, None] @ values)[:, 0]
    return Case(name, (parts, lse), whole)


def merge_cases() -> Iterable[Case]:
    hand = Case("by hand", (torch.tensor([[[1.0]], [[0.0]]]), torch.tensor([[0.0], [math.log(3)]])), [[0.25]])
    yield hand
    yield merge_case("two parts of unlike length", [9, 2])
    yield merge_case("four parts, three heads", [5, 5, 5, 1], heads=3)
    yield merge_case("three parts in a tile of four", [4, 4, 3])
    yield merge_case("five parts in a tile of eight", [1, 2, 3, 4, 5])
    yield merge_case("an empty part", [6, 0])
    yield merge_case("an lse in the hundreds", [3, 4], shift=500.0)
    yield merge_case("one part", [5])


# ---- q5: how many splits ---------------------------------------------------------------------------------------------


def fewest_splits(batch: int, kv_heads: int, context: int, processors: int, shortest: int) -> int:
    """One more, as long as there are too few programs and every split stays long enough."""
    splits = 1
    while splits * batch * kv_heads < 2 * processors and (splits + 1) * shortest <= context:
        splits += 1
    return splits


def split_cases() -> Iterable[Case]:
    draw = random.Random(5)
    shapes = {
        "by hand": (1, 8, 4096, 132, 128),
        "one long context": (1, 8, 32768, 132, 128),
        "a batch that fills the chip": (256, 8, 4096, 132, 128),
        "exactly filled": (33, 8, 4096, 132, 128),
        "nearly filled": (20, 8, 8192, 132, 128),
        "a context shorter than a split": (1, 8, 100, 132, 128),
        "seven sequences, three KV heads": (7, 3, 6000, 108, 128),
        "2,000 positions of 128": (1, 4, 2000, 108, 128),
    }
    for number in (1, 2):
        shape = (draw.randrange(1, 12), draw.randrange(1, 9), draw.randrange(300, 9000), draw.randrange(20, 150), 100)
        shapes[f"drawn at random, {number}"] = shape
    for name, shape in shapes.items():
        yield Case(name, shape, fewest_splits(*shape))


# ---- q6: rows of a prompt --------------------------------------------------------------------------------------------


def prefill_case(
    name: str,
    table: list[int],
    context: int,
    num_rows: int,
    heads: int = 1,
    kv_heads: int = 1,
    tiles: int | None = None,
) -> Case:
    """Blocks of 16, heads of 16 numbers. With `tiles`, only these run, and later positions hold NaN."""
    draw = torch.Generator().manual_seed(len(name))
    keys, values = torch.randn(2, 5, 16, kv_heads, 16, generator=draw)
    query = torch.randn(num_rows, heads, 16, generator=draw)
    slots = [block * 16 + slot for block in table for slot in range(16)]
    tiles = tiles or math.ceil(num_rows / 16)
    wanted = min(16 * tiles, num_rows)
    for cache in (keys, values):
        cache.view(80, kv_heads, 16)[slots[context + wanted :]] = math.nan
    keys.view(80, kv_heads, 16)[slots[context + wanted - 1]] *= 3  # late scores are large: the maximum rises
    key, value = (cache.view(80, kv_heads, 16)[slots[: context + wanted]] for cache in (keys, values))
    expected = attention(query[:wanted], key, value, masks.chunk(context, wanted))
    arguments = (query, keys, values, table, context, tiles)
    return Case(name, arguments, summary(expected))


def prefill_cases() -> Iterable[Case]:
    yield prefill_case("a prompt of one tile", [3], 0, 16)
    yield prefill_case("5 rows after 20 tokens", [2, 0], 20, 5)
    yield prefill_case("34 rows after 11: three tiles", [4, 1, 3], 11, 34)
    yield prefill_case("one row is a decode", [1, 2], 19, 1)
    yield prefill_case("four heads, two KV heads", [3, 1], 8, 18, heads=4, kv_heads=2)
    yield prefill_case("the first tile, later positions not written yet", [0, 4, 2], 7, 40, tiles=1)


QUESTIONS: tuple[Question, ...] = (
    Question(
        id="ch08.q1",
        title="The floor",
        kind=Kind.COMPUTE,
        difficulty=1,
        points=2,
        answer="decode_floor_us",
        cases=floor_cases,
        hints=(
            "How many numbers does one token have in this layer's cache? Which of the arguments do not matter?",
            "Bytes first: keys and values, of every token of every sequence, of every KV head. Then divide.",
            "Bytes over (gb_per_s × 10⁹) are seconds; × 10⁶ makes microseconds.",
        ),
        explain=named(*FLOOR_MISTAKES, tolerance=1e-4),
        tolerance=1e-3,
    ),
    Question(
        id="ch08.q2",
        title="Walk the table",
        kind=Kind.IMPLEMENT,
        difficulty=2,
        points=4,
        answer="paged_decode",
        cases=walk_cases,
        hints=(
            "It is step 2 of the chapter. What three things run through the loop, and how do they begin?",
            "In each round: table entry, offsets [BLOCK, DIM], keys and values with a mask, scores with −∞ where "
            "nothing is seen, new maximum, factor, weights, both sums.",
            "The mask: start + slots < length, as [:, None] for the loads. Then total × factor + tl.sum(weights, 0), "
            "and acc × factor + tl.sum(weights[:, None] × values, 0). Store acc / total.",
        ),
        explain=decode_explained,
        tolerance=1e-5,
        absolute=True,
        drive=run_decode,
        seconds=60.0,
    ),
    Question(
        id="ch08.q3",
        title="Merge the parts",
        kind=Kind.IMPLEMENT,
        difficulty=2,
        points=3,
        answer="merge_parts",
        cases=merge_cases,
        hints=(
            "exp(lse) is how much a part weighs before the whole is normalised.",
            "Load SPLITS_PAD lse and a [SPLITS_PAD, DIM] tile of outputs, both masked. Subtract the largest lse.",
            "Row of part s: s × HEADS + head. Masked lse must be −∞, masked outputs 0. Weights exp(lse − max), and the "
            "weighed sum over the sum of weights.",
        ),
        explain=merge_explained,
        tolerance=1e-5,
        absolute=True,
        drive=run_merge,
        seconds=60.0,
    ),
    Question(
        id="ch08.q4",
        title="Three faults",
        kind=Kind.DIAGNOSE,
        difficulty=2,
        points=4,
        answer="repaired",
        cases=repair_cases,
        hints=(
            "Compare line by line with step 2 of the chapter, or with your question 2.",
            "One fault shows when the maximum rises, one when a slot is NaN, one when heads share KV heads.",
            "Look at the line of acc, at the load of the values, and at what follows KV_HEADS + in the offsets.",
        ),
        explain=decode_explained,
        tolerance=1e-5,
        absolute=True,
        drive=run_decode,
        seconds=60.0,
    ),
    Question(
        id="ch08.q5",
        title="How many splits?",
        kind=Kind.IMPLEMENT,
        difficulty=1,
        points=2,
        answer="num_splits",
        cases=split_cases,
        hints=(
            "How many programs are there without a split? How many do you want?",
            "Wanted: two a processor, divided by the programs there are, rounded up. Then the limits.",
            "At most context // shortest, and then at least 1, in this order.",
        ),
        explain=named(*SPLIT_MISTAKES),
    ),
    Question(
        id="ch08.q6",
        title="The rows of a prompt",
        kind=Kind.IMPLEMENT,
        difficulty=3,
        points=5,
        answer="paged_prefill",
        cases=prefill_cases,
        hints=(
            "Question 2 with a matrix in place of one query: peak and total get one number a row, acc one line a row.",
            "Two masks: positions < stop for the loads, positions <= context + rows [BLOCK_M, BLOCK] for the scores.",
            "stop = context + tl.minimum((tile + 1) × BLOCK_M, num_rows). Scores by tl.dot(query, tl.trans(keys)), the "
            "output by acc × factor[:, None] + tl.dot(weights, values). Mask the query's load and the store by "
            "rows < num_rows.",
        ),
        explain=prefill_explained,
        tolerance=1e-4,
        absolute=True,
        drive=run_prefill,
        seconds=60.0,
    ),
)
