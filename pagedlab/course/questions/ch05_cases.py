"""Chapter 05: accesses across pages, strings of accesses for LRU, scripts for a machine with fork: shown, and drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from random import Random
from string import ascii_lowercase, ascii_uppercase
from typing import Any

from pagedlab.course.drivers.ch05 import access_in_words, replay_machine
from pagedlab.course.questions.model import Case
from pagedlab.course.questions.numbers import Number, between, different
from pagedlab.course.questions.twins import anew, as_shown, drawn
from pagedlab.simulate.paging import MMU, Frame, MemoryAccessError, PageFault, PageTable
from pagedlab.simulate.virtual_memory import VirtualMemory

# ---- q2: a read across pages -----------------------------------------------------------------------------------------

Read = tuple[list[int | None], int, int, int, int]
"""Table, page size, size of the program, address, count."""


def read_cases() -> Iterable[Case]:
    return tried_reads(reads_of(between(as_shown), Random(5)))


def read_fresh(draw: Random) -> Iterable[Case]:
    return drawn(tried_reads(reads_of(between(anew(draw)), draw)))


def tried_reads(reads: Mapping[str, Read]) -> Iterable[Case]:
    for name, arguments in reads.items():
        yield Case(name, arguments, access_in_words(byte_by_byte, *arguments))


def byte_by_byte(
    table: list[int | None], page_size: int, size: int, address: int, count: int
) -> tuple[str, int | list[tuple[int, int]]]:
    """Every byte through pagedlab's MMU; a new piece begins with each page."""
    mmu = MMU(page_size)
    frames = PageTable(size, [None if number is None else Frame(number) for number in table])
    pieces: list[tuple[int, int]] = []
    for position in range(address, address + count):
        try:
            physical = mmu.translate(frames, position)
        except PageFault as fault:
            return "fault", fault.page
        except MemoryAccessError:
            return "error", position
        if pieces and position % page_size:
            pieces[-1] = (pieces[-1][0], pieces[-1][1] + 1)
        else:
            pieces.append((physical, 1))
    return "ok", pieces


def reads_of(number: Number, draw: Random) -> dict[str, Read]:
    return {**reads_inside(number), **reads_past_the_end(number), **random_reads(number, draw)}


def reads_inside(number: Number) -> dict[str, Read]:
    reads: dict[str, Read] = {}
    page, (a, b) = 2 ** number(12, 4, 12), different(number, 2, 5)
    reads["inside one page"] = ([a, b, None, 0], page, 4 * page, page + number(904, 1, page - 10), number(8, 2, 9))
    page, (a, b, c) = 2 ** number(12, 4, 12), different(number, 2, 5, 3)
    before = number(4, 1, 7)
    reads["across two pages"] = ([a, b, c, 0], page, 4 * page, 2 * page - before, before + number(6, 1, 7))
    page, (a, b, c, d) = 2 ** number(4, 3, 6), different(number, 6, 1, 4, 2)
    offset = number(10, 1, page - 1)
    count = 2 * page - offset + number(8, 1, page)
    reads["three pages, out of order"] = ([a, b, c, d], page, 4 * page - number(4, 1, page - 1), offset, count)
    page, a = 2 ** number(4, 3, 7), number(3, 3, 40)
    offset = number(12, 1, page - 1)
    count = 2 * page - offset + number(6, 1, page)
    reads["frames that are neighbours"] = ([a, a + 1, 0], page, 3 * page, offset, count)
    page, (a, b, c) = 2 ** number(4, 3, 7), different(number, 7, 1, 5)
    reads["exactly one page"] = ([a, b, c], page, 3 * page, page, page)
    page, (a, b) = 2 ** number(12, 4, 12), different(number, 2, 5)
    before = number(2, 1, 5)
    reads["the second page is on disk"] = ([a, b, None, 0], page, 4 * page, 2 * page - before, before + number(4, 1, 5))
    page, (a, b) = 2 ** number(4, 3, 7), different(number, 4, 2)
    before = number(1, 1, page - 1)
    reads["frame 0 is a frame"] = ([a, 0, b], page, 3 * page, page - before, before + number(1, 1, page))
    return reads


def reads_past_the_end(number: Number) -> dict[str, Read]:
    reads: dict[str, Read] = {}
    page, (a, b) = 2 ** number(12, 5, 12), different(number, 1, 3)
    size, before = page + number(904, 8, page - 16), number(10, 1, 7)
    reads["past the end, within the last page"] = ([a, b], page, size, size - before, before + number(10, 1, 8))
    page, a = 2 ** number(4, 3, 7), number(2, 1, 40)
    before = number(2, 1, page - 1)
    reads["past the end, exactly"] = ([a, 0], page, 2 * page, 2 * page - before, before + number(1, 1, 9))
    page, (a, b) = 2 ** number(4, 3, 7), different(number, 1, 2)
    address = 2 * page + number(8, 1, page - 1)
    reads["an address that nobody was given"] = ([a, b], page, 2 * page, address, number(1, 1, 9))
    page, (a, b) = 2 ** number(4, 3, 7), different(number, 1, 2)
    before, used = number(2, 1, page - 1), number(8, 1, page - 2)
    count = before + used + number(2, 1, 2)
    reads["first a page on disk, then past the end"] = ([a, b, None], page, 2 * page + used, 2 * page - before, count)
    page, a = 2 ** number(4, 4, 7), number(1, 1, 40)
    size = page + number(4, 1, page - 4)
    reads["past the end of a page on disk"] = ([a, None], page, size, size, number(4, 1, 4))
    return reads


def random_reads(number: Number, draw: Random) -> dict[str, Read]:
    reads: dict[str, Read] = {}
    for size in (2 ** number(3, 2, 4), 2 ** number(5, 5, 7)):
        frames: list[int | None] = [*draw.sample(range(40), 9), None]
        address = draw.randrange(2 * size)
        reads[f"random, pages of {size}"] = (frames, size, 10 * size - 3, address, draw.randrange(2 * size, 6 * size))
    return reads


# ---- q3: LRU that writes back ----------------------------------------------------------------------------------------

Accesses = list[tuple[str, int]]
NUM_PAGES = 32

STRINGS = {
    "reads only": ("r1 r2 r3 r1 r4 r2", 3),
    "a page that was used again stays": ("r1 r2 r1 r3 r1 r2", 2),
    "one page written, and sent away": ("w1 r2 r3 r1", 2),
    "written twice, saved once": ("w1 w1 r2 r3", 2),
    "written, then read": ("w1 r1 r2 r3", 2),
    "read, then written": ("r1 w1 r2 r3", 2),
    "a write is a use": ("r1 r2 w1 r3 r1", 2),
    "still in memory at the end": ("w1 w2 w3", 3),
    "saved once, read again, sent away again": ("w1 r2 r3 r1 r2 r3 r1", 2),
}
"""What is done to which page, and the number of frames."""


def disk_cases() -> Iterable[Case]:
    for name, (text, frames) in STRINGS.items():
        yield disk_case(name, accesses(text), frames)
    yield disk_case("one frame", accesses("w1 r2 w1 w1 r2"), 1)
    draw = Random(8)
    for frames in (3, 5):
        yield disk_case(f"sixty random accesses, {frames} frames", random_accesses(60, 8, draw), frames)


def disk_fresh(draw: Random) -> Iterable[Case]:
    """Each page of a string stands for several: it takes so many times the frames, faults and write backs."""
    for name, (text, frames) in STRINGS.items():
        several, numbers = draw.randint(2, 6), draw.sample(range(NUM_PAGES), NUM_PAGES)
        string = [(kind, numbers[several * page + i]) for kind, page in accesses(text) for i in range(several)]
        yield disk_case(f"{name}: {several} pages for each", string, several * frames)
    a, b = draw.sample(range(NUM_PAGES), 2)
    rounds = draw.randint(2, 6)
    string = [("write", a), ("read", b)] * rounds + [("write", a), ("write", a), ("read", b)]
    yield disk_case("one frame, drawn", string, 1)
    for frames in (draw.randint(2, 4), draw.randint(5, 6)):
        length = draw.randint(50, 70)
        yield disk_case(f"{length} random accesses, {frames} frames", random_accesses(length, 9, draw), frames)


def disk_case(name: str, string: Accesses, frames: int) -> Case:
    machine = VirtualMemory(frames, page_size=1, policy="lru")
    machine.create("program", bytes(NUM_PAGES))
    for kind, page in string:
        if kind == "write":
            machine.write("program", page, b"x")
        else:
            machine.read("program", page)
    expected = {"faults": machine.num_faults, "write backs": machine.counts["write back"]}
    return Case(name, (string, frames), expected)


def accesses(text: str) -> Accesses:
    return [("write" if word[0] == "w" else "read", int(word[1:])) for word in text.split()]


def random_accesses(length: int, num_pages: int, draw: Random) -> Accesses:
    return [(draw.choice(["read", "read", "write"]), draw.randrange(num_pages)) for _ in range(length)]


# ---- q5: fork --------------------------------------------------------------------------------------------------------

Script = list[tuple[Any, ...]]


class OurMachine:
    """pagedlab's machine, with pages of 4 bytes that are all in memory."""

    def __init__(self, num_frames: int) -> None:
        self.memory = VirtualMemory(num_frames, page_size=4)

    def create(self, name: str, pages: list[str]) -> None:
        self.memory.create(name, "".join(pages).encode())
        self.memory.read(name, 0, 4 * len(pages))

    def fork(self, parent: str, child: str) -> None:
        self.memory.fork(parent, child)

    def read(self, name: str, page: int) -> str:
        return self.memory.read(name, 4 * page, 4).decode()

    def write(self, name: str, page: int, offset: int, letter: str) -> None:
        self.memory.write(name, 4 * page + offset, letter.encode())

    def end(self, name: str) -> None:
        self.memory.free(name)

    def status(self) -> tuple[int, int]:
        return self.memory.num_free, self.memory.counts["copy"]


def machine_cases() -> Iterable[Case]:
    for name, script in machine_scripts().items():
        yield machine_case(name, 24, script)
    yield machine_case("a random hour", 24, random_hour(30, Random(12)))


def machine_fresh(draw: Random) -> Iterable[Case]:
    """The same scripts with other programs, pages and letters."""
    cases = [machine_case(name, draw.randint(30, 60), disguised(s, draw)) for name, s in machine_scripts().items()]
    yield from drawn([*cases, machine_case("a random hour", draw.randint(25, 60), random_hour(30, draw))])


def machine_case(name: str, num_frames: int, script: Script) -> Case:
    return Case(name, (num_frames, script), replay_machine(OurMachine, num_frames, script))


def machine_scripts() -> dict[str, Script]:
    start: Script = [("create", "A", ["abcd", "efgh", "ijkl"])]
    both: Script = [*start, ("fork", "A", "B")]
    return {
        "no fork": [*start, ("write", "A", 1, 0, "X"), *reads("A1 A2"), ("end", "A")],
        "a fork copies nothing": [*both, *reads("A0 B0 B2")],
        "the child writes": [*both, ("write", "B", 1, 2, "X"), *reads("A1 B1 B0")],
        "the parent writes": [*both, ("write", "A", 0, 0, "X"), *reads("A0 B0")],
        "two writes into one page": [*both, ("write", "B", 1, 0, "X"), ("write", "B", 1, 3, "Y"), *reads("B1 A1")],
        "the last holder writes": [*both, ("write", "B", 2, 1, "X"), ("write", "A", 2, 1, "Y"), *reads("A2 B2")],
        "the parent ends": [*both, ("end", "A"), *reads("B0 B1"), ("write", "B", 0, 1, "X"), *reads("B0")],
        "a stranger comes after the parent": [
            *both,
            ("end", "A"),
            ("create", "C", ["mnop", "qrst"]),
            ("write", "C", 0, 0, "Z"),
            *reads("B0 B1 C0"),
        ],
        "the child ends": [*both, ("write", "B", 0, 0, "X"), ("end", "B"), *reads("A0"), ("write", "A", 0, 0, "Y")],
        "a child of the child": [
            *both,
            ("fork", "B", "C"),
            ("write", "B", 0, 0, "X"),
            ("write", "C", 0, 0, "Y"),
            ("write", "A", 0, 0, "Z"),
            *reads("A0 B0 C0"),
        ],
        "forked after a write": [*start, ("write", "A", 0, 0, "X"), ("fork", "A", "B"), *reads("B0")],
        "all end": [*both, ("write", "B", 1, 1, "X"), ("end", "B"), ("end", "A")],
    }


def reads(text: str) -> Script:
    return [("read", word[0], int(word[1:])) for word in text.split()]


def random_hour(length: int, draw: Random) -> Script:
    script: Script = [("create", "A", ["abcd", "efgh"])]
    alive, names = ["A"], list("BCDEFG")
    for _ in range(length):
        kind, name = draw.choice(["fork", "write", "write", "write", "read", "end"]), draw.choice(alive)
        if kind == "fork" and names:
            alive.append(names.pop(0))
            script.append(("fork", name, alive[-1]))
        elif kind == "write":
            script.append(("write", name, draw.randrange(2), draw.randrange(4), draw.choice("VWXYZ")))
        elif kind == "end" and len(alive) > 2:
            alive.remove(name)
            script.append(("end", name))
        else:
            script.append(("read", name, draw.randrange(2)))
    return script + [("read", name, page) for name in alive for page in range(2)]


def disguised(script: Script, draw: Random) -> Script:
    """Other names, texts and letters; programs are larger, and what is read and written lies elsewhere in them."""
    num_pages = 3 + draw.randint(1, 3)
    names = dict(zip("ABC", draw.sample(ascii_uppercase[:12], 3), strict=True))
    letters = dict(zip("XYZ", draw.sample(ascii_uppercase[12:], 3), strict=True))
    pages, places = draw.sample(range(num_pages), num_pages), draw.sample(range(4), 4)
    found: Script = []
    for kind, name, *rest in script:
        if kind == "create":
            rest = [["".join(draw.sample(ascii_lowercase, 4)) for _ in range(num_pages)]]
        elif kind == "fork":
            rest = [names[rest[0]]]
        elif kind == "read":
            rest = [pages[rest[0]]]
        elif kind == "write":
            rest = [pages[rest[0]], places[rest[1]], letters[rest[2]]]
        found.append((kind, names[name], *rest))
    return found
