"""How much memory tensors hold while some code runs: every allocation and release of PyTorch's CPU allocator.

A GPU keeps its own maximum (torch.cuda.max_memory_allocated); the CPU's allocator keeps none, but tells PyTorch's
profiler of every block it hands out and takes back, kernels' scratch space included. What libraries allocate past it
(MKL's and oneDNN's own buffers) is not seen.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch._C._profiler import _EventType as EventType

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
    events = sorted(allocations(profiler), key=lambda event: event.start_time_ns)
    held: dict[int, int] = {}
    total, seconds, live = 0, [], []
    for event in events:
        address, amount = event.typed[1].ptr, event.typed[1].alloc_size
        if amount > 0:
            held[address] = amount
            total += amount
        else:
            total -= held.pop(address, 0)  # 0: older than the profile
        seconds.append((event.start_time_ns - events[0].start_time_ns) * 1e-9)
        live.append(total)
    return result, MemoryProfile(seconds, live)


def allocations(profiler: Any) -> Iterator[Any]:
    """Every allocation and release on the CPU that a profiler saw, in no order."""
    waiting = list(profiler.profiler.kineto_results.experimental_event_tree())
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.typed[0] == EventType.Allocation and event.typed[1].device.type == "cpu":
            yield event
