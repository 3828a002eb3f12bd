"""How much memory tensors hold while some code runs: every allocation and release of PyTorch's CPU allocator.

A GPU keeps its own maximum (torch.cuda.max_memory_allocated); the CPU's allocator keeps none, but tells PyTorch's
profiler of every block it hands out and takes back, kernels' scratch space included. What libraries allocate past it
(MKL's and oneDNN's own buffers) is not seen.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class MemoryProfile:
    """Bytes over time of what was allocated while it was watched; what was there before does not count, kept or not.

    Attributes:
        seconds: of each allocation or release, from the first one on
        live_bytes: held after it
    """

    seconds: list[float]
    live_bytes: list[int]

    @property
    def peak_bytes(self) -> int:
        """The most that was held at once."""
        return max(self.live_bytes, default=0)


def profile_memory(run: Callable[[], Result]) -> tuple[Result, MemoryProfile]:
    """Call `run` and watch the CPU's allocator. Slower than without: for measuring bytes, not time.

    Returns:
        what `run` returned, and the profile. Memory that the result holds is still live at its end.
    """
    # Kineto reads this when it first starts, and would otherwise greet on stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        result = run()
    recorder: Any = profiler.profiler
    events = [event for event in recorder.kineto_results.events() if event.name() == "[memory]"]
    events = sorted((event for event in events if event.device_type() == torch.autograd.DeviceType.CPU), key=_start)
    begin = _start(events[0]) if events else 0
    return result, MemoryProfile(
        [(_start(event) - begin) * 1e-9 for event in events], list(accumulate(event.nbytes() for event in events))
    )


def _start(event: Any) -> int:
    return event.start_ns()
