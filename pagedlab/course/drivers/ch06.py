"""Chapter 06: a planner runs to the end, a prefill runs on a toy model that writes down what it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pagedlab.course.drivers import call

MAX_STEPS = 60
"""A plan that gets nobody further would never end."""

RequestPlan = tuple[int, int, int]
"""Prompt tokens, answer tokens, the step before which it arrives."""


def run_plan(plan_step: Any, requests: Sequence[RequestPlan], budget: int, limit: int) -> list[str]:
    """Each step in words: "A 64, B 1*" computes 64 tokens of A and one of B, and B gets a token from it."""
    known = [prompt for prompt, _, _ in requests]
    computed = [0] * len(requests)
    ends = [prompt + answer for prompt, answer, _ in requests]
    lines: list[str] = []
    for step in range(MAX_STEPS):
        alive = [i for i, request in enumerate(requests) if request[2] <= step and known[i] < ends[i]]
        if not alive and all(request[2] <= step for request in requests):
            return lines
        plan = call(plan_step, [(known[i], computed[i]) for i in alive], budget, limit)
        words = []
        for i, (count, sampled) in zip(alive, plan, strict=True):
            words.append(f"{'ABCDEFGH'[i]} {int(count)}{'*' if sampled else ''}")
            computed[i] += int(count)
            known[i] += bool(sampled)
        lines.append(", ".join(words))
    return [*lines, "and so on, without end"]


class ToyModel:
    """Its next token depends on every token in the cache and on its position."""

    def __init__(self) -> None:
        self.cache: dict[int, int] = {}
        self.calls: list[str] = []

    def forward(self, tokens: Sequence[int], positions: Sequence[int], sample: bool) -> int | None:
        """Compute these tokens into the cache; with `sample`, return the token that follows the last one."""
        placed = list(zip(tokens, positions, strict=True))
        span = f"positions {placed[0][1]} to {placed[-1][1]}" if placed else "no positions"
        self.calls.append(f"{span}{', sampled' if sample else ''}")
        self.cache.update((int(position), int(token)) for token, position in placed)
        return next_token(self.cache) if sample else None


def next_token(cache: dict[int, int]) -> int:
    return sum((position + 1) * token for position, token in cache.items()) % 1009


def replay_prefill(prefill: Any, prompt: Sequence[int], chunk_size: int) -> list[str]:
    model = ToyModel()
    first_token = prefill(model, list(prompt), chunk_size)
    return [*model.calls, f"first token: {first_token}"]
