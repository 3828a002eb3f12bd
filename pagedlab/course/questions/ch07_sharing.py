"""Chapter 07, questions 5 and 6: copies before writes, what sharing saves, and what goes wrong in both."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pagedlab.course.drivers.ch07 import NUM_BLOCKS, sharing
from pagedlab.course.questions.mistakes import Mistake
from pagedlab.course.questions.model import Case
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
    def grow(name: str, count: int) -> Script:
        return [("append", name)] * count

    start: Script = [("create", "A")]
    scripts: dict[str, tuple[int, Script]] = {
        "no fork at all": (4, start + grow("A", 9)),
        "the child writes first": (4, [*start, *grow("A", 5), ("fork", "A", "B"), *grow("B", 2), *grow("A", 2)]),
        "the parent writes first": (4, [*start, *grow("A", 6), ("fork", "A", "B"), *grow("A", 1), *grow("B", 1)]),
        "a fork at a full block": (4, [*start, *grow("A", 8), ("fork", "A", "B"), *grow("B", 1), *grow("A", 1)]),
        "three children": (
            4,
            [*start, *grow("A", 3), *(("fork", "A", name) for name in "BCD"), *(("append", name) for name in "DCBA")],
        ),
        "the parent ends": (4, [*start, *grow("A", 6), ("fork", "A", "B"), ("end", "A"), *grow("B", 3)]),
        "a stranger comes after the parent": (
            2,
            [
                *start,
                ("create", "Z"),
                *grow("Z", 1),
                *grow("A", 14),
                ("fork", "A", "B"),
                ("end", "A"),
                ("end", "Z"),
                ("create", "C"),
                *grow("C", 2),
            ],
        ),
        "everybody ends": (4, [*start, *grow("A", 5), ("fork", "A", "B"), *grow("B", 1), ("end", "A"), ("end", "B")]),
        "a fork of a fork": (
            2,
            [
                *start,
                *grow("A", 3),
                ("fork", "A", "B"),
                *grow("B", 2),
                ("fork", "B", "C"),
                *grow("C", 2),
                *grow("B", 1),
            ],
        ),
    }
    for name, (size, script) in scripts.items():
        yield Case(name, (size, script), engine_tables(size, script))


def tables_explained(case: Case, got: Any) -> str:
    right = case.expected
    if isinstance(got, str):
        if "IndexError" in got:
            return "No block was free: blocks that nobody holds any more must go back to `free_blocks`."
        return "A block got into a table without a count: get new blocks with take()." if "KeyError" in got else ""
    if not isinstance(got, dict):
        return ""
    texts = [word for text in got["read back"].values() for word in text]
    if got["read back"] != right["read back"]:
        if "empty" in texts:
            return "A slot is empty: the numbers were not copied. `append` must return (old block, new block)."
        if got["copies"] < right["copies"]:
            return "A shared block was written: a sequence has its sibling's words. Copy it first."
        if got["free"] > right["free"]:
            return "A block was freed while others still held it, and a stranger wrote into it."
        return "A sequence reads words that are not its own: after a copy its table must name the new block."
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


# ---- q6: what sharing saves ------------------------------------------------------------------------------------------


def sharing_cases() -> Iterable[Case]:
    for prompt, written, samples, size in (
        (100, 30, 4, 16),
        (64, 30, 4, 16),
        (33, 1, 6, 16),
        (33, 0, 6, 16),
        (10, 50, 3, 16),
        (1000, 200, 2, 32),
        (70, 25, 1, 8),
        (19, 58, 6, 1),
    ):
        family = Family(prompt, samples, max(1, written), size)
        for _ in range(written):
            family.write_token()
        count = family.count()
        name = f"{prompt} + {written} tokens, {samples} samples, blocks of {size}"
        yield Case(name, (prompt, written, samples, size), {"in use": count.held, "saved": count.saving})


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
