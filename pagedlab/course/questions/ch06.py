"""Chapter 06: a long prompt by hand, the mask of a chunk in blocks, one step's plan, a prefill to repair, a promise."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import torch

from pagedlab.basics import masks
from pagedlab.course.drivers.ch01 import part
from pagedlab.course.drivers.ch02 import mask_rows
from pagedlab.course.drivers.ch06 import RequestPlan, next_token, replay_prefill, run_plan
from pagedlab.course.questions.ch06_mistakes import PROMPT_MISTAKES, mask_explained
from pagedlab.course.questions.ch06_step_mistakes import CHUNK_MISTAKES, plan_explained, prefill_explained
from pagedlab.course.questions.mistakes import named, named_by_part
from pagedlab.course.questions.model import Case, Kind, Question
from pagedlab.model_authoring.block_manager import BlockManager
from pagedlab.model_authoring.request import Request
from pagedlab.model_authoring.scheduler import Scheduler
from pagedlab.runtime.batch import StepResult
from pagedlab.sampling_params import SamplingParams
from pagedlab.simulate import chunking
from pagedlab.simulate.roofline import Chunk, ModelShape

# ---- q1: a long prompt by hand ---------------------------------------------------------------------------------------

CONFIG: dict[str, Any] = {"num_hidden_layers": 40, "num_attention_heads": 40, "num_key_value_heads": 8}
CONFIG |= {
    "head_dim": 128,
    "hidden_size": 5120,
    "intermediate_size": 13_824,
    "vocab_size": 100_000,
    "model_type": "llama",
}
PROMPT, CHUNK = 60_000, 4096


def prompt_parts() -> Iterable[Case]:
    shape = ModelShape.from_config(CONFIG)
    whole, chunks = Chunk(PROMPT), chunking.split(PROMPT, CHUNK)
    for name, value in {
        "scores_gb": chunking.activation_bytes(shape, whole)["scores"] / 1e9,
        "mlp_gb": chunking.activation_bytes(shape, whole)["gate and up"] / 1e9,
        "mlp_chunk_gb": chunking.activation_bytes(shape, chunks[0])["gate and up"] / 1e9,
        "kv_gb": PROMPT * shape.kv_bytes_per_token() / 1e9,
        "kv_chunk_gb": (chunks[-1].past + chunks[-1].new) * shape.kv_bytes_per_token() / 1e9,
        "logits_kb": chunking.activation_bytes(shape, whole, logit_rows=1)["logits"] / 1e3,
        "chunks": len(chunks),
        "last_chunk": chunks[-1].new,
        "tokens_sampled": 1,
        "kv_read_gb": chunking.kv_bytes_read(shape, chunks) / 1e9,
    }.items():
        yield Case(name, (name,), value)


# ---- q2: the mask of a chunk, in blocks ------------------------------------------------------------------------------


def mask_cases() -> Iterable[Case]:
    for name, past, new, size in (
        ("the first chunk, one block", 0, 4, 4),
        ("the first chunk, a block not full", 0, 3, 4),
        ("a chunk behind 4 cached tokens", 4, 3, 4),
        ("a chunk that begins inside a block", 5, 4, 4),
        ("a chunk that ends with its block", 5, 3, 4),
        ("a decode", 9, 1, 4),
        ("a chunk larger than a block", 2, 7, 3),
        ("blocks of 1", 3, 2, 1),
        ("blocks of 8", 6, 5, 8),
    ):
        mask = masks.chunk(past, new)
        columns = -(-(past + new) // size) * size
        padded = torch.nn.functional.pad(mask, (0, columns - past - new), value=False)
        yield Case(f"{name}: {past} + {new}, blocks of {size}", (past, new, size), mask_rows(lambda m: m, padded))


# ---- q3: one step's plan ---------------------------------------------------------------------------------------------


def plan_cases() -> Iterable[Case]:
    for name, requests, budget, limit in (
        ("one prompt, whole", [(10, 3, 0)], 16, 100),
        ("one prompt in chunks of 4", [(10, 2, 0)], 16, 4),
        ("the budget cuts", [(10, 1, 0), (9, 2, 0)], 12, 100),
        ("a long prompt among chats", [(1, 9, 0), (1, 9, 0), (30, 2, 2)], 10, 100),
        ("chats, and chunks of 5", [(1, 9, 0), (2, 9, 0), (18, 3, 1)], 12, 5),
        ("a short prompt beside a long one", [(40, 2, 0), (3, 4, 0)], 10, 7),
        ("the budget is spent", [(20, 2, 0), (4, 1, 0), (4, 1, 0)], 8, 100),
        ("more chats than the prompt leaves room for", [(20, 1, 0), *[(1, 4, 0)] * 4], 8, 6),
        ("a chunk ends one token early", [(9, 2, 0)], 8, 100),
        ("a prompt as long as its chunk", [(8, 2, 0), (8, 1, 0)], 8, 100),
    ):
        yield Case(name, (requests, budget, limit), engine_plan(requests, budget, limit))


def engine_plan(requests: list[RequestPlan], budget: int, limit: int) -> list[str]:
    """The engine's own scheduler, with a pool that is large enough."""
    manager = BlockManager(100, 16, enable_prefix_caching=False)
    scheduler = Scheduler(manager, len(requests), budget, long_prefill_token_threshold=limit)
    names = "ABCDEFGH"[: len(requests)]
    waiting = [
        (arrival, Request(name, [1] * prompt, SamplingParams(max_tokens=answer, ignore_eos=True), arrival=number))
        for number, (name, (prompt, answer, arrival)) in enumerate(zip(names, requests, strict=True))
    ]
    lines: list[str] = []
    while waiting or scheduler.has_unfinished:
        for entry in [entry for entry in waiting if entry[0] <= len(lines)]:
            waiting.remove(entry)
            scheduler.add(entry[1])
        everybody = sorted((*scheduler.running, *scheduler.waiting), key=lambda request: request.arrival)
        schedule = scheduler.schedule()
        items = {item.request: item for item in schedule.items}
        words = [
            f"{r.request_id} {items[r].num_tokens if r in items else 0}{'*' if r in items and items[r].sampled else ''}"
            for r in everybody
        ]
        lines.append(", ".join(words))
        scheduler.update(schedule, StepResult([2] * sum(len(item.sampled) for item in schedule.items)))
    return lines


# ---- q4: a prefill to repair -----------------------------------------------------------------------------------------


def prefill_cases() -> Iterable[Case]:
    draw = random.Random(6)
    for length, size in ((16, 16), (32, 16), (20, 16), (7, 4), (33, 20), (5, 8), (64, 7), (1, 1), (96, 48)):
        prompt = [draw.randrange(1, 1000) for _ in range(length)]
        lines = []
        for chunk in chunking.split(length, size):
            last = chunk.past + chunk.new
            lines.append(f"positions {chunk.past} to {last - 1}{', sampled' * (last == length)}")
        lines.append(f"first token: {next_token(dict(enumerate(prompt)))}")  # as in one pass
        tokens = "token" if length == 1 else "tokens"
        yield Case(f"{length} {tokens} in chunks of {size}", (prompt, size), lines)


# ---- q5: a promise ---------------------------------------------------------------------------------------------------

MS = 1_000_000
"""Nanoseconds."""


def chunk_cases() -> Iterable[Case]:
    launch, token, pair = 5 * MS, 80_000, 600
    for name, prompt, decodes, promise in (
        ("a generous promise", 500, 8, 400 * MS),
        ("30 ms", 500, 8, 30 * MS),
        ("60 ms: a larger chunk keeps what a smaller one breaks", 500, 8, 60 * MS),
        ("exactly the whole prompt", 300, 0, launch + 300 * token + 300 * 300 * pair),
        ("103 ms", 500, 8, 103 * MS),
        ("many chats", 400, 300, 45 * MS),
        ("not even one token", 500, 8, 5 * MS),
        ("one token, just", 100, 8, launch + 9 * token + 100 * pair),
    ):
        cost = {"launch": launch, "token": token, "pair": pair}
        sizes = range(1, prompt + 1)
        kept = [m for m in sizes if max(seconds_of(prompt, m, decodes, cost)) <= promise]
        yield Case(name, (prompt, decodes, cost, promise), max(kept, default=0))


def seconds_of(prompt: int, size: int, decodes: int, cost: dict[str, int]) -> list[int]:
    return [
        cost["launch"] + cost["token"] * (c.new + decodes) + cost["pair"] * c.new * (c.past + c.new)
        for c in chunking.split(prompt, size)
    ]


QUESTIONS: tuple[Question, ...] = (
    Question(
        id="ch06.q1",
        title="A long prompt by hand",
        kind=Kind.COMPUTE,
        difficulty=1,
        points=3,
        answer="long_prompt",
        cases=prompt_parts,
        hints=(
            "Ask of each number: does it belong to the rows of one step, or to the tokens in the cache? Only the first "
            "kind shrinks with the chunk.",
            "Scores: heads × rows × columns. Keys and values: 2 × layers × KV heads × head_dim for each token. Only "
            "one row of logits is needed, in float32.",
            "Chunk number i reads the keys and values of i × 4,096 tokens, the last chunk those of all 60,000. Add "
            "them up: 4,096 × (1 + 2 + ... + 14) + 60,000 tokens.",
        ),
        explain=named_by_part(PROMPT_MISTAKES),
        tolerance=1e-3,
        drive=part,
    ),
    Question(
        id="ch06.q2",
        title="The mask of a chunk, in blocks",
        kind=Kind.IMPLEMENT,
        difficulty=2,
        points=3,
        answer="chunk_mask",
        cases=mask_cases,
        hints=(
            "Which token does row i belong to, counted from the start of the prompt? Which column is that token's own?",
            "Row i is token past + i. It sees all columns up to and with its own. Slots that hold no token yet lie "
            "behind all of these.",
            "columns = ceil((past + new) / block_size) * block_size; the mask is "
            "torch.arange(columns)[None] <= past + torch.arange(new)[:, None].",
        ),
        explain=mask_explained,
        drive=mask_rows,
    ),
    Question(
        id="ch06.q3",
        title="One step's plan",
        kind=Kind.IMPLEMENT,
        difficulty=2,
        points=4,
        answer="plan_step",
        cases=plan_cases,
        hints=(
            "Chats and prompts follow one rule: a request lacks known - computed tokens, and gets as many of them as "
            "it may.",
            "Three numbers bound it: what it lacks, the limit for one request, and what the requests before it have "
            "left of the budget.",
            "count = min(known - computed, limit, left); left -= count. It gets a token if its count is all that it "
            "lacked, and not 0.",
        ),
        explain=plan_explained,
        drive=run_plan,
    ),
    Question(
        id="ch06.q4",
        title="A prefill with four faults",
        kind=Kind.DIAGNOSE,
        difficulty=2,
        points=3,
        answer="prefill",
        cases=prefill_cases,
        hints=(
            "Take the prompt of 7 tokens in chunks of 4, by hand. Which calls should the model see? Which does it see?",
            "Look at four things: the size of a chunk, the number of chunks, the positions, and which chunk is asked "
            "for a token.",
            "for start in range(0, len(prompt), chunk_size): end = min(start + chunk_size, len(prompt)). The positions "
            "are start to end - 1. Sample only if end is the length of the prompt, and return that token.",
        ),
        explain=prefill_explained,
        drive=replay_prefill,
    ),
    Question(
        id="ch06.q5",
        title="The largest chunk that keeps a promise",
        kind=Kind.COMPUTE,
        difficulty=3,
        points=4,
        answer="largest_chunk",
        cases=chunk_cases,
        hints=(
            "Write a helper first: the longest step of a prompt, for one given chunk size. Which of its steps is the "
            "longest? You need not know: take the maximum.",
            "Then try sizes. The worst gap does not always grow with the size: where the last chunk gets shorter, it "
            "falls. So do not stop at the first size that breaks the promise.",
            "max((m for m in range(1, prompt + 1) if worst(m) <= promise), default=0), where worst(m) goes through "
            "past = 0, m, 2m, ... with new = min(m, prompt - past).",
        ),
        explain=named(*CHUNK_MISTAKES),
        seconds=30.0,
    ),
)
