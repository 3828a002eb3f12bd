"""Every error pagedlab raises on purpose; each message is one sentence that says what to change."""

from __future__ import annotations


class PagedlabError(Exception):
    """Base class: `except PagedlabError` catches every deliberate refusal."""


class ConfigError(PagedlabError, ValueError):
    """An engine option is out of range, or two options contradict each other."""


class InvalidRequestError(PagedlabError, ValueError):
    """One request cannot be served as asked. The engine and all other requests go on."""


class ModelError(PagedlabError):
    """The model could not be found, read, or recognised."""


class BackendError(PagedlabError):
    """An attention backend was asked for something it cannot do (device, dtype, shape)."""


class GenerationError(PagedlabError):
    """Some requests failed while they ran.

    Attributes:
        outputs: every RequestOutput of the call, failed ones included, in prompt order, so that nothing is lost.
    """

    def __init__(self, message: str, outputs: list | None = None) -> None:
        super().__init__(message)
        self.outputs = outputs or []


class CourseError(PagedlabError, ValueError):
    """A course helper (predict, claim, show, check ...) was called with something it cannot use."""

    def _render_traceback_(self) -> list[str]:
        """What IPython prints: the sentence is enough, the frames inside pagedlab are not the reader's."""
        return [f"{type(self).__name__}: {self}"]


class ClaimError(CourseError, AssertionError):
    """A measurement disagrees with what the course's ledger expects."""


class SimulationError(PagedlabError, ValueError):
    """A simulation was asked for something that cannot be: a size, a rate, a length, or a step out of turn."""


class TraceFileError(PagedlabError, ValueError):
    """A file of requests has rows that cannot be used.

    Attributes:
        problems: one sentence for each bad row, with its line number.
    """

    def __init__(self, message: str, problems: list[str] | None = None) -> None:
        super().__init__(message)
        self.problems = problems or []
