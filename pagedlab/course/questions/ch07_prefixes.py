"""Chapter 07, question 4: prefixes found by whole blocks, and what people get who share too much."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from pagedlab.course.drivers.ch07 import replay_prefixes
from pagedlab.course.questions.mistakes import Mistake
from pagedlab.course.questions.model import Case
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
    draw = random.Random(5)
    text = [draw.randrange(100, 900) for _ in range(40)]
    scripts: dict[str, tuple[int, Script]] = {
        "nothing remembered yet": (4, [("find", text[:9])]),
        "one token more than two blocks": (4, [("remember", text[:10]), ("find", text[:9])]),
        "exactly two blocks": (4, [("remember", text[:8]), ("find", text[:8])]),
        "one block, sent again": (8, [("remember", text[:8]), ("find", text[:8]), ("find", text[:1])]),
        "in common: one block and a half": (8, [("remember", text[:30]), ("find", text[:12] + [1] * 9)]),
        "the same second block after another first": (
            4,
            [("remember", text[:12]), ("find", [1, 2, 3, 4, *text[4:13]]), ("find", text[4:13])],
        ),
        "a hole in the middle": (4, [("remember", text[:16]), ("find", [*text[:4], 0, *text[5:17]])]),
        "the last block was only partly full": (4, [("remember", text[:6]), ("find", text[:6]), ("find", text[:12])]),
        "two prompts remembered": (
            4,
            [("remember", text[:13]), ("remember", [7] * 9), ("find", text[:13]), ("find", [7] * 13)],
        ),
        "to find is not to remember": (4, [("find", text[:10]), ("find", text[:10])]),
    }
    random_script: Script = []
    for _ in range(40):
        name = draw.choice(["remember", "find"])
        random_script.append((name, [draw.randrange(2) for _ in range(draw.randrange(1, 12))]))
    scripts["forty prompts of two words"] = (2, random_script)
    for name, (size, script) in scripts.items():
        yield Case(name, (size, script), engine_finds(size, script))


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
