"""Chapter 07, questions 5 and 6: copies before writes, what sharing saves, and what goes wrong in both."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import permutations
from random import Random
from typing import Any

from pagedlab.course.drivers.ch07 import NUM_BLOCKS, sharing
from pagedlab.course.questions.mistakes import Mistake, named
from pagedlab.course.questions.model import Case
from pagedlab.course.questions.twins import Pick, anew, as_shown, drawn
from pagedlab.simulate.kv_memory import KVMemory
from pagedlab.simulate.sharing import Family

Script = list[tuple[Any, ...]]

# ---- q5: copy before the write ---------------------------------------------------------------------------------------


def engine_tables(block_size: int, script: Script, num_blocks: int = NUM_BLOCKS) -> dict[str, Any]:
    memory = KVMemory(num_blocks + 1, block_size, enable_prefix_caching=False)
    words: list[str] = []
    for name, *arguments in script:
        owner = arguments[0]
        if name == "append":
            length = memory.requests[owner].num_computed_tokens
            assert memory.allocate(owner, length + 1)
            words.append(f"{owner}{length}")
            memory.write(owner, length, [len(words) - 1])
        else:
            method: Any = {"create": memory.create, "fork": memory.fork, "end": memory.free}[name]
            method(*arguments)
    memory.check_integrity()
    texts = {owner: [words[token] for token in memory.gather(owner)] for owner in memory.requests}
    return {"copies": memory.num_copies, "free": memory.num_free, "read back": texts}


def table_cases() -> Iterable[Case]:
    return table_scripts(as_shown)


def table_fresh(draw: Random) -> Iterable[Case]:
    return drawn(table_scripts(anew(draw)))


def table_scripts(pick: Pick) -> Iterable[Case]:
    for name, size, script in scripts(pick):
        yield Case(name, (size, script), engine_tables(size, script))


def scripts(pick: Pick) -> Iterable[tuple[str, int, Script]]:
    a, b, c, d, z = pick(tuple("ABCDZ"), [*permutations("EFGHK")])
    start: Script = [("create", a)]
    fork: Script = [("fork", a, b)]
    s = pick(4, (3, 5, 6))
    yield "no fork at all", s, start + grow(a, 2 * s + 1)
    s = pick(4, (3, 5, 6))
    yield "the child writes first", s, start + grow(a, s + 1) + fork + grow(b, 2) + grow(a, 2)
    s = pick(4, (3, 5, 6))
    yield "the parent writes first", s, start + grow(a, s + 2) + fork + grow(a, 1) + grow(b, 1)
    s = pick(4, (3, 5, 6))
    yield "a fork at a full block", s, start + grow(a, 2 * s) + fork + grow(b, 1) + grow(a, 1)
    s = pick(4, (3, 5, 6))
    children: Script = [("fork", a, child) for child in (b, c, d)]
    yield "three children", s, start + grow(a, s - 1) + children + [("append", name) for name in (d, c, b, a)]
    s = pick(4, (3, 5, 6))
    yield "the parent ends", s, [*start, *grow(a, s + 2), *fork, ("end", a), *grow(b, s - 1)]
    s = pick(2, (3, 4, 5))
    full: Script = [*start, ("create", z), *grow(z, 1), *grow(a, 7 * s)]
    yield "a stranger comes after the parent", s, [*full, *fork, ("end", a), ("end", z), ("create", c), *grow(c, s)]
    s = pick(4, (3, 5, 6))
    yield "everybody ends", s, [*start, *grow(a, s + 1), *fork, *grow(b, 1), ("end", a), ("end", b)]
    s = pick(2, (3, 4, 5))
    yield "a fork of a fork", s, [*start, *grow(a, s + 1), *fork, *grow(b, s), ("fork", b, c), *grow(c, s), *grow(b, 1)]


def grow(name: str, count: int) -> Script:
    return [("append", name)] * count


def tables_explained(case: Case, got: Any) -> str:
    right = case.expected
    if isinstance(got, str):
        if re.match("IndexError: pop from", got):
            return "No block was free: blocks that nobody holds any more must go back to `free_blocks`."
        known = re.match(r"KeyError: \d", got)
        return "A block got into a table without a count: get new blocks with take()." if known else ""
    if got["read back"] != right["read back"]:
        return misread(got, right)
    if got["copies"] < right["copies"]:
        return "The copy was not reported: return (old block, new block)."
    if got["copies"] > right["copies"]:
        return (
            "Too many copies: a block that a sequence holds alone is written in place, so the last holder copies "
            "nothing."
        )
    if got["free"] > right["free"]:
        return "A block was freed while others still held it."
    return "Blocks are lost: nobody holds them, and they are not free. Lower the count of a block that you leave."


def misread(got: dict[str, Any], right: dict[str, Any]) -> str:
    """Of sequences that are not read back as they were written."""
    texts, wanted = got["read back"], right["read back"]
    if ended := [name for name in texts if name not in wanted]:
        return f"{ended[0]} has ended, and still has a table: `end` takes it out of `tables`."
    if {name: len(text) for name, text in texts.items()} != {name: len(text) for name, text in wanted.items()}:
        return "`lengths` counts a sequence's tokens: each `append` is one more."
    if any("empty" in text for text in texts.values()):
        return "A slot is empty: the numbers were not copied. `append` must return (old block, new block)."
    if got["copies"] < right["copies"]:
        return "A shared block was written: a sequence has its sibling's words. Copy it first."
    if got["free"] > right["free"]:
        return "A block was freed while others still held it, and a stranger wrote into it."
    if right["copies"]:
        return "A sequence reads words that are not its own: after a copy its table must name the new block."
    return ""


# ---- q6: what sharing saves ------------------------------------------------------------------------------------------


def sharing_cases() -> Iterable[Case]:
    return moments(as_shown)


def sharing_fresh(draw: Random) -> Iterable[Case]:
    return drawn(moments(anew(draw)))


def moments(pick: Pick) -> Iterable[Case]:
    """A prompt is some full blocks and some tokens of the next; what follows grows with the block size."""
    for full, rest, written, samples, size in (
        (pick(6, range(3, 9)), 4, 30, pick(4, range(3, 7)), 16),
        (pick(4, range(3, 9)), 0, 30, pick(4, range(3, 7)), 16),
        (pick(2, range(1, 9)), 1, 1, pick(6, range(3, 9)), 16),
        (pick(2, range(1, 9)), 1, 0, pick(6, range(3, 9)), 16),
        (0, 10, 50, pick(3, range(2, 9)), 16),
        (pick(31, range(20, 40)), 8, 200, pick(2, range(2, 5)), 32),
        (pick(8, range(3, 12)), 6, 25, 1, 8),
        (pick(19, range(9, 30)), 0, pick(58, range(40, 70)), pick(6, range(3, 9)), 1),
    ):
        times = pick(1, range(1, 4)) if size > 1 else 1
        yield sharing_case((full * size + rest) * times, written * times, samples, size * times)


def sharing_case(prompt: int, written: int, samples: int, size: int) -> Case:
    family = Family(prompt, samples, max(1, written), size)
    for _ in range(written):
        family.write_token()
    count = family.count()
    name = f"{prompt} + {written} tokens, {samples} samples, blocks of {size}"
    return Case(name, (prompt, written, samples, size), {"in use": count.held, "saved": count.saving})


def up(tokens: int, size: int) -> int:
    return -(-tokens // size)


def sharing_mistake(says: str, held: Any = None, answer: Any = None) -> Mistake:
    """`held` replaces the count of the blocks in use, `answer` what is made of it and of the unshared count."""

    def right(prompt: int, written: int, samples: int, size: int) -> int:
        table = up(prompt + written, size)
        shared = prompt // size if written else table
        return shared + samples * (table - shared)

    def do(prompt: int, written: int, samples: int, size: int) -> tuple[float, float]:
        in_use = (held or right)(prompt, written, samples, size)
        unshared = samples * up(prompt + written, size)
        return answer(in_use, unshared) if answer else (in_use, 1 - in_use / unshared)

    return Mistake(says, lambda *arguments: sharing(do, *arguments))


SHARING_MISTAKES = (
    sharing_mistake(
        "The prompt's last, partly filled block is not shared any more: it was copied before the first write into it.",
        lambda p, w, k, s: up(p, s) + k * (up(p + w, s) - up(p, s)),
    ),
    sharing_mistake(
        "An answer begins in the copy of the prompt's last block: count blocks of prompt and answer together.",
        lambda p, w, k, s: p // s + k * up(w, s),
    ),
    sharing_mistake(
        "An answer begins in the copy of the prompt's last block: count blocks of prompt and answer together.",
        lambda p, w, k, s: up(p, s) + k * up(w, s),
    ),
    sharing_mistake(
        "Nothing is written yet, so nothing was copied: the partly filled block is shared too.",
        lambda p, w, k, s: p // s + k * (up(p + w, s) - p // s),
    ),
    sharing_mistake("Samples share the full blocks of their prompt.", lambda p, w, k, s: k * up(p + w, s)),
    Mistake(
        "Sharing is by whole blocks: a share of tokens is not the share of blocks.",
        lambda p, w, k, s: {
            "in use": k * up(p + w, s) - (k - 1) * (p // s if w else up(p, s)),
            "saved": (k - 1) * p / (k * (p + w)),
        },
    ),
    sharing_mistake(
        "The prompt's own sequence is one of the samples: there are as many tables as samples.",
        lambda p, w, k, s: p // s + (k + 1) * (up(p + w, s) - p // s),
    ),
    sharing_mistake("That is the share of blocks in use; asked is the share saved.", answer=lambda h, u: (h, h / u)),
    sharing_mistake("Asked is a share from 0 to 1, not per cent.", answer=lambda h, u: (h, 100 * (1 - h / u))),
    sharing_mistake(
        "That is how many blocks are saved; the first number is how many are in use.",
        answer=lambda h, u: (u - h, 1 - h / u),
    ),
    sharing_mistake("The share is of the blocks that it takes without sharing.", answer=lambda h, u: (h, (u - h) / h)),
)
known_sharing = named(*SHARING_MISTAKES)


def sharing_explained(case: Case, got: Any) -> str:
    if isinstance(got, dict) and got["in use"] == 0:
        return "A prompt takes at least one block."
    return known_sharing(case, got)
