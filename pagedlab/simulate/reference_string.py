"""What a list of page numbers costs: replayed on the machine under a policy, and the bound that no policy can beat.

Belady, Nelson and Shedler, An anomaly in space-time characteristics of certain programs running in a paging machine,
1969; Mattson et al., Evaluation techniques for storage hierarchies, 1970 (LRU is a stack algorithm, FIFO is not).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pagedlab.errors import ConfigError
from pagedlab.simulate.virtual_memory import Event, VirtualMemory


@dataclass(frozen=True, slots=True)
class Step:
    """One access of a replay: what was asked for, whether it faulted, and the page in each frame afterwards."""

    page: int
    fault: bool
    resident: tuple[int | None, ...]


def replay(pages: Sequence[int], num_frames: int, policy: str) -> Iterator[Step]:
    """Run a list of page numbers through a machine of `num_frames` frames, with pages of a single byte.

    Args:
        pages: page numbers, 0 or more, in the order of the accesses.
        num_frames: frames, at least 1.
        policy: fifo, lru or clock.
    """
    machine = VirtualMemory(num_frames, page_size=1, policy=policy)
    machine.create("replay", bytes(max(pages, default=-1) + 1))
    for page in pages:
        before = machine.num_faults
        machine.read("replay", page)
        resident = tuple(frame.pages[0].number if frame.pages else None for frame in machine.frames)
        yield Step(page, machine.num_faults > before, resident)


def count_faults(pages: Sequence[int], num_frames: int, policy: str) -> int:
    """Faults of `replay`."""
    return sum(step.fault for step in replay(pages, num_frames, policy))


def fewest_faults(pages: Sequence[int], num_frames: int) -> int:
    """Faults of the best possible choices, for which one must know the future: empty the frame whose page is needed
    last (Belady's MIN).

    Args:
        pages: page numbers in the order of the accesses.
        num_frames: frames, at least 1.
    """
    if num_frames < 1:
        raise ConfigError(f"num_frames must be at least 1, got {num_frames}.")
    next_use: list[int] = [0] * len(pages)
    later: dict[int, int] = {}
    for index in reversed(range(len(pages))):
        next_use[index] = later.get(pages[index], len(pages))
        later[pages[index]] = index
    resident: dict[int, int] = {}
    faults = 0
    for page, following in zip(pages, next_use, strict=True):
        if page not in resident:
            faults += 1
            if len(resident) == num_frames:
                del resident[max(resident, key=resident.__getitem__)]
        resident[page] = following
    return faults


def residency(events: Iterable[Event], owner: str, num_pages: int, num_accesses: int) -> np.ndarray:
    """When each page of a program was in memory: bool [num_pages, num_accesses], from the first events of a machine."""
    resident = np.zeros((num_pages, num_accesses), bool)
    for event in events:
        if event.owner == owner and event.kind in ("load", "evict"):
            resident[event.page, event.access :] = event.kind == "load"
    return resident
