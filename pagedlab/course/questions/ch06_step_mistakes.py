"""Chapter 06: what people get who plan steps by requests, sample too early, or take chunks for blocks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from pagedlab.course.drivers.ch06 import RequestPlan, ToyModel, replay_prefill, run_plan
from pagedlab.course.questions.mistakes import Mistake, any_of, or_first_difference
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


PLAN_MISTAKES = any_of(
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
    if isinstance(got, str) and any(words in got for words in ("unpack", "not iterable", "zip()")):
        return "Return one pair for each request of the list, in its order: (how many tokens, does it get a token?)."
    return or_first_difference(PLAN_MISTAKES)(case, got)


# ---- q4: a prefill to repair -----------------------------------------------------------------------------------------

FAULTS = {
    "blocks": "The chunks are not of `chunk_size` tokens, which need not be a multiple of the block size.",
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
    if not tokens or returns == "nothing":
        return None
    return tokens[0] if "samples" in faults and returns != "later" else tokens[-1]


def prefill_mistake(says: str, **options: Any) -> Mistake:
    def do(prompt: list[int], chunk_size: int) -> list[str]:
        return replay_prefill(lambda *arguments: prefill_by(*arguments, **options), prompt, chunk_size)

    return Mistake(says, do)


def prefill_faults(size: int) -> list[Mistake]:
    """Every combination of so many of the four faults, returning the first of several sampled tokens, or the last."""
    count = ("", "", "Two faults show here. ", "Three faults show here. ", "All four faults show here. ")
    return [
        prefill_mistake(count[size] + " ".join(FAULTS[fault] for fault in faults), faults=faults, returns=returns)
        for faults in combinations(FAULTS, size)
        for returns in ("last", "later")
    ]


ONE_FAULT = any_of(
    *prefill_faults(1),
    prefill_mistake(
        "The calls are right, but nothing is returned: return what the last call gives.", returns="nothing"
    ),
    prefill_mistake("An empty chunk at the end: the prompt is a multiple of the chunk size.", empty=True),
    prefill_mistake("That is one pass: no step may compute more than `chunk_size` tokens.", whole=True),
    prefill_mistake("Nobody is asked for a token: the last chunk yields the first token of the answer.", asks=False),
    prefill_mistake("A chunk computes a token that is in the cache already.", overlap=1),
)
SEVERAL_FAULTS = [any_of(*prefill_faults(size)) for size in (2, 3, 4)]


def known_prefill_mistakes(case: Case, got: Any) -> str:
    if got == ["first token: None"]:
        return (
            "The model is never called here: what is left of a prompt needs a chunk, too, and here that is all of it."
        )
    return next((says for explain in (ONE_FAULT, *SEVERAL_FAULTS) if (says := explain(case, got))), "")


prefill_explained = or_first_difference(known_prefill_mistakes)
