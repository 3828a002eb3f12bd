"""Chapter 08: the cases of its questions, those that check shows and fresh ones from the same tables."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import permutations
from random import Random

import torch
from torch import Tensor

from pagedlab.basics import masks
from pagedlab.basics.attention import attention
from pagedlab.course.drivers.ch08 import summary
from pagedlab.course.questions.model import Case
from pagedlab.course.questions.twins import Pick, anew, as_shown, drawn

SEEDS = range(2**31)

# ---- q1: the floor ---------------------------------------------------------------------------------------------------


def floor_cases() -> Iterable[Case]:
    return floors(Random(8), as_shown)


def floor_fresh(draw: Random) -> Iterable[Case]:
    return drawn(floors(draw, anew(draw)))


def floors(draw: Random, pick: Pick) -> Iterable[Case]:
    for name, shape in floor_shapes(draw, pick):
        batch, context, _, kv_heads, head_dim, size, rate = shape
        cache = torch.empty(2, batch, context, kv_heads, head_dim, dtype=torch.int8, device="meta")
        yield Case(name, shape, cache.nbytes * size / (rate * 1e3))


def floor_shapes(draw: Random, pick: Pick) -> Iterable[tuple[str, tuple[int, ...]]]:
    """Sequences, tokens of each, query heads, KV heads, numbers of a head, bytes of a number, GB/s."""
    batches, contexts, widths, rates = range(2, 99), range(500, 9000), (32, 80, 96, 256), range(300, 5000)
    name = pick("Llama-3.1-8B, 16 × 4,096 on an H100", ("heads in groups",))
    kv = pick(8, (2, 4, 16))
    yield name, (pick(16, batches), pick(4096, contexts), 4 * kv, kv, pick(128, widths), 2, pick(3029, rates))
    name = pick("SmolLM2-135M, one chat on a laptop", ("one sequence",))
    kv = pick(3, (2, 4, 5))
    yield name, (1, pick(1000, contexts), 3 * kv, kv, pick(64, widths), 4, pick(40, range(20, 90)))
    name = pick("Llama-2-7B, no groups", ("no groups",))
    heads = pick(32, (12, 16, 40))
    yield name, (pick(8, batches), pick(2048, contexts), heads, heads, pick(128, widths), 2, pick(1935, rates))
    kv = pick(8, (2, 4, 16))
    yield "one byte a number", (pick(64, batches), pick(8192, contexts), 8 * kv, kv, 128, 1, pick(4800, rates))
    for name in ("drawn at random", "drawn at random again"):
        kv = draw.choice([2, 4, 8])
        yield name, (draw.randrange(1, 99), draw.randrange(1, 9999), 3 * kv, kv, 80, 2, 700)


# ---- q2 and q4: one token over the table -----------------------------------------------------------------------------


def walk_cases() -> Iterable[Case]:
    return walks(as_shown)


def walk_fresh(draw: Random) -> Iterable[Case]:
    return drawn(walks(anew(draw)))


def walks(pick: Pick) -> Iterable[Case]:
    yield decode_case(pick, "one block, full", [3], 4, largest=pick(0, (1, 2)))
    yield decode_case(pick, "three blocks in no order", [5, 0, 2], 12, largest=pick(0, (1, 2, 3)))
    yield decode_case(pick, "the last block partly filled", [6, 1], pick(6, (5, 7)), largest=pick(1, (0, 2, 3)))
    length = pick(11, (9, 10))
    yield decode_case(pick, "the last score is the largest", [2, 4, 0], length, largest=length - 1)
    by = pick(150, range(120, 200))
    yield decode_case(pick, "scores in the hundreds", [4, 1], 8, largest=pick(5, (4, 6, 7)), by=by)
    largest = pick(2, (0, 1, 3))
    yield decode_case(pick, "four query heads, two KV heads", [1, 6], 8, heads=4, kv_heads=2, largest=largest)
    length, name = pick(9, (10, 11)), "six query heads, two KV heads, rising"
    yield decode_case(pick, name, [6, 3, 1], length, heads=6, kv_heads=2, largest=length - 1)


def repair_cases() -> Iterable[Case]:
    return repairs(as_shown)


def repair_fresh(draw: Random) -> Iterable[Case]:
    return drawn(repairs(anew(draw)))


def repairs(pick: Pick) -> Iterable[Case]:
    yield decode_case(pick, "one head, one block", [3], 4, heads=1, largest=pick(0, (1, 2)))
    yield decode_case(pick, "the last score is the largest", [2, 4, 0], 12, largest=11)
    yield decode_case(pick, "slots that are nobody's", [5, 0], pick(6, (5, 7)), largest=pick(0, (1, 2)))
    largest = pick(2, (0, 1, 3))
    yield decode_case(pick, "four query heads, two KV heads", [1, 6], 8, heads=4, kv_heads=2, largest=largest)
    largest = pick(10, (9, 11))
    yield decode_case(pick, "heads in groups, and rising scores", [6, 0, 4], 12, 4, 2, largest=largest)
    length = pick(9, (10, 11))
    yield decode_case(pick, "everything together", [4, 2, 5], length, heads=6, kv_heads=2, largest=length - 1)


def decode_case(
    pick: Pick,
    name: str,
    shown_table: list[int],
    length: int,
    heads: int = 2,
    kv_heads: int = 1,
    largest: int = 0,
    by: float = 1,
) -> Case:
    """Blocks of 4 slots, heads of 4 numbers. Other sequences' blocks hold numbers, free slots of our own hold NaN.

    Args:
        largest: the position with the largest score, in all heads and by far.
        by: all scores are so many times larger.
    """
    draw = torch.Generator().manual_seed(pick(len(name), SEEDS))
    table = pick(shown_table, other_tables(7, len(shown_table)))
    slots = [block * 4 + slot for block in table for slot in range(4)]
    while True:
        keys, values = torch.randn(2, 7, 4, kv_heads, 4, generator=draw)
        query = torch.randn(heads, 4, generator=draw).abs()
        keys.view(28, kv_heads, 4)[slots[largest]] = 2.0
        key, value = (cache.view(28, kv_heads, 4)[slots[:length]] for cache in (keys, values))
        if is_largest(query, key, largest):
            break
    keys *= by
    expected = attention(query[None], key * by, value)[0]
    for cache in (keys, values):
        cache.view(28, kv_heads, 4)[slots[length:]] = math.nan
    return Case(name, (query, keys, values, table, length), expected)


def is_largest(query: Tensor, key: Tensor, position: int) -> bool:
    """query [heads, 4], key [length, kv_heads, 4]"""
    scores = torch.einsum("hd,nhd->hn", query, key.repeat_interleave(len(query) // key.shape[1], 1)) / 2
    others = scores.clone()
    others[:, position] = -math.inf
    return bool((scores[:, position] > others.amax(1) + 0.2).all())


def other_tables(num_blocks: int, length: int) -> list[list[int]]:
    """All tables of a pool but those in order."""
    tables = [list(table) for table in permutations(range(num_blocks), length)]
    return [table for table in tables if table != sorted(table) or (table > [0] and length == 1)]


# ---- q3: merge -------------------------------------------------------------------------------------------------------


def merge_cases() -> Iterable[Case]:
    return merges(as_shown)


def merge_fresh(draw: Random) -> Iterable[Case]:
    return drawn(merges(anew(draw)))


def merges(pick: Pick) -> Iterable[Case]:
    few = range(1, 8)
    times, first, second = pick(3, range(4, 99)), pick(1.0, range(2, 9)), pick(0.0, range(-9, 0))
    lse = torch.tensor([[0.0], [math.log(times)]])
    merged = (first + times * second) / (1 + times)
    yield Case("by hand", (torch.tensor([[[first]], [[second]]]).float(), lse), [[merged]])
    yield merge_case(pick, "two parts of unlike length", [pick(9, range(6, 12)), pick(2, (1, 3))])
    yield merge_case(pick, "four parts, three heads", [5, pick(5, few), pick(5, few), pick(1, few)], heads=3)
    yield merge_case(pick, "three parts in a tile of four", [pick(4, few), pick(4, few), pick(3, few)])
    yield merge_case(pick, "five parts in a tile of eight", [1, pick(2, few), pick(3, few), 4, pick(5, few)])
    yield merge_case(pick, "an empty part", [pick(6, few), 0])
    yield merge_case(pick, "an lse in the hundreds", [pick(3, few), pick(4, few)], shift=pick(500.0, range(100, 120)))
    yield merge_case(pick, "one part", [pick(5, few)])


def merge_case(pick: Pick, name: str, lengths: list[int], heads: int = 2, shift: float = 0.0) -> Case:
    """Scores and values of one context, cut into parts of these lengths."""
    draw = torch.Generator().manual_seed(pick(len(name), SEEDS))
    scores = torch.randn(heads, sum(lengths), generator=draw) + shift
    values = torch.randn(heads, sum(lengths), 4, generator=draw)
    cut = list(zip(scores.split(lengths, 1), values.split(lengths, 1), strict=True))
    parts = torch.stack([s.softmax(1)[:, None] @ v for s, v in cut])[:, :, 0]
    lse = torch.stack([s.logsumexp(1) for s, _ in cut])
    whole = (scores.softmax(1)[:, None] @ values)[:, 0]
    return Case(name, (parts, lse), whole)


# ---- q5: how many splits ---------------------------------------------------------------------------------------------


def split_cases() -> Iterable[Case]:
    return splits(Random(5), as_shown)


def split_fresh(draw: Random) -> Iterable[Case]:
    return drawn(splits(draw, anew(draw)))


def splits(draw: Random, pick: Pick) -> Iterable[Case]:
    for name, shape in split_shapes(draw, pick):
        yield Case(name, shape, fewest_splits(*shape))


def split_shapes(draw: Random, pick: Pick) -> Iterable[tuple[str, tuple[int, int, int, int, int]]]:
    """Sequences, KV heads, positions, processors, the shortest split."""
    kv, wanted, shortest = pick(8, (4, 6, 10)), pick(33, range(17, 50)), pick(128, (64, 100, 160))
    yield "by hand", (1, kv, (wanted - 1) * shortest, kv // 2 * wanted, shortest)
    kv, wanted, shortest = pick(8, (4, 6, 10)), pick(33, range(17, 50)), pick(128, (64, 100, 160))
    yield "one long context", (1, kv, pick(256, range(100, 300)) * shortest, kv // 2 * wanted, shortest)
    processors = pick(132, range(80, 160))
    yield "a batch that fills the chip", (pick(256, range(100, 300)), 8, 4096, processors, pick(128, (64, 100)))
    batch = pick(33, range(20, 50))
    yield "exactly filled", (batch, 8, 4096, 4 * batch, pick(128, (64, 100)))
    yield "nearly filled", (20, 8, pick(8192, range(3000, 9000)), pick(132, range(100, 155)), 128)
    processors = pick(132, range(80, 160))
    yield "a context shorter than a split", (1, 8, pick(100, range(40, 120)), processors, 128)
    processors = pick(108, (90, 100, 115, 121))
    yield "seven sequences, three KV heads", (7, 3, pick(6000, range(5000, 9000)), processors, 128)
    name = pick("2,000 positions of 128", ("no multiple of the shortest split",))
    yield name, (1, 4, 128 * pick(15, range(9, 25)) + pick(80, range(20, 120)), pick(108, range(90, 130)), 128)
    for number in (1, 2):
        shape = (draw.randrange(1, 12), draw.randrange(1, 9), draw.randrange(300, 9000), draw.randrange(20, 150), 100)
        yield f"drawn at random, {number}", shape


def fewest_splits(batch: int, kv_heads: int, context: int, processors: int, shortest: int) -> int:
    """One more, as long as there are too few programs and every split stays long enough."""
    splits = 1
    while splits * batch * kv_heads < 2 * processors and (splits + 1) * shortest <= context:
        splits += 1
    return splits


# ---- q6: rows of a prompt --------------------------------------------------------------------------------------------


def prefill_cases() -> Iterable[Case]:
    return prefills(as_shown)


def prefill_fresh(draw: Random) -> Iterable[Case]:
    return drawn(prefills(anew(draw)))


def prefills(pick: Pick) -> Iterable[Case]:
    yield prefill_case(pick, "a prompt of one tile", [3], 0, 16)
    context, rows = pick(20, (17, 18, 22)), pick(5, (3, 4, 6))
    yield prefill_case(pick, f"{rows} rows after {context} tokens", [2, 0], context, rows)
    context, rows = pick(11, (5, 8, 10)), pick(34, (33, 36))
    yield prefill_case(pick, f"{rows} rows after {context}: three tiles", [4, 1, 3], context, rows)
    yield prefill_case(pick, "one row is a decode", [1, 2], pick(19, (17, 21, 25)), 1)
    context, rows = pick(8, (5, 10)), pick(18, (17, 20))
    yield prefill_case(pick, "four heads, two KV heads", [3, 1], context, rows, heads=4, kv_heads=2)
    context, name = pick(7, (3, 5)), "the first tile, later positions not written yet"
    yield prefill_case(pick, name, [0, 4, 2], context, pick(40, (37, 42)), tiles=1)


def prefill_case(
    pick: Pick,
    name: str,
    shown_table: list[int],
    context: int,
    num_rows: int,
    heads: int = 1,
    kv_heads: int = 1,
    tiles: int | None = None,
) -> Case:
    """Blocks of 16, heads of 16 numbers. With `tiles`, only these run, and later positions hold NaN."""
    draw = torch.Generator().manual_seed(pick(len(name), SEEDS))
    table = pick(shown_table, other_tables(5, len(shown_table)))
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
