"""Chapter 05: answers about addresses and tokens, accesses across pages, LRU with a disk, slips, and fork."""

from __future__ import annotations

from answers import Answers
from answers.editing import changed

# ---- q1: addresses and tokens by hand --------------------------------------------------------------------------------


def found(**changed_parts: str) -> str:
    """The dictionary of question 1, with some entries other than right."""
    right = {
        "pages": "25",
        "physical": "13_136",
        "waste": "2400",
        "slot": "123",
        "table_reads": "5",
        "table_bytes": "20",
        "preempted": "5",
        "copies_40": "4",
        "copies_48": "0",
    }
    entries = {**right, **changed_parts}
    return "found = {" + ", ".join(f'"{key}": {value}' for key, value in entries.items()) + "}"


FOUND = Answers(
    right=[
        ("plain numbers", found()),
        (
            "divmod, NumPy and torch",
            """
            page, offset = divmod(50_000, 4096)
            found = dict(pages=-(-100_000 // 4096), physical=np.int64(3) * 4096 + offset, waste=-100_000 % 4096)
            ids = torch.tensor([9, 2, 14, 5, 7])
            found["slot"] = ids[75 // 16] * 16 + 75 % 16
            found["table_reads"] = found["preempted"] = np.ceil(76 / 16)
            found["table_bytes"] = ids.int().numpy().nbytes
            found["copies_40"], found["copies_48"] = 4.0, 0.0
            """,
        ),
    ],
    wrong=[
        ("pages rounded down", found(pages="100_000 // 4096"), "Rounded down"),
        ("pages not rounded", found(pages="100_000 / 4096"), "Pages come whole"),
        ("page taken for frame", found(physical="12 * 4096 + 848"), "A page is not a frame"),
        ("only the offset", found(physical="848"), "Where does frame 3 begin"),
        ("only the frame", found(physical="3 * 4096"), "offset goes through unchanged"),
        ("whole address added", found(physical="3 * 4096 + 50_000"), "Only the offset"),
        ("used part of the last page", found(waste="100_000 % 4096"), "How many are not"),
        ("paging wastes nothing", found(waste="0"), "does not remove it"),
        ("logical block taken for physical", found(slot="75"), "not a physical one"),
        ("off by one block", found(slot="5 * 16 + 11"), "count from 0"),
        ("block id not multiplied", found(slot="7 + 11"), "block × 16"),
        ("one look-up, as an MMU", found(table_reads="1"), "reads the whole table"),
        ("a look-up a token", found(table_reads="76"), "once a block"),
        ("the table lies in the cache", found(table_bytes="5 * 2 * 2**20"), "not in the KV cache"),
        ("one block evicted", found(preempted="1"), "all go"),
        ("everybody copies", found(copies_40="5"), "writes in place"),
        ("whole tables copied", found(copies_40="15"), "Only the block that is written"),
        ("a full block copied", found(copies_48="4"), "opens a new block"),
        ("an entry forgotten", "found = {'pages': 25}", 'no entry "physical"'),
    ],
)

# ---- q2: a read across pages -----------------------------------------------------------------------------------------

ACCESS = """
def access(table, page_size, size, address, count):
    pieces, end = [], address + count
    for page in range(address // page_size, (end - 1) // page_size + 1):
        start = max(address, page * page_size)
        stop = min(end, (page + 1) * page_size)
        if start >= size:
            return "error", start
        frame = table[page]
        if frame is None:
            return "fault", page
        if stop > size:
            return "error", size
        pieces.append((frame * page_size + start % page_size, stop - start))
    return "ok", pieces
"""


def reading(*changes: str) -> str:
    return changed(ACCESS, *changes)


READ = Answers(
    right=[
        ("page by page", ACCESS),
        (
            "byte by byte, then grouped",
            """
            def access(table, page_size, size, address, count):
                places = []
                for a in range(address, address + count):
                    if a >= size:
                        return ("error", a)
                    frame = table[a // page_size]
                    if frame is None:
                        return ("fault", a // page_size)
                    places.append((a // page_size, frame * page_size + a % page_size))
                pages = sorted({page for page, _ in places})
                groups = [[place for page, place in places if page == wanted] for wanted in pages]
                return "ok", [[group[0], len(group)] for group in groups]
            """,
        ),
        (
            "NumPy cuts at page boundaries",
            """
            def access(table, page_size, size, address, count):
                end = address + count
                cuts = np.arange(address // page_size + 1, -(-end // page_size)) * page_size
                starts = np.concatenate([[address], cuts])
                stops = np.concatenate([cuts, [end]])
                out = []
                for a, b in zip(starts, stops):
                    if a >= size:
                        return "error", a
                    if table[a // page_size] is None:
                        return "fault", a // page_size
                    if b > size:
                        return "error", size
                    out.append((table[a // page_size] * page_size + a % page_size, b - a))
                return "ok", out
            """,
        ),
    ],
    wrong=[
        ("page taken for frame", reading("(frame * page_size", "(page * page_size"), "A page is not a frame"),
        (
            "one piece",
            """
            def access(table, page_size, size, address, count):
                if address >= size:
                    return "error", address
                frame = table[address // page_size]
                if frame is None:
                    return "fault", address // page_size
                return "ok", [(frame * page_size + address % page_size, count)]
            """,
            "not behind this one",
        ),
        ("frame number added", reading("frame * page_size + start", "frame + start"), "begins at its number times"),
        ("offset forgotten", reading(" + start % page_size", ""), "begins in the middle of a page"),
        ("offset in every piece", reading("start % page_size", "address % page_size"), "Only the first piece"),
        ("fault taken for an error", reading('"fault", page', '"error", start'), "not an error"),
        (
            "last page taken as whole",
            reading("start >= size", "page >= len(table)", "stop > size", "False"),
            "before its last page does",
        ),
        (
            "errors first",
            reading(
                "pieces, end = [], address + count",
                "pieces, end = [], address + count\n    if end > size: return 'error', max(size, address)",
            ),
            "visited in order",
        ),
        (
            "error where the access begins",
            reading(
                'return "error", start', 'return "error", address', 'return "error", size', 'return "error", address'
            ),
            "not where the access begins",
        ),
        (
            "neighbours merged",
            reading(
                "        pieces.append(",
                "        if pieces and sum(pieces[-1]) == frame * page_size:\n"
                "            pieces[-1] = (pieces[-1][0], pieces[-1][1] + stop - start)\n            continue\n"
                "        pieces.append(",
            ),
            "happen to be neighbours",
        ),
        ("frame 0 is no frame", reading("if frame is None", "if not frame"), "Frame 0 is a frame"),
        (
            "faults first",
            reading(
                "pieces, end = [], address + count",
                "pieces, end = [], address + count\n"
                "    for p in range(address // page_size, (end - 1) // page_size + 1):\n"
                "        if p < len(table) and table[p] is None: return 'fault', p",
            ),
            "loading cannot help there",
        ),
    ],
)

# ---- q3: LRU that writes back ----------------------------------------------------------------------------------------

LRU = """
def lru_with_disk(accesses, num_frames):
    faults, saved, queue, dirty = 0, 0, [], set()
    for kind, page in accesses:
        hit = page in queue
        if hit:
            queue.remove(page)
        else:
            faults += 1
            if len(queue) == num_frames:
                victim = queue.pop(0)
                if victim in dirty:
                    saved += 1
                    dirty.remove(victim)
        queue.append(page)
        if kind == "write":
            dirty.add(page)
    return faults, saved
"""


def disk(*changes: str) -> str:
    return changed(LRU, *changes)


DISK = Answers(
    right=[
        ("a queue and a set", LRU),
        (
            "time of last use",
            """
            def lru_with_disk(accesses, num_frames):
                last, dirty, counts = {}, {}, [0, 0]
                for now, (kind, page) in enumerate(accesses):
                    if page not in last:
                        counts[0] += 1
                        if len(last) >= num_frames:
                            oldest = min(last, key=last.get)
                            del last[oldest]
                            counts[1] += dirty.pop(oldest)
                        dirty[page] = False
                    last[page] = now
                    dirty[page] = dirty[page] or kind == "write"
                return tuple(counts)
            """,
        ),
        (
            "NumPy arrays of frames",
            """
            def lru_with_disk(accesses, num_frames):
                page_in, used, dirty = (np.full(num_frames, -1) for _ in range(3))
                faults = saved = 0
                for now, (kind, page) in enumerate(accesses):
                    where = np.flatnonzero(page_in == page)
                    if len(where) == 0:
                        faults += 1
                        frame = int(np.argmin(used))
                        saved += int(dirty[frame] == 1)
                        page_in[frame], dirty[frame] = page, 0
                    else:
                        frame = where[0]
                    used[frame] = now
                    if kind == "write":
                        dirty[frame] = 1
                return faults, saved
            """,
        ),
    ],
    wrong=[
        (
            "FIFO",
            disk(
                "queue.remove(page)", "pass", "        queue.append(page)\n", "        if not hit: queue.append(page)\n"
            ),
            "That is FIFO",
        ),
        ("the other end", disk("queue.pop(0)", "queue.pop()"), "used last"),
        ("every page saved", disk("if victim in dirty", "if True", "dirty.remove", "dirty.discard"), "dropped"),
        (
            "saved at each write",
            disk("dirty.add(page)", "saved += 1", "if victim in dirty", "if False"),
            "A write changes memory only",
        ),
        ("never saved", disk("saved += 1", "pass"), "has to be saved"),
        (
            "dirty only if loaded for a write",
            disk('if kind == "write"', 'if kind == "write" and not hit'),
            "gets dirty, too",
        ),
        ("dirty only on a hit", disk('if kind == "write"', 'if kind == "write" and hit'), "dirty at once"),
        (
            "a read cleans",
            disk(
                "            dirty.add(page)",
                "            dirty.add(page)\n        else:\n            dirty.discard(page)",
            ),
            "does not clean it",
        ),
        ("dirty for ever", disk("dirty.remove(victim)", "pass"), "needs no second saving"),
        ("flushed at the end", disk("return faults, saved", "return faults, saved + len(dirty)"), "has not left"),
        (
            "a write is no use",
            disk(
                "queue.remove(page)",
                'queue.remove(page) if kind == "read" else None',
                "        queue.append(page)\n",
                "        if page not in queue: queue.append(page)\n",
            ),
            "A write is a use",
        ),
        (
            "first loads not counted",
            disk("            faults += 1\n", "            faults += len(queue) == num_frames\n"),
            "even while frames are free",
        ),
    ],
)

# ---- q4: three policies, each with a slip ----------------------------------------------------------------------------


def witness(fifo: str = "1, 2, 2, 2, 1", lru: str = "1, 2, 3, 4, 3", clock: str = "1, 2, 1, 3, 4, 1") -> str:
    return f'witness = {{"fifo": [{fifo}], "lru": [{lru}], "clock": [{clock}]}}'


WITNESS = Answers(
    right=[
        ("the shortest ones", witness()),
        ("others, as tuples", "witness = dict(fifo=(7, 8, 8, 9, 7), lru=(1, 2, 3, 4, 1), clock=(1, 2, 1, 3, 5, 2, 9))"),
        (
            "NumPy and torch",
            "witness = dict(fifo=np.array([1, 2, 2, 2, 1]), lru=torch.tensor([1, 2, 3, 4, 3]), "
            "clock=[np.int64(1), 2, 1, 3, 4, 1])",
        ),
        (
            "found by trial",
            """
            import random

            def fifo(pages, n):
                memory, faults = [], 0
                for page in pages:
                    if page not in memory:
                        memory, faults = (memory + [page])[-n:], faults + 1
                return faults

            def lru(pages, n):
                return sum(p not in list(OrderedDict.fromkeys(reversed(pages[:i])))[:n] for i, p in enumerate(pages))

            def clock(pages, n):
                queue, faults = [], 0
                for page in pages:
                    for entry in queue:
                        if entry[0] == page:
                            entry[1] = True
                            break
                    else:
                        faults += 1
                        if len(queue) == n:
                            while queue[0][1]:
                                queue.append([queue.pop(0)[0], False])
                            queue.pop(0)
                        queue.append([page, True])
                return faults

            draw, witness = random.Random(0), {}
            as_found = {"fifo": fifo_as_found, "lru": lru_as_found, "clock": clock_as_found}
            for name, right in (("fifo", fifo), ("lru", lru), ("clock", clock)):
                while name not in witness:
                    pages = [draw.randrange(5) for _ in range(8)]
                    if as_found[name](pages, 3) != right(pages, 3):
                        witness[name] = pages
            """,
        ),
    ],
    wrong=[
        ("three pages", witness(lru="1, 2, 3, 1, 2, 3"), "Nobody has to leave"),
        ("three pages for the clock", witness(clock="1, 2, 3, 1"), "Nobody has to leave"),
        ("no hit", witness(fifo="1, 2, 3, 4, 5, 6"), "order of loading is all that counts"),
        ("no hit for the clock", witness(clock="1, 2, 3, 4, 5"), "order of loading is all that counts"),
        ("the example", witness(fifo="1, 2, 3, 1, 4"), "once more"),
        ("the wrong page asked for", witness(lru="1, 2, 3, 4, 2"), "Which one"),
        ("clock: a hit that changes nothing", witness(clock="1, 2, 3, 4, 4, 5"), "The hand stands still"),
        ("Belady's string", witness(fifo="1, 2, 3, 4, 1, 2, 5, 1, 2, 3, 4, 5"), "At most 8 accesses"),
        ("empty", witness(clock=""), "Nobody has to leave"),
        ("one list for all", "witness = [1, 2, 3, 4, 1]", "dictionary of lists"),
        ("an entry forgotten", "witness = {'fifo': [1, 2, 2, 2, 1]}", 'no entry "lru"'),
        ("letters", witness(lru="'a', 'b', 'c', 'd', 'c'"), "whole number"),
    ],
)

# ---- q5: fork --------------------------------------------------------------------------------------------------------

MACHINE = """
class Machine:
    def __init__(self, num_frames):
        self.free = list(range(num_frames))
        self.content, self.users, self.tables, self.copies = {}, {}, {}, 0

    def new(self, letters):
        frame = self.free.pop()
        self.content[frame], self.users[frame] = list(letters), 1
        return frame

    def create(self, name, pages):
        self.tables[name] = [self.new(page) for page in pages]

    def fork(self, parent, child):
        self.tables[child] = self.tables[parent][:]
        for frame in self.tables[parent]:
            self.users[frame] += 1

    def read(self, name, page):
        return "".join(self.content[self.tables[name][page]])

    def write(self, name, page, offset, letter):
        table = self.tables[name]
        old = table[page]
        if self.users[old] > 1:
            table[page] = self.new(self.content[old])
            self.users[old] -= 1
            self.copies += 1
        self.content[table[page]][offset] = letter

    def end(self, name):
        for frame in self.tables.pop(name):
            self.users[frame] -= 1
            if self.users[frame] == 0:
                self.free.append(frame)

    def status(self):
        return len(self.free), self.copies
"""


def machine(*changes: str) -> str:
    return changed(MACHINE, *changes)


FORK = Answers(
    right=[
        ("lists of letters, a list of free frames", MACHINE),
        (
            "frames are objects, and users are looked up instead of counted",
            """
            class Machine:
                def __init__(self, num_frames):
                    self.num_frames, self.programs, self.copied = num_frames, {}, 0

                def create(self, name, pages):
                    self.programs[name] = [bytearray(page, "ascii") for page in pages]

                def fork(self, parent, child):
                    self.programs[child] = list(self.programs[parent])

                def holders(self, frame):
                    return sum(any(f is frame for f in table) for table in self.programs.values())

                def read(self, name, page):
                    return self.programs[name][page].decode()

                def write(self, name, page, offset, letter):
                    frame = self.programs[name][page]
                    if self.holders(frame) > 1:
                        frame = self.programs[name][page] = bytearray(frame)
                        self.copied += 1
                    frame[offset] = ord(letter)

                def end(self, name):
                    del self.programs[name]

                def status(self):
                    used = {id(frame) for table in self.programs.values() for frame in table}
                    return self.num_frames - len(used), self.copied
            """,
        ),
    ],
    wrong=[
        (
            "copied at the fork",
            machine(
                "        self.tables[child] = self.tables[parent][:]\n        for frame in self.tables[parent]:\n"
                "            self.users[frame] += 1",
                "        self.tables[child] = [self.new(self.content[frame]) for frame in self.tables[parent]]\n"
                "        self.copies += len(self.tables[child])",
            ),
            "A fork copies nothing",
        ),
        ("written in place", machine("self.users[old] > 1", "False"), "the other program sees it"),
        ("the same table", machine("self.tables[parent][:]", "self.tables[parent]"), "a table of its own"),
        ("an empty copy", machine("self.new(self.content[old])", 'self.new(" " * 4)'), "keeps the rest of the page"),
        ("count not lowered", machine("            self.users[old] -= 1\n", ""), "lowers its count"),
        (
            "the whole table copied",
            machine(
                "            table[page] = self.new(self.content[old])\n            self.users[old] -= 1\n"
                "            self.copies += 1",
                "            for i, frame in enumerate(table):\n                if self.users[frame] > 1:\n"
                "                    table[i] = self.new(self.content[frame])\n"
                "                    self.users[frame] -= 1\n"
                "                    self.copies += 1",
            ),
            "not the whole table",
        ),
        ("freed while shared", machine("if self.users[frame] == 0", "if True"), "still held it"),
        ("never freed", machine("if self.users[frame] == 0", "if False"), "Frames are lost"),
        (
            "the copy shares the list of letters",
            machine(
                "self.users[frame] = list(letters), 1",
                "self.users[frame] = letters, 1",
                "[self.new(page) for page in pages]",
                "[self.new(list(page)) for page in pages]",
            ),
            "letters of its own",
        ),
        ("copies not counted", machine("            self.copies += 1\n", ""), "copied, and not counted"),
    ],
)

BANK: dict[str, Answers] = {
    "ch05.q1": FOUND,
    "ch05.q2": READ,
    "ch05.q3": DISK,
    "ch05.q4": WITNESS,
    "ch05.q5": FORK,
}
