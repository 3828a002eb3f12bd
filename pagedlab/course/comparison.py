"""Are two values the same, part by part, within a tolerance? For claims and for answers to questions."""

from __future__ import annotations

import math
from typing import Any


def matches(measured: Any, expected: Any, tolerance: float, absolute: bool) -> bool:
    """Does `measured` have the shape of `expected`, and each of its numbers the right value?

    Args:
        measured, expected: numbers, truths, texts, None, and lists and dictionaries of them (see display.plain_value).
        tolerance: the greatest difference of a number, relative to the expected one; 0 is exact.
        absolute: the tolerance is the difference itself.
    """
    if isinstance(expected, list):
        same_length = isinstance(measured, list) and len(measured) == len(expected)
        return same_length and all(matches(m, e, tolerance, absolute) for m, e in zip(measured, expected, strict=True))
    if isinstance(expected, dict):
        # JSON has only text as keys: {"16": 1} may be measured as {16: 1}.
        keyed = {str(key): value for key, value in measured.items()} if isinstance(measured, dict) else {}
        return len(keyed) == len(expected) and all(
            str(key) in keyed and matches(keyed[str(key)], value, tolerance, absolute)
            for key, value in expected.items()
        )
    if isinstance(expected, (bool, str)) or isinstance(measured, (bool, str)):
        return type(measured) is type(expected) and measured == expected
    if not isinstance(measured, (int, float)) or not isinstance(expected, (int, float)):
        return measured == expected
    if tolerance == 0:
        return measured == expected
    if not math.isfinite(measured) or not math.isfinite(expected):
        return False
    return abs(measured - expected) <= tolerance * (1.0 if absolute else abs(expected))
