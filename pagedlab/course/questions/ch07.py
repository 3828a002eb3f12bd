"""Chapter 07: where a step writes, softmax in pieces, prefixes found by whole blocks, copies before writes."""

from __future__ import annotations

from pagedlab.course.drivers.ch07 import merge_all, replay_prefixes, replay_tables, sharing
from pagedlab.course.questions.ch07_prefixes import prefix_cases, prefix_fresh, prefixes_explained
from pagedlab.course.questions.ch07_sharing import (
    sharing_cases,
    sharing_explained,
    sharing_fresh,
    table_cases,
    table_fresh,
    tables_explained,
)
from pagedlab.course.questions.ch07_slots import slot_cases, slot_fresh, slots_explained
from pagedlab.course.questions.ch07_softmax import (
    merge_cases,
    merge_explained,
    merge_fresh,
    softmax_cases,
    softmax_explained,
    softmax_fresh,
)
from pagedlab.course.questions.model import Kind, Question

QUESTIONS: tuple[Question, ...] = (
    Question(
        id="ch07.q1",
        title="Where a step writes",
        kind=Kind.IMPLEMENT,
        difficulty=1,
        points=2,
        answer="slot_mapping",
        cases=slot_cases,
        fresh=slot_fresh,
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
        explain=slots_explained,
    ),
    Question(
        id="ch07.q2",
        title="The softmax that forgets",
        kind=Kind.DIAGNOSE,
        difficulty=3,
        points=4,
        answer="attend",
        cases=softmax_cases,
        fresh=softmax_fresh,
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
        fresh=merge_fresh,
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
        fresh=prefix_fresh,
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
        explain=prefixes_explained,
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
        fresh=table_fresh,
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
        fresh=sharing_fresh,
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
        explain=sharing_explained,
        tolerance=1e-3,
        drive=sharing,
    ),
)
