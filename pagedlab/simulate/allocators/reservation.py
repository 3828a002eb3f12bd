"""How many slots a request is given at its start, by allocators that keep each request in one run.

The three ways that the vLLM paper compares with (arXiv 2309.06180, section 6.1, "Orca").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Reservation: TypeAlias = Callable[[int, int, int], int]
"""(prompt tokens, output tokens, window) -> slots, at least prompt + output, at most the window."""


def reserve_max(prompt_tokens: int, output_tokens: int, window: int) -> int:
    """The whole window, whatever comes."""
    return window


def reserve_power_of_two(prompt_tokens: int, output_tokens: int, window: int) -> int:
    """The prompt, and the output rounded up to a power of two: at most twice what it needs."""
    return min(window, prompt_tokens + round_up_to_power_of_two(output_tokens))


def reserve_oracle(prompt_tokens: int, output_tokens: int, window: int) -> int:
    """Exactly what will be needed. Nobody knows that in advance: it is the best that reserving could ever do."""
    return prompt_tokens + output_tokens


def round_up_to_power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
