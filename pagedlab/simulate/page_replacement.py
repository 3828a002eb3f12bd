"""Page replacement: which frame is emptied when all are taken: FIFO, LRU, clock.

Belady, A study of replacement algorithms for a virtual-storage computer, 1966; Corbató, A paging experiment with the
Multics system, 1968 (clock).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict

from pagedlab.errors import ConfigError


class ReplacementPolicy(ABC):
    """Watches frames being filled, used and emptied, and names the one to empty next."""

    def __init__(self) -> None:
        self.queue: OrderedDict[int, bool] = OrderedDict()
        """Frames in use, the next candidate first. The value is the clock's mark: used since the hand last passed."""

    def load(self, frame_id: int) -> None:
        """A page was put into this frame."""
        self.queue[frame_id] = False

    def forget(self, frame_id: int) -> None:
        """This frame was emptied."""
        del self.queue[frame_id]

    @abstractmethod
    def touch(self, frame_id: int) -> None:
        """A program read or wrote in this frame."""

    @abstractmethod
    def victim(self) -> int:
        """The frame to empty. It stays in the books until `forget`."""


class FIFO(ReplacementPolicy):
    """First in, first out: the page that was loaded longest ago, however much it is used."""

    def touch(self, frame_id: int) -> None:
        pass

    def victim(self) -> int:
        return next(iter(self.queue))


class LRU(ReplacementPolicy):
    """Least recently used. Exact, and therefore a model: hardware cannot afford to reorder a list at every access."""

    def touch(self, frame_id: int) -> None:
        self.queue.move_to_end(frame_id)

    def victim(self) -> int:
        return next(iter(self.queue))


class Clock(ReplacementPolicy):
    """Second chance: one bit a frame, set by every access. The hand clears set bits and takes the first clear one.

    The front of the queue is where the hand stands; a frame that gets its second chance goes to the back, which is
    where the hand comes last.
    """

    def touch(self, frame_id: int) -> None:
        self.queue[frame_id] = True

    def victim(self) -> int:
        while True:
            frame_id, used = next(iter(self.queue.items()))
            if not used:
                return frame_id
            self.queue[frame_id] = False
            self.queue.move_to_end(frame_id)


POLICIES: dict[str, type[ReplacementPolicy]] = {"fifo": FIFO, "lru": LRU, "clock": Clock}


def make_policy(name: str) -> ReplacementPolicy:
    """Raises ConfigError for a name that is not in POLICIES."""
    if name not in POLICIES:
        raise ConfigError(f"policy must be one of {', '.join(POLICIES)}, got {name!r}.")
    return POLICIES[name]()
