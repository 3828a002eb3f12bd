"""What the command line reads from a terminal or a pipe, and how text is shown there and stopped by Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from pagedlab.errors import InvalidRequestError

if TYPE_CHECKING:
    from pagedlab.interfaces.llm import LLM
    from pagedlab.sampling_params import SamplingParams


@contextlib.contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Within the block the first Ctrl-C only makes the function true: a step is not torn apart. The second ends all."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGINT, before)


def print_stream(llm: LLM, prompt: Any, params: SamplingParams, is_enough: Callable[[], bool] = lambda: False) -> str:
    """Print the text as it comes, until it ends or `is_enough` says so, and return it."""
    pieces = []
    with contextlib.closing(llm.stream(prompt, params)) as stream:  # closing it aborts what is left
        for piece in stream:
            print(piece, end="", flush=True)
            pieces.append(piece)
            if is_enough():
                break
    print()
    return "".join(pieces)


def read_line(prompt: str) -> str | None:
    """A stripped line, or None at the end of the input."""
    try:
        return read_input(lambda: input(prompt)).strip()
    except EOFError:
        print()
        return None


def read_input(read: Callable[[], str]) -> str:
    """Text from standard input.

    Raises:
        InvalidRequestError: there is none, or it is not UTF-8.
    """
    if sys.stdin is None:  # closed, as in `pagedlab chat <&-`
        raise InvalidRequestError("There is no standard input: give the text on the command line.")
    try:
        text = read()
        text.encode()  # bytes that are no UTF-8 may have come in as halves of surrogate pairs
    except UnicodeError:
        raise InvalidRequestError("The input is not UTF-8: convert it first (iconv -t UTF-8).") from None
    return text
