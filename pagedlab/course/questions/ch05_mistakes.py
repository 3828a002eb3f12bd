"""Chapter 05: what people get who take a page for a frame, a fault for an error, or save what is on disk."""

from __future__ import annotations

from typing import Any

from pagedlab.course.drivers.ch05 import MAX_ACCESSES, access_in_words, disk_traffic
from pagedlab.course.questions.mistakes import Mistake
from pagedlab.course.questions.model import Case

# ---- q1: addresses and tokens by hand --------------------------------------------------------------------------------

ADDRESS_MISTAKES: dict[str, list[tuple[float, str]]] = {
    "pages": [
        (24, "Rounded down: the last bytes need a page, too."),
        (100_000 / 4096, "Pages come whole: round up."),
        (26, "One too many: the last page is partly used, and none comes after it."),
    ],
    "physical": [
        (50_000, "A page is not a frame: page 12 lies in frame 3, so its bytes are elsewhere."),
        (848, "That is the offset. Where does frame 3 begin?"),
        (12_288, "That is where frame 3 begins. The offset goes through unchanged: add it."),
        (62_288, "Only the offset is added to the frame's start, not the whole address."),
        (851, "A frame begins at its number times 4,096."),
    ],
    "waste": [
        (1696, "That is how many bytes of the last page are used. How many are not?"),
        (0, "Paging bounds internal fragmentation, it does not remove it: the last page is partly used."),
        (2048, "That is the average over all sizes. This program has 100,000 bytes."),
        (4095, "That is the most that any program can lose. This one has 100,000 bytes."),
    ],
    "slot": [
        (75, "A logical block is not a physical one: ask the table where logical block 4 lies."),
        (11, "That is the slot within the block. Where in the pool is the block?"),
        (112, "That is the block's first slot. Where in the block is the token?"),
        (18, "A block begins at slot block × 16."),
        (91, "Tokens and logical blocks count from 0: token 75 lies in logical block 4."),
        (122, "Tokens count from 0: token 75 is at slot 11 of its block."),
    ],
    "table_reads": [
        (1, "An MMU looks up one address at a time. Attention needs all tokens, so it reads the whole table."),
        (76, "One entry serves a whole block: the table is read once a block, not once a token."),
        (4, "The last, partly filled block is read, too."),
    ],
    "table_bytes": [
        (10_485_760, "The block table is not in the KV cache, and holds no keys and values: it is a list of integers."),
        (2_097_152, "The block table is not in the KV cache, and holds no keys and values: it is a list of integers."),
        (304, "One entry for a block, not for a token."),
        (5, "That is the number of entries; each has 4 bytes."),
        (80, "One entry for a block, not for a slot."),
        (320, "One entry for a block, not for a slot."),
    ],
    "preempted": [
        (1, "An operating system sends one page away. A request lacks no block, or it cannot go on: all go."),
        (4, "The partly filled block goes as well: a request is evicted whole."),
        (0, "Something must go: there is no block left for the others."),
    ],
    "copies_40": [
        (5, "The last of the five finds the block unshared by then, and writes in place."),
        (1, "Each of those who write first needs a copy of its own."),
        (0, "40 tokens leave the third block half full and shared: it may not be written as it is."),
        (12, "Only the block that is written is copied, not the whole table."),
        (15, "Only the block that is written is copied, and the last writer finds it unshared."),
        (3, "Four others besides the request itself: five sequences write."),
    ],
    "copies_48": [
        (4, "48 tokens fill three blocks exactly: the next token opens a new block, and nothing shared is written."),
        (5, "48 tokens fill three blocks exactly: the next token opens a new block, and nothing shared is written."),
        (12, "Nothing shared is written here, so nothing is copied."),
        (15, "Nothing shared is written here, so nothing is copied."),
    ],
}

# ---- q2: a read across pages -----------------------------------------------------------------------------------------

Table = list[int | None]


def access_by(
    table: Table,
    page_size: int,
    size: int,
    address: int,
    count: int,
    identity: bool = False,
    one_piece: bool = False,
    frame_start: bool = True,
    offset: str = "first",
    faults: bool = True,
    whole_pages: bool = False,
    errors_first: bool = False,
    at_start: bool = False,
    merged: bool = False,
    zero_is_none: bool = False,
    faults_first: bool = False,
) -> tuple[str, Any]:
    """An access as people write it; every option is one way to go wrong."""
    limit = len(table) * page_size if whole_pages else size
    end, pieces, at = address + count, list[tuple[int, int]](), address
    absent = [p for p in range(address // page_size, -(-end // page_size)) if p < len(table) and table[p] is None]
    if faults_first and absent:
        return "fault", absent[0]
    if errors_first and end > limit:
        return "error", max(address, limit)
    while at < end:
        if at >= limit:
            return "error", address if at_start else at
        page = at // page_size
        frame = table[page]
        if frame is None or (zero_is_none and frame == 0):
            return ("fault", page) if faults else ("error", at)
        frame = page if identity else frame
        stop = end if one_piece else min(end, (page + 1) * page_size)
        skip = {"first": at % page_size, "never": 0, "always": address % page_size}[offset]
        start = frame * (page_size if frame_start else 1) + skip
        if merged and pieces and sum(pieces[-1]) == start:
            pieces[-1] = (pieces[-1][0], pieces[-1][1] + stop - at)
        else:
            pieces.append((start, stop - at))
        if not whole_pages and stop > limit:
            return "error", address if at_start else limit
        at = stop
    return "ok", pieces


def read_mistake(says: str, **options: Any) -> Mistake:
    return Mistake(says, lambda *arguments: access_in_words(lambda *a: access_by(*a, **options), *arguments))


READ_MISTAKES = (
    read_mistake("A page is not a frame: the table says where a page lies.", identity=True),
    read_mistake(
        "Bytes are visited in order: the fault of an earlier page comes before the error of a later address.",
        errors_first=True,
    ),
    read_mistake("The next page is not behind this one: look up every page of the access.", one_piece=True),
    read_mistake("A frame begins at its number times page_size.", frame_start=False),
    read_mistake("The offset is missing: the access begins in the middle of a page.", offset="never"),
    read_mistake(
        "Only the first piece begins in the middle of a page; the others begin with their page.", offset="always"
    ),
    read_mistake("A page fault is not an error: the page exists, it is on disk.", faults=False),
    read_mistake(
        "An address outside is an error even if its page would be on disk: loading cannot help there.",
        faults_first=True,
    ),
    read_mistake(
        "The program ends before its last page does: addresses from `size` on were never given to it.", whole_pages=True
    ),
    read_mistake("The error is at the first address outside, not where the access begins.", at_start=True),
    read_mistake("One piece for each page, even if two frames happen to be neighbours.", merged=True),
    read_mistake("Frame 0 is a frame: only None means that the page is on disk.", zero_is_none=True),
)

# ---- q3: LRU that writes back ----------------------------------------------------------------------------------------


def disk_by(
    accesses: list[tuple[str, int]],
    num_frames: int,
    order: str = "lru",
    saves: str = "dirty",
    dirty_from: tuple[str, ...] = ("hit", "load"),
    read_cleans: bool = False,
    stays_dirty: bool = False,
    flush: bool = False,
    write_is_use: bool = True,
    counts_first: bool = True,
) -> tuple[int, int]:
    """(faults, write backs); every option is one way to go wrong."""
    queue: dict[int, bool] = {}
    ever_written: set[int] = set()
    faults = saved = 0
    for kind, page in accesses:
        write = kind == "write"
        ever_written |= {page} if write else set()
        if saves == "each write":
            saved += write
        if page in queue:
            dirty = (queue[page] and not (read_cleans and not write)) or (write and "hit" in dirty_from)
            if order != "fifo" and (write_is_use or not write):
                del queue[page]
            queue[page] = dirty
            continue
        faults += counts_first or len(queue) == num_frames
        if len(queue) == num_frames:
            victim = list(queue)[-1 if order == "mru" else 0]
            left = queue.pop(victim)
            saved += saves == "all" or (saves == "dirty" and (left or (stays_dirty and victim in ever_written)))
        queue[page] = write and "load" in dirty_from
    return faults, saved + (sum(queue.values()) if flush else 0)


def disk_mistake(says: str, **options: Any) -> Mistake:
    return Mistake(says, lambda *arguments: disk_traffic(lambda *a: disk_by(*a, **options), *arguments))


DISK_MISTAKES = (
    disk_mistake("That is FIFO: a page that is used again goes to the back of the queue.", order="fifo"),
    disk_mistake("That sends away the page that was used last: least recently used is the other end.", order="mru"),
    disk_mistake("A page that was only read is dropped: the disk has the same content already.", saves="all"),
    disk_mistake("A write changes memory only. The page is saved when it has to leave, once.", saves="each write"),
    disk_mistake("A dirty page has to be saved before its frame is given away.", saves="none"),
    disk_mistake("A page that is written while it is in memory gets dirty, too.", dirty_from=("load",)),
    disk_mistake("A page that is loaded for a write is dirty at once.", dirty_from=("hit",)),
    disk_mistake("Reading a dirty page does not clean it: the disk's copy is still out of date.", read_cleans=True),
    disk_mistake(
        "A page that was saved is clean: loaded again and only read, it needs no second saving.", stays_dirty=True
    ),
    disk_mistake("What is still in memory at the end has not left: nothing was saved for it.", flush=True),
    disk_mistake("A write is a use, as a read is.", write_is_use=False),
    disk_mistake("The first access to a page is a fault, too, even while frames are free.", counts_first=False),
)

# ---- q4: three policies, each with a slip ----------------------------------------------------------------------------


def witness_explained(case: Case, got: Any) -> str:
    key = case.arguments[0]
    if isinstance(got, str):
        if got == f"KeyError: {key!r}":
            return f'The dictionary has no entry "{key}" yet.'
        return 'Make it a dictionary of lists of pages: {"fifo": [1, 2, ...], "lru": ..., "clock": ...}.'
    if not isinstance(got, dict):
        return ""
    if "accesses" in got:
        return f"At most {MAX_ACCESSES} accesses are allowed: there is a shorter way."
    if got.get("caught") is not False:
        return "A page is a whole number." if isinstance(got.get("pages"), str) else ""
    if key != "fifo" and got["pages"] < 4:
        return "Nobody has to leave: three frames hold three pages. The slip shows with a fourth."
    if key != "lru" and not got["hits"]:
        return "No page is used while it is in memory, so the order of loading is all that counts, in both versions."
    if key == "lru":
        return "Both count the same. This one sends away a page that it should keep. Which one? Use it next."
    if key == "fifo":
        return "Both count the same. A hit puts the page in the queue once more: whom does that push out? Use that one."
    return "Both count the same. The hand stands still after a load: whose bit does it clear first at the next fault?"
