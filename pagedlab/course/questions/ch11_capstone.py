"""The capstone's questions: a reader's paged attention, scheduler, pool and mask in the real engine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from pagedlab.basics.attention import attention, repeat_kv
from pagedlab.course.capstone import Watch
from pagedlab.course.drivers.ch11 import Job, attend_or_run, run_job, run_parts, run_scheduler
from pagedlab.course.questions.mistakes import Mistake, named
from pagedlab.course.questions.model import Case, Kind, Question
from pagedlab.model_authoring.models.provision import default_model_path
from pagedlab.runtime.attention.base import AttentionMetadata
from pagedlab.runtime.attention.reference import ReferenceBackend

# ---- q4: paged attention ---------------------------------------------------------------------------------------------

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
    yield Case("in the engine, small random model", (asdict(TINY_JOB),), expected(TINY_JOB))


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
    wrong = [i for i, (a, b) in enumerate(zip(got, case.expected, strict=False)) if not close(a, b)]
    first = sequence_of(given["query_starts"].tolist(), wrong[0]) if wrong else 0
    return f"Rows {', '.join(map(str, wrong))} differ; the first of them belongs to sequence {first}."


def sequence_of(starts: list[int], row: int) -> int:
    return max(i for i, start in enumerate(starts[:-1]) if start <= row)


def close(a: list[float], b: list[float]) -> bool:
    return all(abs(x - y) <= 1e-3 for x, y in zip(a, b, strict=True))


# ---- runs of the engine ----------------------------------------------------------------------------------------------

SENTENCES = {
    "capital": "The capital of France is",
    "story": "Once upon a time, there was a little girl named",
    "water": "Water freezes at",
}


def random_prompts(**lengths: int) -> dict[str, list[int]]:
    rng = torch.Generator().manual_seed(0)
    return {name: torch.randint(0, 128, (length,), generator=rng).tolist() for name, length in lengths.items()}


TINY_JOB = Job(
    model="tiny",
    prompts=random_prompts(a=9, b=5, c=13),
    max_tokens=10,
    num_blocks=9,
    block_size=4,
    token_budget=8,
    max_num_seqs=3,
)
"""8 usable blocks of 4 hold 32 tokens; the three grow to 19, 15 and 23. Every job has a prompt over the budget."""

ROOMY_JOB = replace(TINY_JOB, num_blocks=30)
SEATS_JOB = replace(ROOMY_JOB, prompts=random_prompts(a=4, b=6, c=3, d=17, e=2), max_num_seqs=2)
TIGHT_JOB = replace(TINY_JOB, prompts=random_prompts(a=7, b=8, c=9, d=5), num_blocks=6, max_num_seqs=4)
SHARED_JOB = replace(TINY_JOB, prompts=random_prompts(a=6, b=9), n=2, num_blocks=12, max_num_seqs=6)

REFERENCES: dict[str, dict[str, Any]] = {}
"""Job as text -> what the engine did on its own parts: a run, and for SmolLM2 a second or two."""


def smollm2_job() -> Job:
    """5 usable blocks of 4 hold 20 tokens; the three prompts have 19, and get 18 more."""
    tokenizer = Tokenizer.from_file(str(default_model_path() / "tokenizer.json"))
    prompts = {name: tokenizer.encode(sentence).ids for name, sentence in SENTENCES.items()}
    return replace(TINY_JOB, model="smollm2", prompts=prompts, max_tokens=6, num_blocks=6)


def expected(job: Job, preempts: bool = True) -> dict[str, Any]:
    """The tokens of the engine's own parts with room for everybody; and whether this job must preempt on its way."""
    roomy = replace(job, num_blocks=100)
    if repr(roomy) not in REFERENCES:
        REFERENCES[repr(roomy)] = run_job(roomy, {}, Watch())
    return {**REFERENCES[repr(roomy)], "preempted": preempts}


def scheduler_cases() -> Iterable[Case]:
    yield Case("room for all", (asdict(ROOMY_JOB),), expected(ROOMY_JOB, preempts=False))
    yield Case("five requests, two seats", (asdict(SEATS_JOB),), expected(SEATS_JOB, preempts=False))
    yield Case("8 blocks for three", (asdict(TINY_JOB),), expected(TINY_JOB))
    yield Case("5 blocks for four", (asdict(TIGHT_JOB),), expected(TIGHT_JOB))


MASK_ROWS = ["111000", "111100", "111110"]
"""What queries at 2, 3 and 4 may see of the keys at 0 to 5."""


def capstone_cases() -> Iterable[Case]:
    yield Case("your mask", (["mask"], asdict(TINY_JOB)), {**expected(TINY_JOB), "mask": MASK_ROWS})
    yield Case("your attention", (["attention"], asdict(TINY_JOB)), expected(TINY_JOB))
    yield Case("your pool, two answers a prompt", (["pool"], asdict(SHARED_JOB)), expected(SHARED_JOB))
    yield Case("your scheduler", (["scheduler"], asdict(TIGHT_JOB)), expected(TIGHT_JOB))
    every = ["mask", "pool", "scheduler", "attention"]
    yield Case("all four, small random model", (every, asdict(SHARED_JOB)), expected(SHARED_JOB))
    job = smollm2_job()
    yield Case("all four, SmolLM2", (every, asdict(job)), expected(job))


MASK_MISTAKES = {
    ("111111", "111111", "111111"): "Your mask lets every query see the future: a token then depends on what comes "
    "after it, which at the time of writing does not exist.",
    ("001111", "000111", "000011"): "Your mask is upside down: a query sees itself and what comes after it.",
    ("100000", "110000", "111000"): "Your mask counts rows from 0. The rows of a chunk, or of a decode, stand at "
    "query_positions, far from 0.",
    ("111100", "111110", "111111"): "Your mask looks one position too far: key <= query, not query + 1.",
    ("001000", "000100", "000010"): "Your mask lets a query see itself alone: nothing is mixed at all.",
}


def run_explained(case: Case, got: Any) -> str:
    """What a run's record says about a part; a part's own failure is a sentence already."""
    if not isinstance(got, dict):
        return no_part(got)
    if tuple(got.get("mask", MASK_ROWS)) in MASK_MISTAKES:
        return MASK_MISTAKES[tuple(got["mask"])]
    if got["tokens"] != case.expected["tokens"]:
        return different_tokens(case.arguments[-1]["prompts"], got["tokens"], case.expected["tokens"])
    if not got["batched"]:
        return "The tokens are right, but no step had two requests: one at a time is what batching is there to avoid."
    if got["preempted"] and not case.expected["preempted"]:
        return "The tokens are right, but somebody lost blocks although there was room for all."
    if case.expected["preempted"] and not got["preempted"]:
        return "The tokens are right, but nobody was preempted: requests waited although blocks and seats were free."
    return ""


def no_part(raised: Any) -> str:
    if str(raised).startswith("KeyError: "):
        return f"The dictionary parts has no entry {str(raised).removeprefix('KeyError: ')}."
    if str(raised).startswith("TypeError: 'ellipsis'"):
        return "Give parts as a dictionary of the four."
    return ""


def different_tokens(prompts: dict[str, list[int]], got: dict[str, Any], right: dict[str, Any]) -> str:
    """Which request differs where; and what that says of the attention, if anything."""
    first = {name: first_difference(got[name], right[name]) for name in right if got[name] != right[name]}
    where = ", ".join(f"{name} from its new token {number + 1} on" for name, number in first.items())
    if list(first.values()) == [0] * len(right):
        why = "The first new token is wrong already, so the prompt is read wrongly: mask, positions, scale, KV heads."
    else:
        why = (
            "Not all first tokens are wrong: what is wrong shows with a context behind it, in a decode or in the later "
            "chunks of a prompt. Their rows stand at the end of the context and see all of it, through the block table."
        )
    return f"Other tokens than the reference: {where}. {why}"


def first_difference(got: Any, right: Any) -> int:
    """Index of the first token that differs, in any of a prompt's answers: each is a line of token ids."""
    numbers = []
    for mine, wanted in zip(*([lines] if isinstance(lines, str) else lines for lines in (got, right)), strict=True):
        pairs = zip(mine.split(), wanted.split(), strict=True)
        numbers += [number for number, (a, b) in enumerate(pairs) if a != b]
    return min(numbers)


QUESTIONS: tuple[Question, ...] = (
    Question(
        id="ch11.q4",
        title="Paged attention for the engine",
        kind=Kind.IMPLEMENT,
        difficulty=2,
        points=3,
        answer="paged_attention",
        cases=attention_cases,
        hints=(
            "One sequence at a time: its rows of query, its blocks by the table, its keys in order. Chapter 07 does it "
            "for one row.",
            "key_cache[table] gathers blocks as [blocks, block_size, heads, dim]: flatten the first two, cut at "
            "seq_lens[i], and repeat each KV head for its group of query heads. Positions of the rows: the last ones.",
            "scores = einsum('qhd,khd->hqk', query[rows], keys) * scale; where mask(arange(length - rows, length), "
            "arange(length)) is False they are -inf; softmax over k; einsum with the values.",
        ),
        explain=attention_explained,
        tolerance=1e-3,
        absolute=True,
        drive=attend_or_run,
    ),
    Question(
        id="ch11.q5",
        title="A scheduler for the engine",
        kind=Kind.IMPLEMENT,
        difficulty=3,
        points=4,
        answer="MyScheduler",
        cases=scheduler_cases,
        hints=(
            "Running requests first, oldest first; each wants num_tokens - num_computed tokens, cut to what is left of "
            "the budget. Then those who wait.",
            "While allocate says no, free the blocks of the latest arrival among those who still run, and take it off "
            "your list; if that is the request itself, stop. Since you go from old to new, the victim is not planned "
            "yet. A step that freed blocks lets nobody in.",
            "Two loops: `while turn < len(stay) and left` over a copy of running sorted by arrival, with `while not "
            "allocate: free(stay.pop())` inside; then `for request in waiting` until seats, budget or blocks are out.",
        ),
        explain=run_explained,
        drive=run_scheduler,
    ),
    Question(
        id="ch11.q6",
        title="The capstone",
        kind=Kind.IMPLEMENT,
        difficulty=3,
        points=6,
        answer="parts",
        cases=capstone_cases,
        hints=(
            "Part by part: the first four cases each plug in one of yours. Get them right in turn; the last two then "
            "usually follow.",
            "The mask compares positions, not row numbers: one comparison with [None, :] and [:, None]. The pool needs "
            "a list of free blocks and a count of holders for each.",
            "Pool: release counts down and puts the block back at 0, share counts up, allocate takes from the list and "
            "sets the count to 1, and num_free is the length of the list. The rest is questions 4 and 5.",
        ),
        explain=run_explained,
        drive=run_parts,
        seconds=60.0,
    ),
)
