"""Chapter 11, question 4: ragged batches over a paged cache, and what is wrong with an attention that reads them so."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from itertools import accumulate
from math import ceil
from random import Random
from typing import Any

import torch
from torch import Tensor

from pagedlab.basics.attention import attention, repeat_kv
from pagedlab.course.questions.ch11_capstone import SHOWN, expected, fresh_jobs, run_explained
from pagedlab.course.questions.mistakes import Mistake, named
from pagedlab.course.questions.model import Case
from pagedlab.runtime.attention.base import AttentionMetadata
from pagedlab.runtime.attention.reference import ReferenceBackend

Batch = dict[str, Any]
SHAPE = {"num_blocks": 9, "block_size": 4, "num_heads": 4, "num_kv_heads": 2, "head_dim": 2}


def random_batch(lengths: list[tuple[int, int]], tables: list[list[int]], seed: int) -> Batch:
    """Sequences of (new rows, context) tokens whose blocks lie scattered; every slot of the cache holds something."""
    rng = torch.Generator().manual_seed(seed)
    cache = (SHAPE["num_blocks"], SHAPE["block_size"], SHAPE["num_kv_heads"], SHAPE["head_dim"])
    starts = [0]
    for rows, _ in lengths:
        starts.append(starts[-1] + rows)
    widest = max(map(len, tables))
    return {
        "query": torch.randn(starts[-1], SHAPE["num_heads"], SHAPE["head_dim"], generator=rng) * 2,
        "key_cache": torch.randn(cache, generator=rng) * 2,
        "value_cache": torch.randn(cache, generator=rng),
        "block_tables": torch.tensor([table + [0] * (widest - len(table)) for table in tables]),
        "query_starts": torch.tensor(starts),
        "seq_lens": torch.tensor([context for _, context in lengths]),
        "scale": SHAPE["head_dim"] ** -0.5,
    }


def reference_rows(batch: Batch) -> list[list[float]]:
    """The engine's reference backend on the batch."""
    rows = (batch["query_starts"][1:] - batch["query_starts"][:-1]).tolist()
    metadata = AttentionMetadata(
        block_tables=batch["block_tables"],
        query_starts=batch["query_starts"],
        seq_lens=batch["seq_lens"],
        slot_mapping=torch.empty(0, dtype=torch.long),
        query_lens_host=rows,
        seq_lens_host=batch["seq_lens"].tolist(),
    )
    cache = torch.stack([batch["key_cache"], batch["value_cache"]])
    output = ReferenceBackend().attend(batch["query"], cache, metadata, scale=batch["scale"], sliding_window=None)
    return output.flatten(1).tolist()


def attention_cases() -> Iterable[Case]:
    batches = {
        "one row of a context of 7 (a decode)": random_batch([(1, 7)], [[5, 2]], 0),
        "a whole prompt of 6": random_batch([(6, 6)], [[7, 3]], 1),
        "a chunk: 3 rows, context 10": random_batch([(3, 10)], [[4, 8, 1]], 2),
        "three sequences at once": random_batch([(1, 9), (3, 3), (2, 6)], [[6, 2, 7], [3], [8, 1]], 3),
    }
    for name, batch in batches.items():
        yield Case(name, (batch,), reference_rows(batch))
    yield Case("in the engine, small random model", (asdict(SHOWN.tiny),), expected(SHOWN.tiny))


def attention_fresh(draw: Random) -> Iterable[Case]:
    """Contexts that need as many blocks, never all of the last one; blocks elsewhere, and not in order."""
    decode, prompt, chunk, decode_at, short, few_at = (
        blocks * SHAPE["block_size"] - draw.randrange(1, 4) for blocks in (2, 2, 3, 3, 1, 2)
    )
    rows = draw.randrange(2, 5)
    batches = {
        f"one row of a context of {decode} (a decode), drawn": [(1, decode)],
        f"a whole prompt of {prompt}, drawn": [(prompt, prompt)],
        f"a chunk: {rows} rows, context {chunk}, drawn": [(rows, chunk)],
        "three sequences at once, drawn": [(1, decode_at), (short, short), (2, few_at)],
    }
    for name, lengths in batches.items():
        batch = random_batch(lengths, scattered(draw, [context for _, context in lengths]), draw.randrange(2**31))
        yield Case(name, (batch,), reference_rows(batch))
    job = fresh_jobs(draw).tiny
    yield Case("in the engine, small random model, drawn", (asdict(job),), expected(job))


def scattered(draw: Random, contexts: list[int]) -> list[list[int]]:
    """Tables that are neither the first blocks nor in order, where there is more than one block."""
    counts = [ceil(context / SHAPE["block_size"]) for context in contexts]
    while True:
        blocks = draw.sample(range(1, SHAPE["num_blocks"]), sum(counts))
        tables = [blocks[end - count : end] for count, end in zip(counts, accumulate(counts), strict=True)]
        if all(table != sorted(table) if len(table) > 1 else table != [1] for table in tables):
            return tables


def sloppy(batch: Batch, mistake: str) -> Any:
    """Paged attention with one thing done wrong; None for a batch that is a run of the engine."""
    if "query" not in batch:
        return None
    query, scale, size = batch["query"], batch["scale"], batch["key_cache"].shape[1]
    output = torch.zeros_like(query)
    for i, length in enumerate(batch["seq_lens"].tolist()):
        start, stop = batch["query_starts"][i : i + 2].tolist()
        new = stop - start
        blocks = batch["block_tables"][i, : -(-length // size)]
        if mistake == "ignores the table":
            blocks = torch.arange(len(blocks)) + 1
        if mistake == "sorts the table":
            blocks = blocks.sort().values
        slots = len(blocks) * size if mistake == "reads leftovers" else length
        keys, values = (batch[name][blocks].flatten(0, 1)[:slots] for name in ("key_cache", "value_cache"))
        allowed = seen(mistake, length, new, len(keys))
        heads = query.shape[1]
        if mistake == "tiles heads":
            keys, values = (x.repeat(1, heads // x.shape[1], 1) for x in (keys, values))
        output[start:stop] = rows_of(mistake, query[start:stop], keys, values, allowed, scale)
    return output.flatten(1).tolist()


def seen(mistake: str, length: int, new: int, slots: int) -> Tensor:
    """[new, slots]: what the rows see under a mistake."""
    keys = torch.arange(slots)
    queries = torch.arange(length - new, length)
    if mistake == "counts from 0":
        queries = torch.arange(new)
    allowed = keys[None, :] <= queries[:, None]
    if mistake == "sees the future":
        allowed = (keys < length).expand(new, slots)
    if mistake == "reads leftovers":
        allowed = torch.ones(new, slots, dtype=torch.bool)
    if mistake == "forgets the context":
        allowed = allowed & (keys >= length - new)
    if mistake == "drops the last block":
        allowed = allowed & (keys < max(1, length // 4 * 4))
    return allowed


def rows_of(mistake: str, query: Tensor, keys: Tensor, values: Tensor, allowed: Tensor, scale: float) -> Tensor:
    if mistake == "no scale":
        return attention(query, keys, values, allowed, 1.0)
    if mistake in ("masks after softmax", "masks with 0"):
        scores = torch.einsum("qhd,khd->hqk", query, repeat_kv(keys, query.shape[1])) * scale
        weights = scores.softmax(-1) * allowed if mistake == "masks after softmax" else (scores * allowed).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, repeat_kv(values, query.shape[1]))
    return attention(query, keys, values, allowed, scale)


ATTENTION_MISTAKES = {
    "sees the future": "A row sees later positions than its own: the mask was not applied.",
    "reads leftovers": "Slots behind seq_lens were read: the last block holds leftovers of others there.",
    "counts from 0": "The positions of the rows were counted from 0. They are the last ones of the context: they begin "
    "at seq_lens[i] minus the number of rows.",
    "forgets the context": "Only this step's tokens were attended to: the context before them is forgotten.",
    "ignores the table": "Blocks were read in the order of the cache: the block table was ignored.",
    "sorts the table": "Blocks were read in the order of their numbers. Their order is that of the table.",
    "tiles heads": "Query head h went to KV head h % num_kv_heads. Neighbours share one: h // (num_heads // "
    "num_kv_heads), as repeat_interleave lays them out.",
    "no scale": "The scores were not multiplied by scale.",
    "masks after softmax": "Masked after the softmax: the weights of a row no longer add up to 1.",
    "masks with 0": "A masked score of 0 is a score like any other: exp(0) is 1. It must be minus infinity.",
    "drops the last block": "The last, partly filled block was left out: round the number of blocks up.",
}


def attention_explained(case: Case, got: Any) -> str:
    (given,) = case.arguments
    if "query" not in given:
        return run_explained(case, got)
    known = named(
        *(Mistake(says, lambda batch, name=name: sloppy(batch, name)) for name, says in ATTENTION_MISTAKES.items()),
        tolerance=1e-3,
        absolute=True,
    )(case, got)
    if known or not isinstance(got, list):
        return known
    wrong = [i for i, (a, b) in enumerate(zip(got, case.expected, strict=True)) if not close(a, b)]
    first = sequence_of(given["query_starts"].tolist(), wrong[0])
    return f"Rows {', '.join(map(str, wrong))} differ; the first of them belongs to sequence {first}."


def sequence_of(starts: list[int], row: int) -> int:
    return max(i for i, start in enumerate(starts[:-1]) if start <= row)


def close(a: list[float], b: list[float]) -> bool:
    return all(abs(x - y) <= 1e-3 for x, y in zip(a, b, strict=True))
