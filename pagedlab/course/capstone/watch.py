"""Watch: follows one run of parts that a reader wrote, and turns whatever they raise into one sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from pagedlab.errors import CourseError

PARTS = ("mask", "pool", "scheduler", "attention")


class PartError(CourseError):
    """A part that a reader wrote did what the engine cannot go on with."""


@dataclass
class Watch:
    """What the sockets of one engine know together.

    Attributes:
        step: number of the step at hand, from 1; 0 before the first
        calls: how often each method of a part was called
        failure: the first thing that went wrong; what follows from it is not worth telling
    """

    step: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    failure: Exception | None = None

    def call(self, part: str, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a part's method.

        Raises:
            PartError: it raised something.
            NotImplementedError: it is a stub: passed on as it is, which is how an unanswered question is known.
        """
        self.calls[what] += 1
        try:
            return function(*arguments)
        except PartError:
            raise
        except NotImplementedError as error:
            self.failure = self.failure or error
            raise
        except Exception as error:  # the reader's code may raise anything
            self.fail(part, f"{what}() raised {type(error).__name__}: {error}")

    def fail(self, part: str, sentence: str) -> NoReturn:
        when = f"step {self.step}" if self.step else "before the first step"
        # The engine tidies up after a failure, which may fail again: the first one is what the reader must hear of.
        self.failure = self.failure or PartError(f"Your {part}, {when}: {sentence}")
        raise self.failure


def check_part(part: str, given: Any, methods: tuple[str, ...] = ()) -> None:
    """Is it the reader's own, and of the right kind: a class with these methods, or a function if there are none?

    Raises:
        PartError: it is the engine's own, or cannot be plugged in.
    """
    for base in [given, *getattr(given, "__mro__", ())]:
        if str(getattr(base, "__module__", "")).partition(".")[0] == "pagedlab":
            raise PartError(f"That is the engine's own {part} ({base.__name__}): write yours without it.")
    if not methods:
        if not callable(given) or isinstance(given, type):
            raise PartError(f"Your {part} must be a function, not {_kind(given)}.")
        return
    if not isinstance(given, type):
        raise PartError(f"Your {part} must be a class (not yet an object), and it is {_kind(given)}.")
    missing = [name for name in methods if not hasattr(given, name)]
    if missing:
        raise PartError(f"Your {part} has no {' and no '.join(missing)}: the class needs {', '.join(methods)}.")


def _kind(given: Any) -> str:
    return "None" if given is None else f"a {type(given).__name__}"
