"""VirtualMemory: an operating system's side of paging: frames, disk, page faults, eviction and copy-on-write, running.

KVMemory (kv_memory.py) has the same methods on the engine's block tables. Denning, Virtual memory, ACM Computing
Surveys 2(3), 1970.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pagedlab.errors import ConfigError
from pagedlab.simulate.page_replacement import make_policy
from pagedlab.simulate.paging import MMU, Frame, MemoryAccessError, Page, PageFault, PageTable

MAX_EVENTS = 100_000
"""Events kept: a long run forgets its oldest ones, the counts stay right."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing the machine did; `access` counts the accesses before it."""

    access: int
    kind: str
    owner: str
    page: int
    frame: int | None
    text: str

    def __str__(self) -> str:
        return f"{self.kind:10} {self.text}"


class VirtualMemory:
    """Physical memory, the disk behind it, and the operating system that moves pages between the two.

    Args:
        num_frames: frames of physical memory.
        page_size: bytes of a page and of a frame.
        policy: which frame is emptied when all are taken: fifo, lru or clock.
        on_event: called with each Event, such as print.
    """

    def __init__(
        self,
        num_frames: int,
        page_size: int = 4096,
        policy: str = "lru",
        on_event: Callable[[Event], object] | None = None,
    ) -> None:
        if num_frames < 1 or page_size < 1:
            raise ConfigError(f"num_frames and page_size must be at least 1, got {num_frames} and {page_size}.")
        self.page_size = page_size
        self.mmu = MMU(page_size)
        self.frames = [Frame(i) for i in range(num_frames)]
        self.memory = bytearray(num_frames * page_size)
        self.disk: dict[Page, bytes] = {}
        self.tables: dict[str, PageTable] = {}
        self.free_frames = deque(self.frames)
        self.policy = make_policy(policy)
        self.on_event = on_event
        self.events: deque[Event] = deque(maxlen=MAX_EVENTS)
        self.counts: Counter[str] = Counter()
        self.num_accesses = 0

    @property
    def num_faults(self) -> int:
        """Accesses that found their page absent."""
        return self.counts["fault"]

    @property
    def num_free(self) -> int:
        """Frames that hold no page."""
        return len(self.free_frames)

    # ---- whose memory it is --------------------------------------------------------------------------------------

    def create(self, owner: str, content: bytes = b"") -> None:
        """Start a program: its file stays on disk, its page table is empty, and no frame is taken yet."""
        if owner in self.tables:
            raise ConfigError(f"There is a program {owner!r} already: free it, or choose another name.")
        self.tables[owner] = PageTable()
        self.allocate(owner, len(content))
        for number in range(len(self.tables[owner].frames)):
            start = number * self.page_size
            self.disk[Page(owner, number)] = content[start : start + self.page_size].ljust(self.page_size, b"\0")

    def allocate(self, owner: str, size: int) -> bool:
        """Promise `size` bytes of addresses, and refuse nothing: frames come later, when pages are touched."""
        table = self._table(owner)
        table.size = max(table.size, size)
        num_new = -(-table.size // self.page_size) - len(table.frames)
        table.frames.extend([None] * num_new)
        return True

    def fork(self, parent: str, child: str) -> None:
        """Let `child` share every page of `parent`; whoever writes first into a shared page gets a copy."""
        source = self._table(parent)
        self.create(child)
        self.allocate(child, source.size)
        for number, frame in enumerate(source.frames):
            if frame is not None:
                frame.pages.append(Page(child, number))
                self.tables[child].frames[number] = frame
            if Page(parent, number) in self.disk:
                self.disk[Page(child, number)] = self.disk[Page(parent, number)]

    def free(self, owner: str) -> None:
        """End a program: its pages go, and the frames that nobody else holds are free."""
        for number, frame in enumerate(self._table(owner).frames):
            self.disk.pop(Page(owner, number), None)
            if frame is not None:
                frame.pages.remove(Page(owner, number))
                if not frame.pages:
                    self._empty(frame)
        del self.tables[owner]

    # ---- use -----------------------------------------------------------------------------------------------------

    def split(self, address: int) -> tuple[int, int]:
        """Address -> page number, offset in the page."""
        return self.mmu.split(address)

    def table(self, owner: str) -> list[int | None]:
        """Page number -> frame, None while the page is on disk."""
        return [None if frame is None else frame.frame_id for frame in self._table(owner).frames]

    def translate(self, owner: str, address: int, write: bool = False) -> int:
        """Address -> physical address. A fault is handled here and the access restarted: its program never knows."""
        table = self._table(owner)
        faulted = False
        while True:
            try:
                physical = self.mmu.translate(table, address, write)
                break
            except PageFault as fault:
                faulted = True
                self.handle_fault(owner, fault)
                self._emit("restart", owner, fault.page, None, f"the access to address {address} is repeated")
        page, offset = self.split(address)
        frame = table.frames[page]
        assert frame is not None
        self.policy.touch(frame.frame_id)
        frame.dirty |= write
        if faulted:
            text = f"page {page} -> frame {frame.frame_id}: {physical - offset} + {offset} = {physical}"
            self._emit("translate", owner, page, frame.frame_id, text)
        self.num_accesses += 1
        return physical

    def read(self, owner: str, address: int, size: int = 1) -> bytes:
        """`size` bytes from `address` on; the frames of their pages need not be neighbours."""
        pieces = []
        for start, length in self._pieces(address, size):
            physical = self.translate(owner, start)
            pieces.append(bytes(self.memory[physical : physical + length]))
        return b"".join(pieces)

    def write(self, owner: str, address: int, data: bytes) -> None:
        """Store `data` from `address` on."""
        for start, length in self._pieces(address, len(data)):
            physical = self.translate(owner, start, write=True)
            self.memory[physical : physical + length] = data[start - address : start - address + length]

    # ---- moving pages --------------------------------------------------------------------------------------------

    def handle_fault(self, owner: str, fault: PageFault) -> None:
        """In the middle of an access: give an absent page a frame, or a shared page that is written a copy."""
        if fault.reason == "absent":
            self._emit("fault", owner, fault.page, None, f"page {fault.page} of {owner} is not in memory")
            self.load(owner, fault.page)
            return
        if not self.free_frames:
            self.evict()
        table, source = self.tables[owner], self.tables[owner].frames[fault.page]
        if source is None:  # the frame to copy from was the one to empty: the restarted access will load the page
            return
        copy = self.free_frames.popleft()
        self.memory[self._bytes_of(copy)] = self.memory[self._bytes_of(source)]
        source.pages.remove(Page(owner, fault.page))
        self._fill(copy, Page(owner, fault.page), dirty=True)
        table.frames[fault.page] = copy
        text = f"page {fault.page} of {owner} is shared: frame {source.frame_id} is copied to frame {copy.frame_id}"
        self._emit("copy", owner, fault.page, copy.frame_id, text)

    def load(self, owner: str, page: int, frame_id: int | None = None) -> bool:
        """Bring one page from disk into a free frame (`frame_id` chooses which), emptying one if there is none."""
        table = self._table(owner)
        if not 0 <= page < len(table.frames) or table.frames[page] is not None:
            raise MemoryAccessError(f"Page {page} of {owner!r} cannot be loaded: choose one of its pages on disk.")
        if frame_id is not None and all(frame.frame_id != frame_id for frame in self.free_frames):
            raise MemoryAccessError(f"Frame {frame_id} is taken, or there is none: choose one that is free.")
        if not self.free_frames:
            self.evict()
        frame = self.free_frames[0] if frame_id is None else self.frames[frame_id]
        self.free_frames.remove(frame)
        self.memory[self._bytes_of(frame)] = self.disk.get(Page(owner, page), bytes(self.page_size))
        self._fill(frame, Page(owner, page), dirty=False)
        table.frames[page] = frame
        self._emit("load", owner, page, frame.frame_id, f"page {page} of {owner} is read from disk")
        self._emit("map", owner, page, frame.frame_id, f"page table of {owner}: page {page} -> frame {frame.frame_id}")
        return True

    def evict(self) -> bool:
        """Empty one frame, of whichever program; its page goes to disk if it was written."""
        if len(self.free_frames) == len(self.frames):
            raise MemoryAccessError("No frame holds a page: there is nothing to evict.")
        frame = self.frames[self.policy.victim()]
        owner, number = frame.pages[0]
        self._emit("evict", owner, number, frame.frame_id, f"frame {frame.frame_id} gives up page {number} of {owner}")
        if frame.dirty:
            self._emit("write back", owner, number, frame.frame_id, f"page {number} of {owner} was written: to disk")
        for page in frame.pages:
            if frame.dirty:
                self.disk[page] = bytes(self.memory[self._bytes_of(frame)])
            self.tables[page.owner].frames[page.number] = None
        self._empty(frame)
        return True

    # ---- books ---------------------------------------------------------------------------------------------------

    def waste(self, owner: str) -> int:
        """Bytes of the last page that the program cannot use: internal fragmentation, less than a page."""
        table = self._table(owner)
        return len(table.frames) * self.page_size - table.size

    def check_integrity(self) -> None:
        """Raise AssertionError if the books do not balance."""
        held: dict[Page, Frame] = {page: frame for frame in self.frames for page in frame.pages}
        assert len(held) == sum(frame.ref_count for frame in self.frames), "a page is in two frames"
        mapped = {
            Page(owner, number): frame
            for owner, table in self.tables.items()
            for number, frame in enumerate(table.frames)
            if frame is not None
        }
        assert mapped == held, "page tables and frames disagree"
        assert {frame.frame_id for frame in self.free_frames} == {f.frame_id for f in self.frames if not f.pages}
        assert len(self.free_frames) + len(self.policy.queue) == len(self.frames)

    def _table(self, owner: str) -> PageTable:
        if owner not in self.tables:
            raise MemoryAccessError(f"There is no program {owner!r}: create it first.")
        return self.tables[owner]

    def _bytes_of(self, frame: Frame) -> slice:
        return slice(frame.frame_id * self.page_size, (frame.frame_id + 1) * self.page_size)

    def _pieces(self, address: int, size: int) -> Iterator[tuple[int, int]]:
        """(start, length) of the parts of a range that lie in one page each."""
        end = address + size
        while address < end:
            length = min(end - address, self.page_size - address % self.page_size)
            yield address, length
            address += length

    def _fill(self, frame: Frame, page: Page, dirty: bool) -> None:
        frame.pages, frame.dirty = [page], dirty
        self.policy.load(frame.frame_id)

    def _empty(self, frame: Frame) -> None:
        frame.pages, frame.dirty = [], False
        self.policy.forget(frame.frame_id)
        self.free_frames.append(frame)

    def _emit(self, kind: str, owner: str, page: int, frame: int | None, text: str) -> None:
        event = Event(self.num_accesses, kind, owner, page, frame, text)
        self.counts[kind] += 1
        self.events.append(event)
        if self.on_event is not None:
            self.on_event(event)
