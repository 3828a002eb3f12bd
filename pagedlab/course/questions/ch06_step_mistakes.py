"""Chapter 06: what people get who plan steps by requests, sample too early, or take chunks for blocks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from pagedlab.course.drivers.ch06 import RequestPlan, ToyModel, replay_prefill, run_plan
from pagedlab.course.questions.mistakes import Mistake, named, or_first_difference
from pagedlab.course.questions.model import Case

# ---- q3: one step's plan ---------------------------------------------------------------------------------------------

States = Sequence[tuple[int, int]]


def plan_by(
    requests: States,
    budget: int,
    limit: int,
    counts: str = "tokens",
    limited: str = "each",
    spends: bool = True,
    samples: str = "caught up",
    whole_blocks: bool = False,
    whole_only: bool = False,
    backwards: bool = False,
    decodes_first: bool = False,
    lacks: str = "rest",
    stops: bool = False,
    shared: bool = False,
) -> list[tuple[int, bool]]:
    """One step; every option is one way to go wrong."""
    left = min(budget, limit) if limited == "all" else budget
    plan = [(0, False)] * len(requests)
    order = list(range(len(requests)))[:: -1 if backwards else 1]
    if decodes_first:
        order.sort(key=lambda i: requests[i][0] - requests[i][1] != 1)
    for i in order:
        known, computed = requests[i]
        lack = known - computed if lacks == "rest" else known
        count = min(lack, limit if limited == "each" else lack, left if counts == "tokens" else lack)
        if shared:
            count = min(lack, limit, budget // len(requests))
        if whole_blocks and count > 1:
            count = max(1, count // 16 * 16)
        if (whole_only and count < lack) or (counts == "requests" and left < 1):
            count = 0
        if spends:
            left -= 1 if counts == "requests" else count
        sampled = {
            "caught up": count == known - computed and count > 0,
            "always": count > 0,
            "decodes": count == 1 == known - computed,
            "even at 0": count == min(known - computed, limit),
            "never": False,
        }[samples]
        plan[i] = (count, sampled)
        if stops and count < lack:
            break
    return plan


def plan_mistake(says: str, **options: Any) -> Mistake:
    def do(requests: Sequence[RequestPlan], budget: int, limit: int) -> list[str]:
        return run_plan(lambda *arguments: plan_by(*arguments, **options), requests, budget, limit)

    return Mistake(says, do)


PLAN_MISTAKES = named(
    plan_mistake("The budget counts tokens of the step, not requests.", counts="requests"),
    plan_mistake("The limit is missing: one request may not take more than `limit` tokens of a step.", limited="no"),
    plan_mistake("The limit is for each request; all together share the budget.", limited="all"),
    plan_mistake("The budget is for all requests together: what one takes, the next ones lack.", spends=False),
    plan_mistake(
        "A chunk that is not the last yields no token: what follows is the prompt's own next token.", samples="always"
    ),
    plan_mistake("The last chunk of a prompt yields a token, too: the first of the answer.", samples="decodes"),
    plan_mistake("Nobody gets a token: a request that has caught up with its last token does.", samples="never"),
    plan_mistake(
        "A chunk need not be whole blocks: chunk size and block size have nothing to do with each other.",
        whole_blocks=True,
    ),
    plan_mistake("A prompt that does not fit whole is not put off: it gets a chunk of what is left.", whole_only=True),
    plan_mistake("Decodes have no right of way here: the first request in the list comes first.", decodes_first=True),
    plan_mistake("The first request in the list comes first.", backwards=True),
    plan_mistake("What is computed is in the cache: a request lacks known - computed tokens.", lacks="all"),
    plan_mistake(
        "A request that gets a chunk only does not end the step: the next ones may use what is left.", stops=True
    ),
    plan_mistake(
        "The budget is not cut into equal parts: a decode needs one token of it, a prompt takes what is left.",
        shared=True,
    ),
)


def plan_explained(case: Case, got: Any) -> str:
    if isinstance(got, str):
        return "Return one pair for each request of the list, in its order: (how many tokens, does it get a token?)."
    return or_first_difference(PLAN_MISTAKES)(case, got)


# ---- q4: a prefill to repair -----------------------------------------------------------------------------------------

FAULTS = {
    "blocks": "The chunk size need not be a multiple of the block size.",
    "rest": "The rest of the prompt is lost: the number of chunks is rounded up.",
    "positions": "Positions go on from chunk to chunk: they begin at the chunk's start, not at 0.",
    "samples": "Only the last chunk is asked for a token: what follows another one is the prompt's own next token.",
}


def prefill_by(
    model: ToyModel,
    prompt: list[int],
    chunk_size: int,
    faults: tuple[str, ...] = (),
    returns: str = "last",
    empty: bool = False,
    whole: bool = False,
    asks: bool = True,
    overlap: int = 0,
) -> int | None:
    """A prefill in chunks; `faults` and every option are ways to go wrong."""
    size = max(16, chunk_size // 16 * 16) if "blocks" in faults else len(prompt) if whole else chunk_size
    count = len(prompt) // size if "rest" in faults else len(prompt) // size + 1 if empty else -(-len(prompt) // size)
    tokens = []
    for i in range(count):
        chunk = prompt[max(0, i * size - overlap) : (i + 1) * size]
        first = 0 if "positions" in faults else max(0, i * size - overlap)
        positions = range(first, first + len(chunk))
        last = i == count - 1
        tokens.append(model.forward(chunk, positions, asks and (last or "samples" in faults)))
    if not tokens:
        return None
    return tokens[0] if returns == "first" or ("samples" in faults and returns != "later") else tokens[-1]


def prefill_mistake(says: str, **options: Any) -> Mistake:
    def do(prompt: list[int], chunk_size: int) -> list[str]:
        return replay_prefill(lambda *arguments: prefill_by(*arguments, **options), prompt, chunk_size)

    return Mistake(says, do)


def left_over(faults: tuple[str, ...]) -> str:
    count = ("", "One fault is left.", "Two faults are left.", "Three faults are left.", "All four faults are left.")
    return " ".join([count[len(faults)], *(FAULTS[fault] for fault in faults)])


PREFILL_MISTAKES = named(
    *(
        prefill_mistake(left_over(faults), faults=faults, returns=returns)
        for size in (1, 2, 3, 4)
        for faults in combinations(FAULTS, size)
        for returns in ("last", "later")
    ),
    prefill_mistake("The first chunk yields no token: return the last chunk's.", returns="first"),
    prefill_mistake("An empty chunk at the end: the prompt is a multiple of the chunk size.", empty=True),
    prefill_mistake("That is one pass: no step may compute more than `chunk_size` tokens.", whole=True),
    prefill_mistake("Nobody is asked for a token: the last chunk yields the first token of the answer.", asks=False),
    prefill_mistake("A chunk computes a token that is in the cache already.", overlap=1),
)
prefill_explained = or_first_difference(PREFILL_MISTAKES)

# ---- q5: a promise ---------------------------------------------------------------------------------------------------

Cost = dict[str, int]


def steps_by(
    prompt: int, size: int, decodes: int, cost: Cost, context: str = "all", chats: bool = True, launch: bool = True
) -> list[int]:
    steps = []
    for past in range(0, prompt, size):
        new = min(size, prompt - past)
        keys = {"all": past + new, "cached": past, "own": new}[context]
        rows = new + decodes * chats
        steps.append(cost["launch"] * launch + cost["token"] * rows + cost["pair"] * new * keys)
    return steps


def largest_by(
    prompt: int,
    decodes: int,
    cost: Cost,
    promise: int,
    measure: Any = max,
    stops: bool = False,
    smallest: bool = False,
    below: bool = False,
    multiple: int = 1,
    halves: bool = False,
    none: int = 0,
    **options: Any,
) -> int:
    """The chunk size that somebody finds; every option is one way to go wrong."""

    def keeps(size: int) -> bool:
        worst = measure(steps_by(prompt, size, decodes, cost, **options))
        return bool(worst < promise if below else worst <= promise)

    if halves:
        low, high = 0, prompt
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if keeps(middle) else (low, middle - 1)
        return low
    kept = [size for size in range(multiple, prompt + 1, multiple) if keeps(size)]
    if stops:
        sizes = range(1, prompt + 1)
        return next((size - 1 for size in sizes if not keeps(size)), prompt)
    return (min(kept) if smallest else max(kept)) if kept else none


def chunk_mistake(says: str, **options: Any) -> Mistake:
    return Mistake(says, lambda *arguments: largest_by(*arguments, **options))


GROWS = "The worst gap does not always grow with the size: where the last chunk gets shorter, it falls. Try all sizes."
SHORT = "The last chunk may be a short one, and is then the shortest step: take the longest of all."
BACK = "Later chunks look back at the cached tokens, too: with as many new tokens they take longer than the first."
CHUNK_MISTAKES = (
    chunk_mistake(GROWS, stops=True),
    chunk_mistake(GROWS, halves=True),
    chunk_mistake(SHORT, measure=min),
    chunk_mistake(BACK, measure=lambda s: s[0]),
    chunk_mistake(SHORT, measure=lambda s: s[-1]),
    chunk_mistake("That bounds the whole prefill. The promise is about each step: the chats' gap.", measure=sum),
    chunk_mistake("A mean keeps no promise: every gap must be short enough.", measure=lambda s: sum(s) / len(s)),
    chunk_mistake("The chats' own tokens are missing: each step computes one for each of them.", chats=False),
    chunk_mistake("Each step costs `launch`, however small its chunk is.", launch=False),
    chunk_mistake("A chunk's tokens also look at the chunk itself: past + new keys.", context="cached"),
    chunk_mistake(BACK, context="own"),
    chunk_mistake("That is the smallest size that keeps the promise; the largest is asked.", smallest=True),
    chunk_mistake("A gap as long as the promise keeps it.", below=True),
    chunk_mistake("The chunk size need not be a multiple of the block size.", multiple=16),
    chunk_mistake("If no size keeps the promise the answer is 0.", none=1),
)
