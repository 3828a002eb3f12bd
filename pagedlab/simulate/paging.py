"""The hardware of virtual memory: pages, frames, page tables, and the MMU that translates with them or faults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from pagedlab.errors import PagedlabError


class MemoryAccessError(PagedlabError, IndexError):
    """An address that its owner was never given: the error that a page fault is not."""


class Page(NamedTuple):
    """`page_size` consecutive addresses of one owner. It exists wherever its content is: in a frame or on disk."""

    owner: str
    number: int


@dataclass(eq=False, slots=True)
class Frame:
    """`page_size` consecutive bytes of physical memory.

    Attributes:
        frame_id: its place: it starts at physical address frame_id * page_size
        pages: what it holds; several after a fork, none if it is free
        dirty: written since it was loaded, so that the disk's copy is out of date
    """

    frame_id: int
    pages: list[Page] = field(default_factory=list)
    dirty: bool = False

    @property
    def ref_count(self) -> int:
        return len(self.pages)


@dataclass(eq=False, slots=True)
class PageTable:
    """Page number -> frame, for one owner. None: the page is not in memory.

    Attributes:
        size: bytes of the address space; the last page may be used in part
    """

    size: int = 0
    frames: list[Frame | None] = field(default_factory=list)


class PageFault(Exception):
    """The MMU cannot finish a translation alone: the operating system has to act, then the access is repeated."""

    def __init__(self, page: int, reason: str) -> None:
        super().__init__(f"page {page} is {reason}")
        self.page = page
        self.reason = reason


class MMU:
    """The hardware: turns every address of every access into a physical one, or raises PageFault."""

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.num_lookups = 0
        """Page table reads. (Real hardware keeps recent ones in a small cache, the TLB.)"""

    def split(self, address: int) -> tuple[int, int]:
        """Page number and offset in the page."""
        return divmod(address, self.page_size)

    def translate(self, table: PageTable, address: int, write: bool = False) -> int:
        if not 0 <= address < table.size:
            raise MemoryAccessError(f"Address {address} is outside this address space of {table.size} bytes.")
        self.num_lookups += 1
        page, offset = self.split(address)
        frame = table.frames[page]
        if frame is None:
            raise PageFault(page, "absent")
        if write and frame.ref_count > 1:
            raise PageFault(page, "shared")
        return frame.frame_id * self.page_size + offset
