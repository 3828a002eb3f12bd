"""Chapter 06: a long prompt by hand, the mask of a chunk in blocks, one step's plan, a prefill to repair, a promise."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pagedlab.course.drivers.ch01 import part
from pagedlab.course.drivers.ch02 import mask_rows
from pagedlab.course.drivers.ch06 import replay_prefill, run_plan
from pagedlab.course.questions.ch06_cases import (
    chunk_cases,
    chunk_fresh,
    mask_cases,
    mask_fresh,
    plan_cases,
    plan_fresh,
    prefill_cases,
    prefill_fresh,
)
from pagedlab.course.questions.ch06_mistakes import PROMPT_MISTAKES, mask_explained
from pagedlab.course.questions.ch06_promise_mistakes import promise_explained
from pagedlab.course.questions.ch06_step_mistakes import plan_explained, prefill_explained
from pagedlab.course.questions.mistakes import named_by_part
from pagedlab.course.questions.model import Case, Kind, Question
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
        fresh=mask_fresh,
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
        fresh=plan_fresh,
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
        fresh=prefill_fresh,
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
        explain=promise_explained,
        fresh=chunk_fresh,
        seconds=30.0,
    ),
)
