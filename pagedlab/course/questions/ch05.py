"""Chapter 05: addresses and tokens by hand, a read across pages, LRU that writes back, slips to catch, fork."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil

from pagedlab.course.drivers.ch01 import part
from pagedlab.course.drivers.ch05 import POLICIES, access_in_words, disk_traffic, replay_machine, try_witness
from pagedlab.course.questions.ch05_cases import (
    disk_cases,
    disk_fresh,
    machine_cases,
    machine_fresh,
    read_cases,
    read_fresh,
)
from pagedlab.course.questions.ch05_machine_mistakes import machine_explained
from pagedlab.course.questions.ch05_mistakes import (
    ADDRESS_MISTAKES,
    DISK_MISTAKES,
    READ_MISTAKES,
    witness_explained,
)
from pagedlab.course.questions.mistakes import any_of, named_by_part
from pagedlab.course.questions.model import Case, Kind, Question
from pagedlab.simulate.kv_memory import KVMemory
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


# ---- q4: three policies, each with a slip ----------------------------------------------------------------------------


def witness_cases() -> Iterable[Case]:
    for name in POLICIES:
        yield Case(name, (name,), {"caught": True})


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
        explain=any_of(*READ_MISTAKES),
        fresh=read_fresh,
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
        explain=any_of(*DISK_MISTAKES),
        fresh=disk_fresh,
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
        is_value=True,
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
        fresh=machine_fresh,
        drive=replay_machine,
    ),
)
