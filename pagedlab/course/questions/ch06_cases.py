"""Chapter 06: masks of chunks, plans of steps, prompts for a prefill, and promises to keep: as shown, and drawn."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

import torch

from pagedlab.basics import masks
from pagedlab.course.drivers.ch02 import mask_rows
from pagedlab.course.drivers.ch06 import RequestPlan, next_token
from pagedlab.course.questions.model import Case
from pagedlab.course.questions.numbers import Number, between
from pagedlab.course.questions.twins import anew, as_shown, drawn
from pagedlab.model_authoring.block_manager import BlockManager
from pagedlab.model_authoring.request import Request
from pagedlab.model_authoring.scheduler import Scheduler
from pagedlab.runtime.batch import StepResult
from pagedlab.sampling_params import SamplingParams
from pagedlab.simulate import chunking

# ---- q2: the mask of a chunk, in blocks ------------------------------------------------------------------------------


def mask_cases() -> Iterable[Case]:
    return padded_masks(between(as_shown))


def mask_fresh(draw: Random) -> Iterable[Case]:
    return drawn(padded_masks(between(anew(draw))))


def padded_masks(number: Number) -> Iterable[Case]:
    for name, past, new, size in chunks_of(number):
        mask = masks.chunk(past, new)
        columns = -(-(past + new) // size) * size
        padded = torch.nn.functional.pad(mask, (0, columns - past - new), value=False)
        yield Case(f"{name}: {past} + {new}, blocks of {size}", (past, new, size), mask_rows(lambda m: m, padded))


def chunks_of(number: Number) -> Iterable[tuple[str, int, int, int]]:
    """What is tried, tokens in the cache, tokens of the chunk, block size."""
    size = number(4, 3, 9)
    yield "the first chunk, one block", 0, size, size
    size = number(4, 4, 9)
    yield "the first chunk, a block not full", 0, size - number(1, 1, size - 2), size
    size = number(4, 3, 9)
    yield f"a chunk behind {size} cached tokens", size, size - number(1, 1, size - 2), size
    size = number(4, 3, 9)
    yield "a chunk that begins inside a block", size + number(1, 1, size - 1), size, size
    size = number(4, 4, 9)
    inside = number(1, 1, size - 2)
    yield "a chunk that ends with its block", size + inside, size - inside, size
    size = number(4, 3, 9)
    yield "a decode", 2 * size + number(1, 0, size - 2), 1, size
    size = number(3, 3, 6)
    past = number(2, 1, size - 1)
    yield "a chunk larger than a block", past, 3 * size - past, size
    yield "blocks of 1", number(3, 2, 9), number(2, 2, 6), 1
    size = number(8, 7, 12)
    past = number(6, 1, size - 1)
    yield f"blocks of {size}", past, size - past + number(3, 1, size - 1), size


# ---- q3: one step's plan ---------------------------------------------------------------------------------------------

Plan = tuple[str, list[RequestPlan], int, int]
"""What is tried, the requests, the budget, the limit."""


def plan_cases() -> Iterable[Case]:
    return planned(plans_of(between(as_shown)))


def plan_fresh(draw: Random) -> Iterable[Case]:
    return drawn(planned(plans_of(between(anew(draw)))))


def planned(plans: Iterable[Plan]) -> Iterable[Case]:
    for name, requests, budget, limit in plans:
        yield Case(name, (requests, budget, limit), engine_plan(requests, budget, limit))


def plans_of(number: Number) -> Iterable[Plan]:
    yield "one prompt, whole", [(number(10, 5, 15), number(3, 2, 5), 0)], 16, 100
    limit = number(4, 3, 7)
    yield f"one prompt in chunks of {limit}", [(2 * limit + number(2, 1, limit - 1), number(2, 2, 4), 0)], 16, limit
    first, left = number(10, 6, 14), number(2, 1, 4)
    yield "the budget cuts", [(first, 1, 0), (left + number(7, 2, 9), number(2, 2, 4), 0)], first + left, 100
    chats, late = [(1, number(9, 7, 11), 0), (1, number(9, 7, 11), 0)], number(2, 1, 3)
    prompt = (number(30, 24, 40), number(2, 2, 4), late)
    yield "a long prompt among chats", [*chats, prompt], number(10, 8, 13), 100
    chats, late, limit = [(1, number(9, 7, 11), 0), (2, number(9, 7, 11), 0)], number(1, 1, 3), number(5, 4, 7)
    prompt = (number(18, 16, 26), number(3, 2, 4), late)
    yield f"chats, and chunks of {limit}", [*chats, prompt], number(12, 10, 14), limit
    limit, short = number(7, 5, 9), number(3, 2, 4)
    requests = [(number(40, 30, 50), number(2, 2, 4), 0), (short, number(4, 3, 6), 0)]
    yield "a short prompt beside a long one", requests, limit + short, limit
    budget = number(8, 6, 12)
    requests = [(2 * budget + number(4, 1, 5), number(2, 2, 4), 0), (number(4, 3, 6), 1, 0), (number(4, 3, 6), 1, 0)]
    yield "the budget is spent", requests, budget, 100
    limit = number(6, 5, 10)
    requests = [(3 * limit + number(2, 1, limit - 1), 1, 0), *[(1, number(4, 3, 6), 0)] * 4]
    yield "more chats than the prompt leaves room for", requests, limit + 2, limit
    budget = number(8, 6, 12)
    yield "a chunk ends one token early", [(budget + 1, number(2, 2, 4), 0)], budget, 100
    budget = number(8, 6, 12)
    yield "a prompt as long as its chunk", [(budget, number(2, 2, 4), 0), (budget, 1, 0)], budget, 100


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
    return prefilled(between(as_shown), Random(6))


def prefill_fresh(draw: Random) -> Iterable[Case]:
    return drawn(prefilled(between(anew(draw)), draw))


def prefilled(number: Number, draw: Random) -> Iterable[Case]:
    for length, size in lengths_of(number):
        prompt = [draw.randrange(1, 1000) for _ in range(length)]
        lines = []
        for chunk in chunking.split(length, size):
            last = chunk.past + chunk.new
            lines.append(f"positions {chunk.past} to {last - 1}{', sampled' * (last == length)}")
        lines.append(f"first token: {next_token(dict(enumerate(prompt)))}")  # as in one pass
        tokens = "token" if length == 1 else "tokens"
        yield Case(f"{length} {tokens} in chunks of {size}", (prompt, size), lines)


def lengths_of(number: Number) -> Iterable[tuple[int, int]]:
    """Tokens of the prompt and of a chunk, which is whole blocks of 16 in some and not in others."""
    size = 16 * number(1, 2, 5)
    yield size, size
    size = 16 * number(1, 1, 3)
    yield size * number(2, 3, 4), size
    size = 16 * number(1, 1, 3)
    yield size + number(4, 1, 15), size
    size = number(4, 3, 8)
    yield size + number(3, 1, size - 1), size
    size = number(20, 17, 30)
    yield size + number(13, 1, 15), size
    length = number(5, 2, 8)
    yield length, length + number(3, 1, 7)
    yield number(64, 50, 90), number(7, 3, 9)
    yield 1, 1
    size = 16 * number(3, 1, 4)
    yield 2 * size, size


# ---- q5: a promise ---------------------------------------------------------------------------------------------------

MS = 1_000_000
"""Nanoseconds."""

Cost = dict[str, int]
Promise = tuple[int, int, Cost, int]
"""Tokens of the prompt, chats, costs, nanoseconds."""

FALLS = "a larger chunk keeps what a smaller one breaks"


def chunk_cases() -> Iterable[Case]:
    number = between(as_shown)
    for name, promise in {
        **easy_promises(number),
        f"60 ms: {FALLS}": (500, 8, cost_of(number), 60 * MS),
        **whole_prompt(number),
        "103 ms": (500, 8, cost_of(number), 103 * MS),
        **hard_promises(number),
    }.items():
        yield kept(name, promise)


def chunk_fresh(draw: Random) -> Iterable[Case]:
    number = between(anew(draw))
    promises = {**easy_promises(number), **whole_prompt(number), **hard_promises(number)}
    for more_than_half in (False, True):
        prompt, decodes, cost = number(500, 440, 560), number(8, 4, 12), cost_of(number)
        longest = [max(seconds_of(prompt, size, decodes, cost)) for size in range(1, prompt + 1)]
        if more_than_half:
            some = longest[draw.randint(6 * prompt // 10, 7 * prompt // 10)]
        else:
            some = draw.choice([now for i, now in enumerate(longest) if i and now + MS < max(longest[:i])])
        name = "in two chunks" if more_than_half else FALLS
        promises[f"{some // MS} ms: {name}"] = prompt, decodes, cost, some + draw.randint(1, 1000)
    return drawn(kept(name, promise) for name, promise in promises.items())


def cost_of(number: Number) -> Cost:
    return {
        "launch": number(5000, 4000, 6000) * 1000,
        "token": number(800, 700, 900) * 100,
        "pair": number(600, 500, 700),
    }


def easy_promises(number: Number) -> dict[str, Promise]:
    promise = number(30, 24, 36)
    return {
        "a generous promise": (number(500, 440, 560), number(8, 4, 12), cost_of(number), number(400, 350, 600) * MS),
        f"{promise} ms": (number(500, 440, 560), number(8, 4, 12), cost_of(number), promise * MS),
    }


def whole_prompt(number: Number) -> dict[str, Promise]:
    prompt, cost = number(300, 200, 400), cost_of(number)
    longest = cost["launch"] + prompt * cost["token"] + prompt * prompt * cost["pair"]
    return {"exactly the whole prompt": (prompt, 0, cost, longest)}


def hard_promises(number: Number) -> dict[str, Promise]:
    nobody, one = cost_of(number), cost_of(number)
    prompt, decodes = number(100, 60, 140), number(8, 4, 12)
    longest = one["launch"] + (decodes + 1) * one["token"] + prompt * one["pair"]
    return {
        "many chats": (number(400, 350, 450), number(300, 250, 320), cost_of(number), number(45, 42, 50) * MS),
        "not even one token": (number(500, 440, 560), number(8, 4, 12), nobody, nobody["launch"]),
        "one token, just": (prompt, decodes, one, longest),
    }


def kept(name: str, promise: Promise) -> Case:
    prompt, decodes, cost, longest = promise
    sizes = [m for m in range(1, prompt + 1) if max(seconds_of(prompt, m, decodes, cost)) <= longest]
    return Case(name, promise, max(sizes, default=0))


def seconds_of(prompt: int, size: int, decodes: int, cost: Cost) -> list[int]:
    return [
        cost["launch"] + cost["token"] * (c.new + decodes) + cost["pair"] * c.new * (c.past + c.new)
        for c in chunking.split(prompt, size)
    ]
