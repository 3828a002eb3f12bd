"""Chapter 08: the floor of a decode, kernels that walk a table, merge parts and mask a prompt, how often to split."""

from __future__ import annotations

from pagedlab.course.drivers.ch08 import run_decode, run_merge, run_prefill
from pagedlab.course.questions.ch08_cases import (
    floor_cases,
    floor_fresh,
    merge_cases,
    merge_fresh,
    prefill_cases,
    prefill_fresh,
    repair_cases,
    repair_fresh,
    split_cases,
    split_fresh,
    walk_cases,
    walk_fresh,
)
from pagedlab.course.questions.ch08_kernel_mistakes import decode_explained, prefill_explained
from pagedlab.course.questions.ch08_mistakes import FLOOR_MISTAKES, SPLIT_MISTAKES, merge_explained
from pagedlab.course.questions.mistakes import named
from pagedlab.course.questions.model import Kind, Question

QUESTIONS: tuple[Question, ...] = (
    Question(
        id="ch08.q1",
        title="The floor",
        kind=Kind.COMPUTE,
        difficulty=1,
        points=2,
        answer="decode_floor_us",
        cases=floor_cases,
        fresh=floor_fresh,
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
        fresh=walk_fresh,
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
        fresh=merge_fresh,
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
        fresh=repair_fresh,
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
        fresh=split_fresh,
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
        fresh=prefill_fresh,
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
