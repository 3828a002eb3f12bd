"""Chapter 05: addresses and tokens by hand, a read across pages, LRU that writes back, slips to catch, fork."""

from __future__ import annotations

import random
from collections.abc import Iterable
from math import ceil
from typing import Any

from pagedlab.course.drivers.ch01 import part
from pagedlab.course.drivers.ch05 import POLICIES, access_in_words, disk_traffic, replay_machine, try_witness
from pagedlab.course.questions.ch05_mistakes import (
    ADDRESS_MISTAKES,
    DISK_MISTAKES,
    READ_MISTAKES,
    machine_explained,
    witness_explained,
)
from pagedlab.course.questions.mistakes import named, named_by_part
from pagedlab.course.questions.model import Case, Kind, Question
from pagedlab.simulate.kv_memory import KVMemory
from pagedlab.simulate.paging import MMU, Frame, MemoryAccessError, PageFault, PageTable
from pagedlab.simulate.virtual_memory import VirtualMemory

# ---- q1: addresses and tokens by hand --------------------------------------------------------------------------------

TABLE = (9, 2, 14, 5, 7)


def address_parts() -> Iterable[Case]:
    program = VirtualMemory(num_frames=8)
    program.create("program", bytes(100_000))
    program.load("program", 12, 3)
    for name, value in {
        "pages": len(program.table("program")),
        "physical": program.translate("program", 50_000),
        "waste": program.waste("program"),
        "slot": TABLE[75 // 16] * 16 + 75 % 16,
        "table_reads": ceil(76 / 16),
        "table_bytes": 4 * ceil(76 / 16),
        "preempted": len(TABLE),
        "copies_40": copies(40),
        "copies_48": copies(48),
    }.items():
        yield Case(name, (name,), value)


def copies(num_tokens: int) -> int:
    """Blocks that the engine copies when a request has forked into five, and each writes a token."""
    memory = KVMemory(num_blocks=40, block_size=16)
    memory.create("0", list(range(num_tokens)))
    assert memory.allocate("0", num_tokens)
    memory.write("0", 0, list(range(num_tokens)))
    for name in "1234":
        memory.fork("0", name)
    for name in "01234":
        assert memory.allocate(name, num_tokens + 1)
        memory.write(name, num_tokens, [1000 + int(name)])
    return memory.num_copies


# ---- q2: a read across pages -----------------------------------------------------------------------------------------


def read_cases() -> Iterable[Case]:
    draw = random.Random(5)
    reads: dict[str, tuple[list[int | None], int, int, int, int]] = {
        "inside one page": ([2, 5, None, 0], 4096, 16384, 5000, 8),
        "across two pages": ([2, 5, 3, 0], 4096, 16384, 8188, 10),
        "three pages, out of order": ([6, 1, 4, 2], 16, 60, 10, 30),
        "frames that are neighbours": ([3, 4, 0], 16, 48, 12, 26),
        "exactly one page": ([7, 1, 5], 16, 48, 16, 16),
        "the second page is on disk": ([2, 5, None, 0], 4096, 16384, 8190, 6),
        "frame 0 is a frame": ([4, 0, 2], 16, 48, 15, 2),
        "past the end, within the last page": ([1, 3], 4096, 5000, 4990, 20),
        "past the end, exactly": ([2, 0], 16, 32, 30, 3),
        "an address that nobody was given": ([1, 2], 16, 32, 40, 1),
        "first a page on disk, then past the end": ([1, 2, None], 16, 40, 30, 12),
        "past the end of a page on disk": ([1, None], 16, 20, 20, 4),
    }
    for size in (8, 32):
        frames: list[int | None] = [*draw.sample(range(40), 9), None]
        address = draw.randrange(2 * size)
        reads[f"random, pages of {size}"] = (frames, size, 10 * size - 3, address, draw.randrange(2 * size, 6 * size))
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


# ---- q3: LRU that writes back ----------------------------------------------------------------------------------------

Accesses = list[tuple[str, int]]


def disk_cases() -> Iterable[Case]:
    draw = random.Random(8)
    strings: dict[str, tuple[Accesses, int]] = {
        "reads only": (accesses("r1 r2 r3 r1 r4 r2"), 3),
        "a page that was used again stays": (accesses("r1 r2 r1 r3 r1 r2"), 2),
        "one page written, and sent away": (accesses("w1 r2 r3 r1"), 2),
        "written twice, saved once": (accesses("w1 w1 r2 r3"), 2),
        "written, then read": (accesses("w1 r1 r2 r3"), 2),
        "read, then written": (accesses("r1 w1 r2 r3"), 2),
        "a write is a use": (accesses("r1 r2 w1 r3 r1"), 2),
        "still in memory at the end": (accesses("w1 w2 w3"), 3),
        "saved once, read again, sent away again": (accesses("w1 r2 r3 r1 r2 r3 r1"), 2),
        "one frame": (accesses("w1 r2 w1 w1 r2"), 1),
    }
    for frames in (3, 5):
        string = [(draw.choice(["read", "read", "write"]), draw.randrange(8)) for _ in range(60)]
        strings[f"sixty random accesses, {frames} frames"] = (string, frames)
    for name, (string, frames) in strings.items():
        machine = VirtualMemory(frames, page_size=1, policy="lru")
        machine.create("program", bytes(8))
        for kind, page in string:
            if kind == "write":
                machine.write("program", page, b"x")
            else:
                machine.read("program", page)
        expected = {"faults": machine.num_faults, "write backs": machine.counts["write back"]}
        yield Case(name, (string, frames), expected)


def accesses(text: str) -> Accesses:
    return [("write" if word[0] == "w" else "read", int(word[1:])) for word in text.split()]


# ---- q4: three policies, each with a slip ----------------------------------------------------------------------------


def witness_cases() -> Iterable[Case]:
    for name in POLICIES:
        yield Case(name, (name,), {"caught": True})


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
    start: Script = [("create", "A", ["abcd", "efgh", "ijkl"])]
    both: Script = [*start, ("fork", "A", "B")]
    scripts: dict[str, Script] = {
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
    scripts["a random hour"] = random_hour(length=30, seed=12)
    for name, script in scripts.items():
        yield Case(name, (24, script), replay_machine(OurMachine, 24, script))


def reads(text: str) -> Script:
    return [("read", word[0], int(word[1])) for word in text.split()]


def random_hour(length: int, seed: int) -> Script:
    draw = random.Random(seed)
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


QUESTIONS: tuple[Question, ...] = (
    Question(
        id="ch05.q1",
        title="Addresses and tokens by hand",
        kind=Kind.COMPUTE,
        difficulty=1,
        points=3,
        answer="found",
        cases=address_parts,
        hints=(
            "Address and token are split in the same way: divide by the size of a page, or of a block. The quotient is "
            "looked up in the table, the remainder is kept.",
            "A token that follows a full block goes into a new one, which nobody shares. In a half-full block "
            "everybody who writes first gets a copy, for as long as somebody else holds the block.",
            "physical = frame × 4,096 + 50,000 % 4,096. slot = table[75 // 16] × 16 + 75 % 16. One step of attention "
            "reads one entry a block, all of them. The last of the five writers is alone.",
        ),
        explain=named_by_part(ADDRESS_MISTAKES),
        tolerance=1e-6,
        drive=part,
    ),
    Question(
        id="ch05.q2",
        title="A read across pages",
        kind=Kind.IMPLEMENT,
        difficulty=2,
        points=3,
        answer="access",
        cases=read_cases,
        hints=(
            "Walk from `address` to its end, one page at a time. What can stop you at each of them?",
            "At every piece: is the address inside the program? If so, is its page in a frame? If so, how far is it to "
            "the end of the page, of the program, of the access: the nearest of the three ends the piece.",
            "length = min(end - at, page_size - at % page_size); if at >= size: an error at `at`; if the page has no "
            "frame: a fault; the piece begins at frame * page_size + at % page_size. If it runs past `size`, the error "
            "is at `size`.",
        ),
        explain=named(*READ_MISTAKES),
        drive=access_in_words,
    ),
    Question(
        id="ch05.q3",
        title="LRU that writes back",
        kind=Kind.IMPLEMENT,
        difficulty=2,
        points=4,
        answer="lru_with_disk",
        cases=disk_cases,
        hints=(
            "Besides the order of use you need one more thing of each page in memory: was it written since it came?",
            "A dictionary keeps its order: page -> dirty, the page used longest ago in front. Take a page out and put "
            "it back in at the end whenever it is used.",
            "dirty = queue.pop(page) on a hit, False after a fault; queue[page] = dirty or kind == 'write'. Before a "
            "fault puts a page into full memory: oldest = next(iter(queue)), and count a write back if it is dirty.",
        ),
        explain=named(*DISK_MISTAKES),
        drive=disk_traffic,
    ),
    Question(
        id="ch05.q4",
        title="Catch three slips",
        kind=Kind.DIAGNOSE,
        difficulty=2,
        points=3,
        answer="witness",
        cases=witness_cases,
        hints=(
            "Compare each with the chapter's version, line by line. What does the slip change in the queue, or in the "
            "bits? Then make somebody use the page that is now missing.",
            "fifo: what is in the queue after the same page is used three times? lru: which pages does the slice keep? "
            "clock: whose bit does the hand meet first at the next fault?",
            "fifo: after 1, 2, 2, 2 page 1 is gone. lru: after 1, 2, 3, 4 page 3 is gone. clock: use page 1 again "
            "before memory is full, then compare with the chapter's clock who leaves for a fourth page. Or try all "
            "strings of up to 6 pages with a program.",
        ),
        explain=witness_explained,
        drive=try_witness,
    ),
    Question(
        id="ch05.q5",
        title="Fork now, copy later",
        kind=Kind.IMPLEMENT,
        difficulty=3,
        points=4,
        answer="Machine",
        cases=machine_cases,
        hints=(
            "Three things are enough: what each frame holds, how many tables point to it, and each program's table.",
            "fork copies the table (not the list object itself) and raises the count of each frame in it. write looks "
            "at the count of its frame first. end lowers counts; a frame is free when its count is 0.",
            "write: if the count is above 1, lower it, take a free frame with the same content and count 1, put that "
            "into the writer's own table, and note one more copy. Then change the one letter.",
        ),
        explain=machine_explained,
        drive=replay_machine,
    ),
)
