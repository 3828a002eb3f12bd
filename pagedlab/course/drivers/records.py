"""Results of several parts get names, so that a reader sees which number is which."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def parts(values: Iterable[Any], *names: str) -> dict[str, Any]:
    """A name for each of the values that were returned."""
    found = tuple(values)
    if len(found) != len(names):
        raise ValueError(f"{len(names)} things are asked ({', '.join(names)}), {len(found)} came back")
    return dict(zip(names, found, strict=True))


def columns(rows: Iterable[Any], *names: str) -> dict[str, list[Any]]:
    """Of a list of tuples, the first parts of all, the second parts of all, ..., by name."""
    records = [parts(row, *names) for row in rows]
    return {name: [record[name] for record in records] for name in names}
