"""Chapter 07: parts are merged one by one; a prefix cache and block tables replay a script of operations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

from pagedlab.course.drivers import call
from pagedlab.course.drivers.records import parts as named_parts

Operation = tuple[Any, ...]
"""("fork", "A", "B"): the name of a method and its arguments."""

NUM_BLOCKS = 8
"""The pool of question 5: small enough that a freed block is soon somebody else's."""


def merge_all(merge: Any, parts: Sequence[Any]) -> dict[str, Any]:
    """All parts merged from left to right, by the reader's function of two."""
    maximum, total, output = reduce(merge, parts)
    return {"maximum": maximum, "sum": total, "output": output}


def replay_prefixes(cache_class: Any, block_size: int, script: Sequence[Operation]) -> list[Any]:
    """What each `find` of the script returns."""
    cache = cache_class(block_size)
    results = [(name, getattr(cache, name)(list(tokens))) for name, tokens in script]
    return [result for name, result in results if name == "find"]


def replay_tables(tables_class: Any, block_size: int, script: Sequence[Operation]) -> dict[str, Any]:
    """Runs the tables over a real pool: copies the blocks that `append` says, writes, and reads every sequence back.

    A token is its sequence's name with its position, so a slot that somebody else wrote to shows. Which ids the
    blocks have does not matter.
    """
    tables = tables_class(NUM_BLOCKS, block_size)
    pool: dict[int, str] = {}
    copies = 0
    for name, *arguments in script:
        position = tables.lengths.get(arguments[0], 0)
        result = getattr(tables, name)(*arguments)
        if name != "append":
            continue
        if result is not None:
            source, target = result
            copies += 1
            for slot in range(block_size):
                if source * block_size + slot in pool:
                    pool[target * block_size + slot] = pool[source * block_size + slot]
        block = tables.tables[arguments[0]][position // block_size]
        pool[block * block_size + position % block_size] = f"{arguments[0]}{position}"
    return {"copies": copies, "free": len(tables.free_blocks), "read back": read_back(tables, pool, block_size)}


def read_back(tables: Any, pool: dict[int, str], block_size: int) -> dict[str, list[str]]:
    return {
        name: [
            pool.get(table[position // block_size] * block_size + position % block_size, "empty")
            for position in range(tables.lengths[name])
        ]
        for name, table in tables.tables.items()
    }


def sharing(answer: Any, *arguments: Any) -> dict[str, Any]:
    return named_parts(call(answer, *arguments), "in use", "saved")
