"""How an answer is tried: functions (answer, *arguments) -> plain result, one module a chapter that needs its own.

They run in the same process as the answer, which in grading is an isolated one. So nothing here, and nothing that this
imports, may know a right result: cases and expected values live in pagedlab.course.questions.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

MAX_ITEMS = 1_000_000
"""Of an endless generator, no more than these are taken."""


def call(answer: Any, *arguments: Any) -> Any:
    """A function is called, anything else is the result itself; a generator counts as the list of its items."""
    got = answer(*arguments) if callable(answer) else answer
    return list(islice(got, MAX_ITEMS)) if isinstance(got, Iterator) else got
