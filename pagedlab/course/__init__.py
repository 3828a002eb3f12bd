"""What the notebooks call: predict and reveal, claim and cite, show_source, check and hint.

The names load on first use: where answers are graded, nothing may load the questions, which know what is expected.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pagedlab.course.claims import cite, claim
    from pagedlab.course.exercises import check, hint
    from pagedlab.course.predictions import Prediction, predict, reveal
    from pagedlab.course.source import show_source
    from pagedlab.errors import ClaimError

_HOMES = {
    "ClaimError": "errors",
    "Prediction": "course.predictions",
    "check": "course.exercises",
    "cite": "course.claims",
    "claim": "course.claims",
    "hint": "course.exercises",
    "predict": "course.predictions",
    "reveal": "course.predictions",
    "show_source": "course.source",
}

__all__ = ["ClaimError", "Prediction", "check", "cite", "claim", "hint", "predict", "reveal", "show_source"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pagedlab.course' has no attribute {name!r}")
    value = getattr(import_module(f"pagedlab.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
