"""Chapter 02: masks are brought back as rows of signs; a leak detector is let loose on attention of several kinds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor


def mask_rows(answer: Any, *arguments: Any) -> list[str]:
    """A mask as one text a row: ■ may be seen, □ may not (equally wide in any font), ? is neither true nor false."""
    mask = answer(*arguments)
    rows = mask.tolist() if hasattr(mask, "tolist") else [list(row) for row in mask]
    return ["".join("■" if entry == 1 else "□" if entry == 0 else "?" for entry in row) for row in rows]


def leaks_found(answer: Any, kind: str, mask: Tensor, x: Tensor) -> str:
    """What the answer finds in a function of this kind; pairs may come in any order and collection."""
    return leaks_in_words((int(query), int(key)) for query, key in answer(attend_of(kind, mask), x.clone()))


def leaks_in_words(pairs: Iterable[tuple[int, int]]) -> str:
    """ "0←2 1←2" or "none", sorted."""
    return " ".join(f"{query}←{key}" for query, key in sorted(pairs)) or "none"


def attend_of(kind: str, mask: Tensor) -> Callable[[Tensor], Tensor]:
    """A function [n, d] -> [n, d] that mixes rows along `mask`, in one of the ways that a detector must tell apart."""

    def masked(x: Tensor) -> Tensor:
        scores = x @ x.T / math.sqrt(x.shape[1])
        return scores.masked_fill(~mask, -math.inf).softmax(-1) @ x

    def masked_late(x: Tensor) -> Tensor:
        return (x @ x.T / math.sqrt(x.shape[1])).softmax(-1) * mask @ x

    kinds = {
        "mask before softmax": masked,
        "mask after softmax": masked_late,
        "two layers": lambda x: masked(masked(x)),
        "faint": lambda x: x + 1e-4 * masked(x),
    }
    return kinds[kind]
