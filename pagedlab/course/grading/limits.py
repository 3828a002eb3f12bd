"""What a trial may use up: memory, processor time, processes, files."""

from __future__ import annotations

import contextlib
import math
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

PAGE = resource.getpagesize()


@dataclass(frozen=True)
class Limits:
    """Of one trial.

    Attributes:
        seconds: of processor time
        wall_seconds: of time; more, since the machine may be busy
        memory: bytes on top of what the server holds already
        processes: with threads
        file_bytes: of one file
        result_bytes: of all that is sent back
    """

    seconds: float = 20.0
    memory: int = 1 << 30
    processes: int = 32
    file_bytes: int = 32 << 20
    result_bytes: int = 32 << 20

    @property
    def wall_seconds(self) -> float:
        return 2 * self.seconds + 5


def apply(limits: Limits, mapped: int) -> None:
    """Bind this process and its children. What a system does not know is left out (macOS bounds no memory).

    Args:
        mapped: `address_space()` of it
    """
    bound(resource.RLIMIT_CORE, 0)
    bound(resource.RLIMIT_CPU, math.ceil(limits.seconds))
    bound(resource.RLIMIT_FSIZE, limits.file_bytes)
    bound(resource.RLIMIT_NOFILE, 64)
    if sys.platform.startswith("linux"):
        bound(resource.RLIMIT_AS, mapped + limits.memory)
        bound(resource.RLIMIT_NPROC, limits.processes)


def bound(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(kind, (value, value))


def address_space() -> int:
    """Bytes that this process has mapped already; most of them are torch's. Read from /proc, which a trial may lose."""
    if not sys.platform.startswith("linux"):
        return 0
    return int(Path("/proc/self/statm").read_text().split()[0]) * PAGE
