"""Chapter 01: an answer that is a dictionary of results is tried part by part."""

from __future__ import annotations

from typing import Any


def part(answer: Any, key: str) -> Any:
    """One entry of a dictionary."""
    return answer[key]
