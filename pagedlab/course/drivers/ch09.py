"""Chapter 09: a tokenizer that knows the case's prompts, and padded inputs written down so that they can be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from pagedlab.course.drivers import call
from pagedlab.course.drivers.records import columns, parts

Encode = Callable[[str], list[int]]


def encoder(prompts: Sequence[str], ids: Sequence[Sequence[int]]) -> Encode:
    """What a tokenizer does, for these prompts only."""
    known = {prompt: list(tokens) for prompt, tokens in zip(prompts, ids, strict=True)}
    return lambda text: list(known[text])


def rectangle(answer: Any, prompts: Sequence[str], ids: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The answer gets prompts as text, and a function that makes tokens of them."""
    return parts(answer(list(prompts), encoder(prompts, ids)), "tokens", "pads", "useful")


def joining(answer: Any, *arguments: Any) -> dict[str, Any]:
    return parts(call(answer, *arguments), "pads", "cells")


def launches(answer: Any, *arguments: Any) -> dict[str, Any]:
    return columns(call(answer, *arguments), "start", "requests")


def seats(answer: Any, *arguments: Any) -> dict[str, Any]:
    return columns(call(answer, *arguments), "waited", "for nobody")


def padded_inputs(answer: Any, rows: Sequence[Sequence[int]], pad: int) -> dict[str, Any]:
    return described(*answer([list(row) for row in rows], pad))


def described(ids: Any, mask: Any, positions: Any) -> dict[str, Any]:
    """ids and positions [rows, width]; of the mask [rows, width, width] a text a query: 1 where it sees a key."""
    pictures = [mask_rows(one) for one in torch.as_tensor(mask).bool()]
    return {
        "ids": torch.as_tensor(ids).tolist(),
        "positions": torch.as_tensor(positions).tolist(),
        "mask": pictures,
    }


def mask_rows(mask: Any) -> list[str]:
    """A mask [queries, keys] as texts such as "1100"."""
    return ["".join("1" if seen else "0" for seen in row) for row in torch.as_tensor(mask).bool().tolist()]
