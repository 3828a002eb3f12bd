"""Chapter 05: machines whose fork copies too early, too much or too late, and what their scripts show of it."""

from __future__ import annotations

import re
from typing import Any

from pagedlab.course.drivers.ch05 import replay_machine
from pagedlab.course.questions.mistakes import Mistake, any_of, or_first_difference
from pagedlab.course.questions.model import Case


class LooseMachine:
    """Fork with options that are the ways to go wrong."""

    shares, copies_content, lowers, copies_all, frees, same_table, in_place, gives_to_other = (
        *(True, True, True, False, "last", False, False, False),
    )

    def __init__(self, num_frames: int) -> None:
        self.num_frames, self.next = num_frames, 0
        self.content, self.count = dict[int, list[str]](), dict[int, int]()
        self.free_frames = list(range(num_frames))
        self.tables = dict[str, list[int]]()
        self.copied = 0

    def take(self, content: list[str]) -> int:
        frame = self.free_frames.pop(0)
        self.content[frame], self.count[frame] = content, 1
        return frame

    def create(self, name: str, pages: list[str]) -> None:
        self.tables[name] = [self.take(list(page)) for page in pages]

    def fork(self, parent: str, child: str) -> None:
        table = self.tables[parent]
        if not self.shares:
            self.tables[child] = [self.take(list(self.content[frame])) for frame in table]
            self.copied += len(table)
            return
        self.tables[child] = table if self.same_table else list(table)
        for frame in table:
            self.count[frame] += 1

    def read(self, name: str, page: int) -> str:
        return "".join(self.content[self.tables[name][page]])

    def write(self, name: str, page: int, offset: int, letter: str) -> None:
        table = self.tables[name]
        if self.count[table[page]] > 1 and not self.in_place:
            for number in range(len(table)) if self.copies_all else [page]:
                self.split(table, number)
        self.content[table[page]][offset] = letter

    def split(self, table: list[int], page: int) -> None:
        old = table[page]
        if self.count[old] == 1:
            return
        if self.lowers:
            self.count[old] -= 1
        table[page] = self.take(list(self.content[old]) if self.copies_content else [" "] * 4)
        self.copied += 1

    def end(self, name: str) -> None:
        for frame in self.tables.pop(name):
            self.count[frame] -= 1
            if self.frees == "always" or (self.frees == "last" and self.count[frame] == 0):
                self.free_frames.append(frame)

    def status(self) -> tuple[int, int]:
        return len(self.free_frames), self.copied


def machine_mistake(says: str, **options: Any) -> Mistake:
    kind = type("Mistaken", (LooseMachine,), options)
    return Mistake(says, lambda *arguments: replay_machine(kind, *arguments))


SEEN = (
    machine_mistake(
        "The other program sees the write: each needs a table of its own, and a copy needs letters of its own.",
        same_table=True,
    ),
    machine_mistake("A copy keeps the rest of the page: only one letter is written.", copies_content=False),
)
"""What shows in a text that is read. Where none is, the same frames may be free for other reasons."""

COUNTED = (
    machine_mistake("A fork copies nothing: both tables point to the same frames until somebody writes.", shares=False),
    machine_mistake(
        "A shared page was written: the other program sees it. Copy it before the first write.", in_place=True
    ),
    machine_mistake(
        "Whoever gets a copy leaves the shared frame, and lowers its count: else its last holder copies once more, and "
        "the frame is never free.",
        lowers=False,
    ),
    machine_mistake("Only the page that is written is copied, not the whole table.", copies_all=True),
)
"""What shows in the numbers of free frames and of copies."""

counted_explained, seen_explained = any_of(*COUNTED), any_of(*SEEN, *COUNTED)


def known_mistakes(case: Case, got: Any) -> str:
    if not isinstance(got, list) or not all(isinstance(line, str) for line in got):
        return ""
    differing = [
        (number, *lines) for number, lines in enumerate(zip(got, case.expected, strict=False)) if len({*lines}) > 1
    ]
    if not differing:
        return ""
    known = seen_explained if any(line.startswith("read") for _, line, _ in differing) else counted_explained
    return known(case, got) or told_by_line(case.arguments[1], *differing[0])


STATUS = re.compile(r"(\w+) .*: (-?\d+) free, (-?\d+) copied")


def told_by_line(script: list[tuple[Any, ...]], number: int, line: str, right: str) -> str:
    """What the first line that differs shows by itself."""
    if script[number][0] == "read":
        return "This program sees what another one has written." if is_of_another(script, number, line, right) else ""
    found, wanted = STATUS.fullmatch(line), STATUS.fullmatch(right)
    if not found or not wanted:
        return ""
    free, copied = (int(found[part]) - int(wanted[part]) for part in (2, 3))
    if script[number][0] == "end" and free and not copied:
        held = "A frame was freed while another program still held it."
        lost = "Frames are lost: when the last program that holds a frame ends, the frame is free."
        return held if free > 0 else lost
    if script[number][0] == "write" and not free and copied < 0:
        return "A page was copied, and not counted: `status` also tells how many pages were copied so far."
    return ""


def is_of_another(script: list[tuple[Any, ...]], number: int, line: str, right: str) -> bool:
    """Was every wrong letter written there by another program, and never by this one?"""
    _, reader, page = script[number]
    writers: dict[tuple[int, str], set[str]] = {}
    for kind, name, *rest in script[:number]:
        if kind == "write" and rest[0] == page:
            writers.setdefault((rest[1], rest[2]), set()).add(name)
    text, wanted = line.split(": ", 1)[1], right.split(": ", 1)[1]
    wrong = [place for place in enumerate(text) if place[1] != wanted[place[0] : place[0] + 1]]
    return len(text) == len(wanted) and all(reader not in writers.get(place, {reader}) for place in wrong)


machine_explained = or_first_difference(known_mistakes)
