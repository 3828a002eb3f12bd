"""Chapter 11, questions 5 and 6: runs of the engine that a reader's parts must get right, what a wrong run tells."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from random import Random
from typing import Any

import torch

from pagedlab.course.capstone import Watch
from pagedlab.course.drivers.ch11 import Job, run_job, vocabulary
from pagedlab.course.questions.model import Case

SENTENCES = {
    "capital": "The capital of France is",
    "story": "Once upon a time, there was a little girl named",
    "water": "Water freezes at",
}


def random_prompts(seed: int = 0, /, **lengths: int) -> dict[str, list[int]]:
    rng = torch.Generator().manual_seed(seed)
    return {name: torch.randint(0, 128, (length,), generator=rng).tolist() for name, length in lengths.items()}


@dataclass(frozen=True)
class Jobs:
    """Runs of the small random model. Every job has a prompt over the budget; the names say how small the pool is."""

    tiny: Job
    roomy: Job
    seats: Job
    tight: Job
    shared: Job
    three: Job


def jobs(seed: int = 0, n: Callable[[int], int] = int) -> Jobs:
    """Jobs whose prompts a seed draws; `n` may add to a length, at most 1: more, and `tight` fits no pool of its size.

    8 usable blocks of 4 hold 32 tokens; the three of `tiny` grow to 19, 15 and 23.
    """

    def prompts(**lengths: int) -> dict[str, list[int]]:
        return random_prompts(seed, **{name: n(length) for name, length in lengths.items()})

    tiny = Job(
        model="tiny",
        prompts=prompts(a=9, b=5, c=13),
        max_tokens=10,
        num_blocks=9,
        block_size=4,
        token_budget=8,
        max_num_seqs=3,
    )
    roomy = replace(tiny, num_blocks=30)
    return Jobs(
        tiny,
        roomy,
        seats=replace(roomy, prompts=prompts(a=4, b=6, c=3, d=17, e=2), max_num_seqs=2),
        tight=replace(tiny, prompts=prompts(a=7, b=8, c=9, d=5), num_blocks=6, max_num_seqs=4),
        shared=replace(tiny, prompts=prompts(a=6, b=9), n=2, num_blocks=12, max_num_seqs=6),
        three=replace(tiny, prompts=prompts(a=5, b=11, c=3), max_tokens=6, num_blocks=6),
    )


def fresh_jobs(draw: Random) -> Jobs:
    return jobs(draw.randrange(2**31), lambda length: length + draw.randrange(2))


SHOWN = jobs()

REFERENCES: dict[str, dict[str, Any]] = {}
"""Job as text -> what the engine did on its own parts: a run, and for SmolLM2 a second or two."""


def smollm2_job() -> Job:
    """5 usable blocks of 4 hold 20 tokens; the three prompts have 19, and get 18 more."""
    prompts = {name: vocabulary().encode(sentence).ids for name, sentence in SENTENCES.items()}
    return replace(SHOWN.three, model="smollm2", prompts=prompts)


def expected(job: Job, preempts: bool = True) -> dict[str, Any]:
    """The tokens of the engine's own parts with room for everybody; and whether this job must preempt on its way."""
    roomy = replace(job, num_blocks=100)
    if repr(roomy) not in REFERENCES:
        REFERENCES[repr(roomy)] = run_job(roomy, {}, Watch())
    return {**REFERENCES[repr(roomy)], "preempted": preempts}


def scheduler_cases() -> Iterable[Case]:
    return scheduled(SHOWN)


def scheduler_fresh(draw: Random) -> Iterable[Case]:
    return drawn(scheduled(fresh_jobs(draw)))


def scheduled(given: Jobs) -> Iterable[Case]:
    yield Case("room for all", (asdict(given.roomy),), expected(given.roomy, preempts=False))
    yield Case("five requests, two seats", (asdict(given.seats),), expected(given.seats, preempts=False))
    yield Case("8 blocks for three", (asdict(given.tiny),), expected(given.tiny))
    yield Case("5 blocks for four", (asdict(given.tight),), expected(given.tight))


def drawn(cases: Iterable[Case]) -> Iterable[Case]:
    return (replace(case, name=f"{case.name}, drawn") for case in cases)


MASK_ROWS = ["111000", "111100", "111110"]
"""What queries at 2, 3 and 4 may see of the keys at 0 to 5."""
EVERY = ["mask", "pool", "scheduler", "attention"]


def capstone_cases() -> Iterable[Case]:
    yield from plugged(SHOWN)
    job = smollm2_job()
    yield Case("all four, SmolLM2", (EVERY, asdict(job)), expected(job))


def capstone_fresh(draw: Random) -> Iterable[Case]:
    """All on the small model, in place of SmolLM2 too: a run of that takes longer than all the others together."""
    given = fresh_jobs(draw)
    yield from drawn(plugged(given))
    yield Case("all four, three prompts, drawn", (EVERY, asdict(given.three)), expected(given.three))


def plugged(given: Jobs) -> Iterable[Case]:
    tiny, shared, tight = asdict(given.tiny), asdict(given.shared), asdict(given.tight)
    yield Case("your mask", (["mask"], tiny), {**expected(given.tiny), "mask": MASK_ROWS})
    yield Case("your attention", (["attention"], tiny), expected(given.tiny))
    yield Case("your pool, two answers a prompt", (["pool"], shared), expected(given.shared))
    yield Case("your scheduler", (["scheduler"], tight), expected(given.tight))
    yield Case("all four, small random model", (EVERY, shared), expected(given.shared))


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
    if str(raised) in (f"KeyError: {part!r}" for part in EVERY):
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
