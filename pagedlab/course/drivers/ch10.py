"""Chapter 10: ragged batches written down so that they can be read, and a mask that somebody got wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from pagedlab.course.drivers import call
from pagedlab.course.drivers.ch09 import encoder, mask_rows
from pagedlab.course.drivers.records import columns, parts


def ragged(answer: Any, prompts: Sequence[str], ids: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The answer gets prompts as text, and a function that makes tokens of them."""
    return described(*answer(list(prompts), encoder(prompts, ids)))


def described(ids: Any, positions: Any, mask: Any, share: Any) -> dict[str, Any]:
    """Of the mask a text for each query: 1 where it sees a key."""
    return {
        "ids": torch.as_tensor(ids).tolist(),
        "positions": torch.as_tensor(positions).tolist(),
        "mask": mask_rows(mask),
        "share": float(share),
    }


def mask_size(answer: Any, *arguments: Any) -> dict[str, Any]:
    return parts(call(answer, *arguments), "rows", "columns", "True")


def mask_as_found(lengths: Sequence[int]) -> torch.Tensor:
    """The code that question 3 gives."""
    counts = torch.tensor(lengths)
    owner = counts.repeat_interleave(counts)
    same = owner[:, None] == owner[None, :]
    return same & torch.ones(len(owner), len(owner)).tril().bool()


def leaks(lengths: Sequence[int]) -> bool:
    """Does a token see one of another request under the given code?"""
    number = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    strangers = number[:, None] != number[None, :]
    return bool((mask_as_found(lengths) & strangers).any())


def leak(answer: Any) -> dict[str, Any]:
    """Runs the given code on the reader's lengths, and on all batches that have fewer tokens."""
    lengths = list(answer)
    if not lengths or not all(isinstance(n, int) and n >= 1 for n in lengths):
        raise ValueError("a batch is a list of lengths, whole numbers of at least 1")
    smaller = (batch for total in range(1, min(sum(lengths), MANY_TOKENS)) for batch in batches_of(total))
    return {"leaks": leaks(lengths), "a smaller batch leaks": any(map(leaks, smaller))}


MANY_TOKENS = 8
"""From here on no batch is the smallest; looking at all smaller ones would take long."""


def batches_of(tokens: int) -> Iterator[list[int]]:
    """All lists of lengths with so many tokens in all."""
    if tokens == 0:
        yield []
    for first in range(1, tokens + 1):
        for rest in batches_of(tokens - first):
            yield [first, *rest]


def plan(answer: Any, *arguments: Any) -> dict[str, Any]:
    return columns(call(answer, *arguments), "name", "tokens", "yields")


def decode_step(answer: Any, *arguments: Any) -> dict[str, Any]:
    return parts(call(answer, *arguments), "computed", "preempted", "free")
