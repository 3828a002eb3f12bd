"""The requests that `pagedlab bench` runs: fixed by a seed, the same for every engine."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """One request: generate exactly `max_tokens` tokens, greedily, end of text ignored."""

    prompt_token_ids: list[int]
    max_tokens: int


def offline_jobs(
    count: int,
    vocab_size: int,
    seed: int = 0,
    input_range: tuple[int, int] = (16, 256),
    output_range: tuple[int, int] = (16, 128),
) -> list[Job]:
    """Random prompts whose lengths, and whose outputs' lengths, are uniform over the ranges (bounds included)."""
    draw = random.Random(seed)
    lengths = [(draw.randint(*input_range), draw.randint(*output_range)) for _ in range(count)]
    return [Job([draw.randrange(vocab_size) for _ in range(n)], m) for n, m in lengths]


def shared_prefix_jobs(
    count: int, vocab_size: int, seed: int = 0, prefix: int = 512, tail: int = 16, output: int = 16
) -> list[Job]:
    """Prompts that begin with the same `prefix` tokens and end with `tail` of their own."""
    draw = random.Random(seed)
    stem = [draw.randrange(vocab_size) for _ in range(prefix)]
    return [Job(stem + [draw.randrange(vocab_size) for _ in range(tail)], output) for _ in range(count)]
