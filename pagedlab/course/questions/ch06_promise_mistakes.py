"""Chapter 06: chunk sizes that people find who bound another step than the longest, or stop too early."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from pagedlab.course.comparison import matches
from pagedlab.course.questions.mistakes import Mistake, any_of
from pagedlab.course.questions.model import Case

Cost = dict[str, int]


@lru_cache(maxsize=16)
def steps_by(
    prompt: int,
    decodes: int,
    launch: int,
    token: int,
    pair: int,
    context: str = "all",
    chats: bool = True,
    launches: bool = True,
) -> list[list[int]]:
    """Nanoseconds of each step, for every chunk size from 1 on; every option is one way to go wrong."""
    found = []
    for size in range(1, prompt + 1):
        steps = []
        for past in range(0, prompt, size):
            new = min(size, prompt - past)
            keys = {"all": past + new, "cached": past, "own": new}[context]
            steps.append(launch * launches + token * (new + decodes * chats) + pair * new * keys)
        found.append(steps)
    return found


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
    steps = steps_by(prompt, decodes, cost["launch"], cost["token"], cost["pair"], **options)

    def keeps(size: int) -> bool:
        worst = measure(steps[size - 1])
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
CHUNK_MISTAKES = any_of(
    chunk_mistake(GROWS, stops=True),
    chunk_mistake(GROWS, halves=True),
    chunk_mistake(SHORT, measure=min),
    chunk_mistake(BACK, measure=lambda s: s[0]),
    chunk_mistake(SHORT, measure=lambda s: s[-1]),
    chunk_mistake("That bounds the whole prefill. The promise is about each step: the chats' gap.", measure=sum),
    chunk_mistake("A mean keeps no promise: every gap must be short enough.", measure=lambda s: sum(s) / len(s)),
    chunk_mistake("The chats' own tokens are missing: each step computes one for each of them.", chats=False),
    chunk_mistake("Each step costs `launch`, however small its chunk is.", launches=False),
    chunk_mistake("A chunk's tokens also look at the chunk itself: past + new keys.", context="cached"),
    chunk_mistake(BACK, context="own"),
    chunk_mistake("That is the smallest size that keeps the promise; the largest is asked.", smallest=True),
    chunk_mistake("A gap as long as the promise keeps it.", below=True),
    chunk_mistake("The chunk size need not be a multiple of the block size.", multiple=16),
    chunk_mistake("If no size keeps the promise the answer is 0.", none=1),
)


def promise_explained(case: Case, got: Any) -> str:
    """Many mistakes give 0, or the whole prompt: then only what is true of the number itself is said."""
    prompt = case.arguments[0]
    if matches(got, 0, 0, False):
        return (
            "Chunks of 1 token keep the promise here, so 0 is wrong. The promise is about each step, not about all of "
            "them together, and a gap as long as the promise keeps it."
        )
    if matches(got, prompt, 0, False):
        return f"All {prompt} tokens in one chunk are one step, and that takes longer than the promise."
    return CHUNK_MISTAKES(case, got)
