"""Chapter 07, question 4: prefixes found by whole blocks, and what people get who share too much."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from pagedlab.course.drivers.ch07 import replay_prefixes
from pagedlab.course.questions.mistakes import Mistake, named
from pagedlab.course.questions.model import Case
from pagedlab.course.questions.twins import Pick, anew, as_shown, drawn
from pagedlab.simulate.kv_memory import KVMemory

Script = list[tuple[Any, ...]]


def engine_finds(block_size: int, script: Script) -> list[int]:
    """The engine's block manager: a prompt is remembered when it has been computed."""
    memory, found = KVMemory(2000, block_size), []
    for name, tokens in script:
        hits = memory.create("one", tokens)
        if name == "find":
            found.append(hits)
        else:
            assert memory.allocate("one", len(tokens))
            memory.write("one", hits, tokens[hits:])
        memory.free("one")
    return found


def prefix_cases() -> Iterable[Case]:
    return scripts(random.Random(5), as_shown)


def prefix_fresh(draw: random.Random) -> Iterable[Case]:
    return drawn(scripts(draw, anew(draw)))


def scripts(draw: random.Random, pick: Pick) -> Iterable[Case]:
    text = [draw.randrange(100, 900) for _ in range(40)]
    for name, size, script in [*short_scripts(text, pick), ("forty prompts of two words", 2, two_words(draw))]:
        yield Case(name, (size, script), engine_finds(size, script))


def short_scripts(text: list[int], pick: Pick) -> Iterable[tuple[str, int, Script]]:
    few, more = (3, 5, 6), (7, 9, 10)
    s = pick(4, few)
    yield "nothing remembered yet", s, [("find", text[: 2 * s + 1])]
    s = pick(4, few)
    yield "one token more than two blocks", s, [("remember", text[: 2 * s + 2]), ("find", text[: 2 * s + 1])]
    s = pick(4, few)
    yield "exactly two blocks", s, [("remember", text[: 2 * s]), ("find", text[: 2 * s])]
    s = pick(8, more)
    yield "one block, sent again", s, [("remember", text[:s]), ("find", text[:s]), ("find", text[:1])]
    s = pick(8, more)
    half = [*text[: s + s // 2], *[1] * (s + 1)]
    yield "in common: one block and a half", s, [("remember", text[: 3 * s + 6]), ("find", half)]
    s = pick(4, few)
    second = text[s : 3 * s + 1]
    after_another = [*range(1, s + 1), *second]
    script = [("remember", text[: 3 * s]), ("find", after_another), ("find", second)]
    yield "the same second block after another first", s, script
    s = pick(4, few)
    hole = [*text[:s], 0, *text[s + 1 : 4 * s + 1]]
    yield "a hole in the middle", s, [("remember", text[: 4 * s]), ("find", hole)]
    s = pick(4, few)
    script = [("remember", text[: s + 2]), ("find", text[: s + 2]), ("find", text[: 3 * s])]
    yield "the last block was only partly full", s, script
    s = pick(4, few)
    sevens = [7] * (3 * s + 1)
    remembered = [("remember", text[: 3 * s + 1]), ("remember", sevens[: 2 * s + 1])]
    yield "two prompts remembered", s, [*remembered, ("find", text[: 3 * s + 1]), ("find", sevens)]
    s = pick(4, few)
    yield "to find is not to remember", s, [("find", text[: 2 * s + 2])] * 2


def two_words(draw: random.Random) -> Script:
    script: Script = []
    for _ in range(40):
        name = draw.choice(["remember", "find"])
        script.append((name, [draw.randrange(2) for _ in range(draw.randrange(1, 12))]))
    return script


class LooseCache:
    """A prefix cache whose options are the ways to go wrong."""

    chained, whole, rounds_up, covers_last, only_latest, learns, units = True, False, False, False, False, False, False
    cap, by_place, to_the_token, stops = "right", False, False, True

    def __init__(self, block_size: int) -> None:
        self.size, self.keys, self.prompts = block_size, set[Any](), list[list[int]]()

    def blocks(self, tokens: list[int]) -> list[Any]:
        ends = range(self.size, len(tokens) + (self.size if self.rounds_up else 1), self.size)
        parts = [tuple(tokens[end - self.size : end]) for end in ends]
        if self.by_place:
            return list(enumerate(parts))
        return [tuple(parts[: i + 1]) for i in range(len(parts))] if self.chained else parts

    def remember(self, tokens: list[int]) -> None:
        if self.only_latest:
            self.keys.clear()
        self.keys.update(self.blocks(tokens))
        self.prompts.append(tokens)

    def find(self, tokens: list[int]) -> int:
        if self.to_the_token:
            return min(len(tokens) - 1, max((common(tokens, known) for known in self.prompts), default=0))
        if self.whole:
            return (len(tokens) - 1) // self.size * self.size if tokens in self.prompts else 0
        keys = self.blocks(tokens if self.cap != "right" or self.rounds_up else tokens[:-1])
        known = [key in self.keys for key in keys]
        count = known.index(False) if self.stops and False in known else sum(known)
        if self.cap == "always":
            count = max(0, count - 1)
        if self.learns:
            self.remember(tokens)
        found = min(count * self.size, len(tokens))
        if self.cap == "token":
            found = min(found, len(tokens) - 1)
        return count if self.units else found


def common(first: list[int], second: list[int]) -> int:
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def prefix_mistake(says: str, **options: Any) -> Mistake:
    kind = type("Mistaken", (LooseCache,), options)
    return Mistake(says, lambda size, script: replay_prefixes(kind, size, script))


PREFIX_MISTAKES = (
    prefix_mistake(
        "A hit covered the last token: its output predicts the next one, so it must be computed.", cap="none"
    ),
    prefix_mistake(
        "Equal tokens in a block are not enough: its keys depend on everything before it. Chain the blocks.",
        chained=False,
    ),
    prefix_mistake(
        "Equal tokens at an equal place are not enough: everything before the block must be equal.", by_place=True
    ),
    prefix_mistake(
        "It went on after a block that was not known: only what leads up to the first gap can be used.",
        by_place=True,
        stops=False,
    ),
    prefix_mistake(
        "It went on after a block that was not known: only what leads up to the first gap can be used.",
        chained=False,
        stops=False,
    ),
    prefix_mistake("Only whole blocks are shared: round down to the block size.", to_the_token=True),
    prefix_mistake("A hit ends at a whole block: without the last token, its block is not taken at all.", cap="token"),
    prefix_mistake("One block too few: only a hit that would cover the last token is cut.", cap="always"),
    prefix_mistake("Tokens are asked, not blocks.", units=True),
    prefix_mistake("Only a prompt that is equal as a whole was found: sharing is by leading blocks.", whole=True),
    prefix_mistake("Only the prompt remembered last is known: nothing is forgotten.", only_latest=True),
    prefix_mistake("Finding a prompt does not compute it: only `remember` adds blocks.", learns=True),
    prefix_mistake("A partly filled block cannot be found: only full ones are remembered.", rounds_up=True),
)
known_prefixes = named(*PREFIX_MISTAKES)


def prefixes_explained(case: Case, got: Any) -> str:
    if not isinstance(got, list):
        return ""
    if got and not any(got):
        return "Nothing was found, though full blocks of this prompt, with all that is before them, were remembered."
    return known_prefixes(case, got)
