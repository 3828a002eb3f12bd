"""Chapter 10: a ragged batch, the mask of a mixed step, a leak, a step within a budget, and who is preempted."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import ceil
from string import ascii_uppercase
from typing import Any

import torch

from pagedlab.basics import masks
from pagedlab.course.drivers import ch10 as drivers
from pagedlab.course.drivers.ch10 import described, leak, ragged
from pagedlab.course.questions.ch09_cases import THREE_PROMPTS, made_up, tokenized
from pagedlab.course.questions.ch10_mistakes import (
    MASK_MISTAKES,
    PLAN_MISTAKES,
    PREEMPT_MISTAKES,
    RAGGED_MISTAKES,
    leak_explained,
    plan_explained,
    ragged_explained,
)
from pagedlab.course.questions.mistakes import named
from pagedlab.course.questions.model import Case, Kind, Question
from pagedlab.model_authoring.block_manager import BlockManager
from pagedlab.model_authoring.request import Request, RequestStatus
from pagedlab.model_authoring.scheduler import Scheduler
from pagedlab.sampling_params import SamplingParams

Vary = Callable[[int], int]
"""Changes a number of a table of cases: `int` for those that check shows, `near` for fresh ones."""


def near(draw: random.Random) -> Vary:
    """About as much, at least 1, and at least 2 where 1 would be another kind of case."""
    return lambda number: draw.randrange(max(min(number, 2), ceil(number / 2)), 2 * number + 1)


# ---- q1: three prompts, no rectangle ---------------------------------------------------------------------------------

Prompts = tuple[list[str], list[list[int]]]
"""Texts, and the token ids of each."""

WORDS = THREE_PROMPTS[2].split()


def ragged_cases() -> Iterable[Case]:
    return batches(
        {
            "three prompts, the course's tokenizer": (THREE_PROMPTS, tokenized(THREE_PROMPTS)),
            "a tokenizer of 2, 5 and 10 tokens": made_up(2, 5, 10),
            "3 and 2 tokens": made_up(3, 2),
            "two prompts of one length": made_up(2, 2),
            "one prompt": made_up(4),
            "five prompts": made_up(1, 3, 1, 2, 4),
        }
    )


def ragged_fresh(draw: random.Random) -> Iterable[Case]:
    """Lengths are equal where they are equal above."""
    texts = [" ".join(draw.choices(WORDS, k=count)) for count in draw.sample((1, 2, 5, 6, 9, 10), 3)]
    a, b, c = draw.sample(range(2, 12), 3)
    one, two, other, another = draw.sample(range(1, 6), 4)
    return batches(
        {
            "three prompts, the course's tokenizer, drawn": (texts, tokenized(texts)),
            f"a tokenizer of {a}, {b} and {c} tokens, drawn": drawn_ids(draw, a, b, c),
            f"{one} and {two} tokens, drawn": drawn_ids(draw, one, two),
            "two prompts of one length, drawn": drawn_ids(draw, *[draw.randrange(2, 6)] * 2),
            "one prompt, drawn": drawn_ids(draw, draw.randrange(2, 9)),
            "five prompts, drawn": drawn_ids(draw, one, two, one, other, another),
        }
    )


def drawn_ids(draw: random.Random, *lengths: int) -> Prompts:
    prompts, _ = made_up(*lengths)
    return prompts, [[draw.randrange(1, 999) for _ in range(n)] for n in lengths]


def batches(given: Mapping[str, Prompts]) -> Iterable[Case]:
    for name, (prompts, ids) in given.items():
        lengths = [len(row) for row in ids]
        positions = torch.cat([torch.arange(n) for n in lengths])
        mask = masks.block_diagonal(lengths) & masks.causal(sum(lengths))
        share = int(mask.sum()) / mask.numel()
        yield Case(name, (prompts, ids), described([t for row in ids for t in row], positions, mask, share))


# ---- q2: the mask of a mixed step ------------------------------------------------------------------------------------


def mask_cases() -> Iterable[Case]:
    return mixed_steps(int, random.Random(10))


def mask_fresh(draw: random.Random) -> Iterable[Case]:
    return mixed_steps(near(draw), draw, ", drawn")


def mixed_steps(n: Vary, draw: random.Random, ending: str = "") -> Iterable[Case]:
    prompt, chunk, behind = n(10), n(4), n(8)
    steps = {
        "two prompts": [(0, n(3)), (0, n(2))],
        "two decodes": [(n(50), 1), (n(80), 1)],
        f"two decodes and a prompt of {prompt}": [(n(50), 1), (n(80), 1), (0, prompt)],
        f"a second chunk of {chunk} behind {behind}": [(behind, chunk)],
        "a chunk, a decode, and a prompt": [(n(64), n(32)), (n(7), 1), (0, n(5))],
        "twelve requests": [(draw.randrange(200), draw.choice([1, 1, 1, 16, 40])) for _ in range(12)],
    }
    for name, step in steps.items():
        mask = torch.block_diag(*[masks.chunk(cached, new).int() for cached, new in step])
        yield Case(name + ending, (step,), {"rows": len(mask), "columns": mask.shape[1], "True": int(mask.sum())})


# ---- q3: a mask that leaks, sometimes --------------------------------------------------------------------------------


def leak_cases() -> Iterable[Case]:
    """Which batch it is, nobody needs to know: the driver runs the given code on the reader's and on smaller ones."""
    yield Case("the given mask, for your lengths", (), {"leaks": True, "a smaller batch leaks": False})


# ---- q4, q5: the engine's scheduler ----------------------------------------------------------------------------------


def run(scheduler: Scheduler, name: str, computed: int, known: int) -> None:
    """Put a request among the running ones, as if earlier steps had computed some of its tokens."""
    request = Request(name, [1] * known, SamplingParams(max_tokens=100), arrival=len(scheduler.running))
    scheduler.block_manager.attach_prefix(request)
    assert scheduler.block_manager.allocate(request, computed)
    request.num_computed_tokens = computed
    request.status = RequestStatus.RUNNING
    scheduler.running.append(request)


def engine_plan(
    running: Sequence[tuple[str, int, int]], waiting: Sequence[tuple[str, int]], seats: int, budget: int
) -> dict[str, Any]:
    everything = [known for _, _, known in running] + [prompt for _, prompt in waiting]
    blocks = sum(ceil(tokens / 16) for tokens in everything)
    manager = BlockManager(1 + blocks, 16, enable_prefix_caching=False)
    scheduler = Scheduler(manager, seats, max(seats, budget))
    scheduler.max_num_batched_tokens = budget  # the engine refuses a budget below its seats; a question may ask for one
    for name, computed, known in running:
        run(scheduler, name, computed, known)
    for name, prompt in waiting:
        arrival = len(list(scheduler.unfinished()))
        scheduler.add(Request(name, [1] * prompt, SamplingParams(max_tokens=100), arrival=arrival))
    items = scheduler.schedule().items
    return {
        "name": [item.request.request_id for item in items],
        "tokens": [item.num_tokens for item in items],
        "yields": [bool(item.sampled) for item in items],
    }


def plan_cases() -> Iterable[Case]:
    return planned_steps(int, random.Random(12))


def plan_fresh(draw: random.Random) -> Iterable[Case]:
    return planned_steps(near(draw), draw, ", drawn")


def planned_steps(n: Vary, draw: random.Random, ending: str = "") -> Iterable[Case]:
    """Prompts and budgets are made of the parts that are computed and the parts that are left for later."""
    decodes = [(name, known - 1, known) for name, known in zip("ABCD", map(n, (10, 31, 5, 18)), strict=True)]
    e, f, g, h, part, later, chunk, far = n(5), n(3), n(7), n(1), n(6), n(14), n(16), n(24)
    few, little, long, more, rest, left = n(2), n(15), n(73), n(17), n(33), n(12)
    for name, running, waiting, seats, budget in (
        ("everything fits", decodes[:2], [("E", e), ("F", f)], 8, 2 + e + f + n(10)),
        ("a prompt longer than the budget", [], [("E", 512 + n(29_488))], 4, n(512)),
        ("the last prompt is cut", decodes, [("E", part), ("F", part + later), ("G", few)], 8, 4 + 2 * part),
        ("a long prompt before a short one", decodes[:1], [("E", 11 + n(39)), ("F", few)], 4, 1 + n(11)),
        ("a chunked prompt goes on", [*decodes[:2], ("C", far, far + chunk)], [("E", few + part)], 4, 2 + chunk + few),
        (
            "a chunked prompt longer than the budget",
            [*decodes[:1], ("B", left, left + little + long)],
            [("E", n(8))],
            4,
            1 + little,
        ),
        ("the budget ends exactly", decodes[:2], [("E", part), ("F", e)], 4, 2 + part),
        ("no seat is free", [*decodes[:3], ("D", 10, 10 + more + rest)], [("E", e)], 4, 3 + more),
        ("one seat is free", decodes[:3], [("E", e), ("F", e)], 4, 3 + 2 * e + n(37)),
        ("two seats for four", [], [("E", e), ("F", few), ("G", g), ("H", h)], 2, e + few + g + h + n(35)),
        ("the first takes all", [("A", 9, 9 + e), *decodes[1:]], [("E", e)], 8, e - 1),
    ):
        yield Case(name + ending, (running, waiting, seats, budget), engine_plan(running, waiting, seats, budget))
    for again in ("once", "again"):
        running = [(f"r{i}", computed, computed + 1) for i, computed in enumerate(draw.sample(range(1, 90), 5))]
        waiting = [(f"w{i}", draw.randrange(1, 40)) for i in range(6)]
        seats, budget = draw.randrange(8, 11), draw.randrange(15, 40)
        expected = engine_plan(running, waiting, seats, budget)
        yield Case(f"eleven requests, {again}{ending}", (running, waiting, seats, budget), expected)


def engine_decodes(running: Sequence[tuple[str, int]], free: int, block_size: int) -> dict[str, Any]:
    held = sum(ceil((tokens - 1) / block_size) for _, tokens in running)
    manager = BlockManager(1 + held + free, block_size, enable_prefix_caching=False)  # block 0 is never handed out
    scheduler = Scheduler(manager, len(running), 1000)
    for name, tokens in running:
        run(scheduler, name, tokens - 1, tokens)
    schedule = scheduler.schedule()
    computed = [item.request.request_id for item in schedule.items]
    preempted = [request.request_id for request in schedule.preempted]
    return {"computed": computed, "preempted": preempted, "free": manager.num_free_blocks}


Running = list[tuple[str, int]]


def preempt_cases() -> Iterable[Case]:
    for name, arguments in short_of_blocks(random.Random(13)).items():
        yield Case(name, arguments, engine_decodes(*arguments))


def preempt_fresh(draw: random.Random) -> Iterable[Case]:
    """The same tables with other names, and with some full blocks more for everybody: who needs one stays the same."""
    for name, (running, free, size) in short_of_blocks(draw).items():
        more = 0 if name in NO_MORE else size * draw.randrange(1, 40)
        names = sorted(draw.sample(ascii_uppercase, len(running)))
        running = [(new, tokens + more) for new, (_, tokens) in zip(names, running, strict=True)]
        yield Case(f"{name}, drawn", (running, free, size), engine_decodes(running, free, size))


NO_MORE = ("the first victim is not enough",)
"""Where the victims must not hold more than they do."""


def short_of_blocks(draw: random.Random) -> dict[str, tuple[Running, int, int]]:
    cases: dict[str, tuple[Running, int, int]] = {
        "blocks enough": ([("A", 5), ("B", 9), ("C", 3)], 2, 4),
        "nobody needs a block": ([("A", 4), ("B", 8), ("C", 3)], 0, 4),
        "the first needs a block": ([("A", 9), ("B", 3), ("C", 11)], 0, 4),
        "the last needs a block": ([("A", 6), ("B", 7), ("C", 9)], 0, 4),
        "the one in the middle": ([("A", 31), ("B", 17), ("C", 7), ("D", 10)], 0, 4),
        "two need one": ([("A", 5), ("B", 9), ("C", 16)], 0, 4),
        "the first victim is not enough": ([("A", 5), ("B", 5), ("C", 2), ("D", 3)], 0, 4),
        "alone": ([("A", 9)], 0, 4),
        "the victim would have needed one, too": ([("A", 17), ("B", 20), ("C", 33)], 0, 16),
    }
    for number in range(1, 4):
        running = [(name, draw.randrange(2, 30)) for name in "ABCDEFGH"]
        cases[f"eight requests, draw {number}"] = (running, draw.randrange(2), 4)
    return cases


QUESTIONS: tuple[Question, ...] = (
    Question(
        id="ch10.q1",
        title="Three prompts, no rectangle",
        kind=Kind.IMPLEMENT,
        difficulty=1,
        points=3,
        answer="ragged",
        cases=ragged_cases,
        fresh=ragged_fresh,
        hints=(
            "Write the mask of two short prompts on squared paper: which squares does a prompt have to itself?",
            "Number the prompts and give every token its prompt's number. A token sees another if their numbers are "
            "equal "
            "and the other one does not come later.",
            "owner = torch.arange(len(rows)).repeat_interleave(lengths); equal owners, and the lower triangle. "
            "Positions: "
            "one torch.arange(length) a prompt, concatenated.",
        ),
        explain=ragged_explained(named(*RAGGED_MISTAKES)),
        tolerance=1e-6,
        drive=ragged,
    ),
    Question(
        id="ch10.q2",
        title="The mask of a mixed step",
        kind=Kind.COMPUTE,
        difficulty=2,
        points=3,
        answer="mask_size",
        cases=mask_cases,
        fresh=mask_fresh,
        hints=(
            "A row is a token that is computed now. A column is a key: computed now, or in the cache.",
            "Requests do not see each other, so count them one by one and add. The first new token sees the cached "
            "keys and "
            "itself, the next one more, and so on.",
            (
                "Of one request: new rows, cached + new columns, and new * cached + (1 + 2 + ... + new) entries that"
                " are True."
            ),
        ),
        explain=named(*MASK_MISTAKES),
        drive=drivers.mask_size,
    ),
    Question(
        id="ch10.q3",
        title="A mask that leaks, sometimes",
        kind=Kind.DIAGNOSE,
        difficulty=1,
        points=2,
        answer="leaking",
        cases=leak_cases,
        hints=(
            "Print `owner` for a few batches. It should say which request a token belongs to. What does it say?",
            "A token's label is the length of its prompt. When do two requests get the same label?",
            "Two prompts of the same length are one request to this mask. How short can two prompts be?",
        ),
        explain=leak_explained,
        drive=leak,
        is_value=True,
    ),
    Question(
        id="ch10.q4",
        title="A budget of requests",
        kind=Kind.DIAGNOSE,
        difficulty=3,
        points=5,
        answer="plan",
        cases=plan_cases,
        fresh=plan_fresh,
        hints=(
            "Keep what is left of the budget in one number, in tokens. What does one request take away from it?",
            "First the running ones, then as many of the waiting ones as there are free seats: each lacks some "
            "tokens and "
            "gets the smaller of that and what is left. Stop when nothing is left.",
            "tokens = min(lacking, budget); yields = (tokens == lacking); budget -= tokens. A running request lacks "
            "known - computed, and seats - len(running) requests may be admitted.",
        ),
        explain=plan_explained(named(*PLAN_MISTAKES)),
        drive=drivers.plan,
    ),
    Question(
        id="ch10.q5",
        title="Who gives blocks back",
        kind=Kind.IMPLEMENT,
        difficulty=3,
        points=4,
        answer="decode_step",
        cases=preempt_cases,
        fresh=preempt_fresh,
        hints=(
            "How many blocks does a request hold, and how many does it need after this step? Only then is the "
            "question of "
            "a victim.",
            "It holds ceil((tokens - 1) / block_size) and needs ceil(tokens / block_size). The victim is the last of"
            " those "
            "that still run, so it is never one that was computed already.",
            "Loop while some request that runs is not computed. If it needs a block and free is 0: pop the last of "
            "`running`, add its blocks to free, and look again. Else: take the block, note the name.",
        ),
        explain=named(*PREEMPT_MISTAKES),
        drive=drivers.decode_step,
    ),
)
