"""Chapter 05: accesses in words, three policies as found beside the chapter's, a machine that replays a script."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

# ---- a read across pages ---------------------------------------------------------------------------------------------


def access_in_words(answer: Any, *arguments: Any) -> list[str]:
    """ "4 bytes at 8188" for each piece, or the fault or error that stops the access."""
    kind, found = answer(*arguments)
    if kind != "ok":
        return [f"{kind}: {int(found)}"]
    return [f"{int(count)} byte{'' if count == 1 else 's'} at {int(start)}" for start, count in found]


# ---- LRU with write backs --------------------------------------------------------------------------------------------


def disk_traffic(answer: Any, *arguments: Any) -> dict[str, Any]:
    faults, write_backs = answer(*arguments)
    return {"faults": faults, "write backs": write_backs}


# ---- three policies, each with a slip --------------------------------------------------------------------------------

NUM_FRAMES = 3
MAX_ACCESSES = 8


def fifo_as_found(pages: Sequence[int], num_frames: int) -> int:
    faults, queue = 0, list[int]()
    for page in pages:
        faults += page not in queue
        queue = [*queue, page][-num_frames:]  # joins at the end, leaves at the front
    return faults


def lru_as_found(pages: Sequence[int], num_frames: int) -> int:
    faults, queue = 0, list[int]()
    for page in pages:
        if page not in queue:
            faults += 1
            queue = queue[: num_frames - 1]  # makes room
        queue = [other for other in queue if other != page] + [page]  # used last: at the end
    return faults


def clock_as_found(pages: Sequence[int], num_frames: int) -> int:
    faults, hand = 0, 0
    frames: list[int | None] = [None] * num_frames
    used = [False] * num_frames
    for page in pages:
        if page in frames:
            used[frames.index(page)] = True
            continue
        faults += 1
        while used[hand]:  # a second chance
            used[hand] = False
            hand = (hand + 1) % num_frames
        frames[hand], used[hand] = page, True
    return faults


def fifo(pages: Sequence[int], num_frames: int) -> int:
    """Chapter 05's."""
    faults, queue = 0, list[int]()
    for page in pages:
        if page not in queue:
            faults += 1
            queue = [*queue, page][-num_frames:]
    return faults


def lru(pages: Sequence[int], num_frames: int) -> int:
    """Chapter 05's."""
    faults, queue = 0, list[int]()
    for page in pages:
        if page in queue:
            queue.remove(page)
        else:
            faults += 1
        queue = [*queue, page][-num_frames:]
    return faults


def clock(pages: Sequence[int], num_frames: int) -> int:
    """Chapter 05's."""
    faults, hand = 0, 0
    frames: list[int | None] = [None] * num_frames
    used = [False] * num_frames
    for page in pages:
        if page in frames:
            used[frames.index(page)] = True
            continue
        faults += 1
        while used[hand]:
            used[hand] = False
            hand = (hand + 1) % num_frames
        frames[hand], used[hand] = page, True
        hand = (hand + 1) % num_frames
    return faults


Policy = Callable[[Sequence[int], int], int]
POLICIES: dict[str, tuple[Policy, Policy]] = {
    "fifo": (fifo_as_found, fifo),
    "lru": (lru_as_found, lru),
    "clock": (clock_as_found, clock),
}
"""As found, and as chapter 05 has it."""


def try_witness(witness: Any, key: str) -> dict[str, Any]:
    """Does this string of pages make the policy as found count other faults than the right one?"""
    pages = [page.item() if hasattr(page, "item") else page for page in witness[key]]
    if len(pages) > MAX_ACCESSES:
        return {"accesses": len(pages)}
    if not all(isinstance(page, int) and not isinstance(page, bool) for page in pages):
        return {"pages": "not all are whole numbers"}
    as_found, right = POLICIES[key]
    caught = as_found(pages, NUM_FRAMES) != right(pages, NUM_FRAMES)
    if caught:
        return {"caught": True}
    return {"caught": False, "pages": len(set(pages)), "hits": len(pages) - right(pages, NUM_FRAMES)}


# ---- fork ------------------------------------------------------------------------------------------------------------


def replay_machine(machine_class: Any, num_frames: int, script: Sequence[tuple[Any, ...]]) -> list[str]:
    """What each read gives, and after everything else how many frames are free and how many pages were copied."""
    machine = machine_class(num_frames)
    lines = []
    for name, *arguments in script:
        result = getattr(machine, name)(*arguments)
        if name == "read":
            lines.append(f"read {arguments[0]} {arguments[1]}: {result}")
        else:
            free, copied = machine.status()
            words = " ".join(str(word) for word in arguments if not isinstance(word, list))
            lines.append(f"{name} {words}: {free} free, {copied} copied")
    return lines
