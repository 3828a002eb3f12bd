"""Which cells of a notebook are the answer to which question, whatever editor saved it: signs written and signs read.

A cell is known by the strongest sign that it bears: its id, an id in its metadata, a tag, the line `# Answer: ch03.q2`.
Where no such cell defines the name that a question asks for, its answer is the only other cell that does. Nothing here
depends on what an answer gives, and nothing in a notebook is run or parsed: two different cells that are equally good
are none, so that nobody has two tries.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pagedlab.course import questions
from pagedlab.course.masters import PLACE, STUB, cell_id
from pagedlab.course.questions import Question

MAX_SOURCE = 100_000
"""Characters of one answer."""
MAX_CELLS = 2_000
"""Of a notebook; what others define is not looked for to explain what is missing."""
IN_COMMENT = 100
"""Strength of the line `# Answer: ch03.q2`; ids and tags have smaller numbers, which are stronger."""
ANSWER = re.compile(r"(ch[0-9]{2})-q[0-9]{1,3}-answer")
OTHER_PART = re.compile(r"ch[0-9]{2}-(q[0-9]{1,3}-)?(title|setup|text|given|check|hint|end)")
MARK = re.compile(r"^#+[ \t]*answer:?[ \t]*(ch[0-9]{2})[.-]q([0-9]{1,3})\b.*\n?", re.MULTILINE | re.IGNORECASE)
CHECKED = re.compile(r"^[ \t]*check\([ \t]*['\"](ch[0-9]{2})\.q([0-9]{1,3})['\"]", re.MULTILINE)
DEFINED = re.compile(
    r"^(?:async[ \t]+)?(?:def|class)[ \t]+(\w+)|^(\w+)[ \t]*(?::[^=\n]*)?=(?!=)"
    r"|^(?:from[ \t]\S+[ \t]+)?import[ \t](.*)",
    re.MULTILINE,
)
"""What a line without indentation defines."""
WORD = re.compile(r"[^\W\d]\w*")


@dataclass
class Answers:
    """What was found in a notebook.

    Attributes:
        sources: by the name of the cell, "ch03-q2-answer"
        problems: why an answer is not there, by the same names
        parts: numbers of the cells that an answer is made of
        defined: what each code cell defines, by its number
    """

    sources: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    parts: dict[str, set[int]] = field(default_factory=dict)
    defined: dict[int, set[str]] = field(default_factory=dict)

    def is_elsewhere(self, word: str, name: str) -> bool:
        """Does a cell define a word that is no part of this answer?"""
        own = self.parts.get(name, set())
        return any(word in words for number, words in self.defined.items() if number not in own)


@dataclass(frozen=True)
class Cell:
    """A cell as far as it matters here: its number from 1, its source (None: no code), the sign's strength (0: id)."""

    number: int
    source: str | None
    strength: int = 0

    @property
    def code(self) -> str:
        return self.source or ""


# ---- signs that the build writes -------------------------------------------------------------------------------------


def mark(cell: Any, question: Question) -> None:
    """Write into an exercise's answer cell what outlives editors that renumber ids or drop them."""
    cell.metadata["tags"] = [*cell.metadata.get("tags", []), cell_id(question, "answer")]
    cell.source = f"# Answer: {question.id}\n{cell.source}"


def unmarked(source: str) -> str:
    """Without the line that says which question this is."""
    return MARK.sub("", source, count=1)


# ---- signs that the grader reads -------------------------------------------------------------------------------------


def answers_in(cells: Sequence[Any]) -> Answers:
    """The answers among a notebook's cells, which may be anything that JSON can hold.

    Args:
        cells: of a notebook of format 4
    """
    marked, free, asked = sorted_out(cells)
    by_name = {cell_id(question, "answer"): question.answer for question in questions.QUESTIONS}
    wanted = {name: by_name.get(name, "") for name in (*marked, *(name for name in asked if name in by_name))}
    at_home = [name for name, claims in marked.items() if any(is_answer(claim, wanted[name]) for claim in claims)]
    found = Answers()
    for name in at_home:
        settle(found, name, wanted[name], marked[name], marked[name])
    for name, definers in shared_out(free, {name: wanted[name] for name in wanted if name not in at_home}).items():
        if definers or name in marked:
            settle(found, name, wanted[name], definers or marked[name], marked.get(name, []))
        elif not marked:
            found.problems[name] = f"No cell is marked as {name}, and none answers by defining {wanted[name]}."
    for number, cell in enumerate(cells[:MAX_CELLS], start=1):
        if isinstance(cell, dict) and cell.get("cell_type") == "code":
            found.defined[number] = defined_by(source_of(cell) or "")
    return found


def sorted_out(cells: Sequence[Any]) -> tuple[dict[str, list[Cell]], list[Cell], list[str]]:
    """Cells with a sign by the name it gives, code cells without one, and the names of answers that are checked."""
    marked: dict[str, list[Cell]] = {}
    free: list[Cell] = []
    asked: dict[str, None] = {}
    for number, cell in enumerate(cells, start=1):
        if not isinstance(cell, dict):
            continue
        source = source_of(cell) if cell.get("cell_type") == "code" else None
        name, strength = sign_of(cell, source)
        if name:
            marked.setdefault(name, []).append(Cell(number, source, strength))
            continue
        for chapter, question in CHECKED.findall((source or "")[:MAX_SOURCE]):
            asked[f"{chapter}-q{question}-answer"] = None
        if source is not None and not is_other_part(cell):
            free.append(Cell(number, source))
    return marked, free, list(asked)


def sign_of(cell: dict[str, Any], source: str | None) -> tuple[str, int]:
    """The name that a cell bears and how strong the sign is, 0 being an id; ("", 0) if it bears none."""
    for strength, name in enumerate((*ids_of(cell), *tags_of(cell))):
        if ANSWER.fullmatch(name):
            return name, strength
    if source is not None and (found := MARK.search(source[:MAX_SOURCE])):
        return f"{found[1].lower()}-q{found[2]}-answer", IN_COMMENT
    return "", 0


def ids_of(cell: dict[str, Any]) -> list[str]:
    """Its id, and what editors keep in the metadata in its place (Colab: id; Deepnote: cell_id)."""
    metadata = cell.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    return [
        name if isinstance(name, str) else "" for name in (cell.get("id"), metadata.get("id"), metadata.get("cell_id"))
    ]


def tags_of(cell: dict[str, Any]) -> list[str]:
    metadata = cell.get("metadata")
    tags = metadata.get("tags") if isinstance(metadata, dict) else None
    return [tag for tag in tags[:20] if isinstance(tag, str)] if isinstance(tags, list) else []


def is_other_part(cell: dict[str, Any]) -> bool:
    return any(OTHER_PART.fullmatch(name) for name in ids_of(cell))


# ---- which cells count -----------------------------------------------------------------------------------------------


def is_answer(cell: Cell, wanted: str) -> bool:
    """Does it hold more than what was handed out, and, if the question is known, define what is asked for?"""
    return cell.source is not None and not is_stub(cell.code) and (not wanted or wanted in defined_by(cell.code))


def is_stub(source: str) -> bool:
    """Nothing, or something that is still to be filled in."""
    return STUB in source or f"...{PLACE}" in source or not unmarked(source).strip()


def shared_out(free: Sequence[Cell], homeless: dict[str, str]) -> dict[str, list[Cell]]:
    """For each name the cells without a sign that define what is asked; a cell that is the only one is that answer's.

    The only one: chapter 11's last answer repeats two others, and is no second answer to their questions.
    """
    found = {
        name: [cell for cell in free if is_answer(cell, wanted)] if wanted else [] for name, wanted in homeless.items()
    }
    settled: set[str] = set()
    while alone := next((n for n in found if n not in settled and len(distinct(found[n])) == 1), ""):
        settled.add(alone)
        taken = {cell.number for cell in found[alone]}
        for name in found:
            if name not in settled:
                found[name] = [cell for cell in found[name] if cell.number not in taken]
    return found


def settle(found: Answers, name: str, wanted: str, candidates: Sequence[Cell], claims: Sequence[Cell]) -> None:
    """Put an answer, or a problem, into `found`.

    Args:
        name, wanted: of the answer's cell, and of what it defines
        candidates: cells that may be it
        claims: cells that bear its sign
    """
    code = [cell for cell in candidates if cell.source is not None]
    best = [cell for cell in code if is_answer(cell, wanted)] or code
    best = distinct([cell for cell in best if cell.strength == min(other.strength for other in best)])
    if not best:
        found.problems[name] = f"Cell {name} is no code cell."
        return
    if len(best) > 1:
        kind = f"cells {name}" if claims else f"cells that define {wanted}"
        found.problems[name] = (
            f"There are two {kind} (numbers {best[0].number} and {best[1].number} of the notebook): delete one."
        )
        return
    parts = with_pieces(best[0], wanted, claims)
    found.parts[name] = {part.number for part in parts}
    source = "\n\n".join(part.code for part in parts)
    if len(source) > MAX_SOURCE:
        found.problems[name] = f"Cell {name} has {len(source):,} characters: at most {MAX_SOURCE:,} are read."
    else:
        found.sources[name] = source


def with_pieces(main: Cell, wanted: str, claims: Sequence[Cell]) -> list[Cell]:
    """The cell and, in the notebook's order, others of the same sign that define what it uses: it was split in two.

    One that names what is asked for is a trial of the answer, or another answer, and no piece of this one.
    """
    parts = [main]
    left = [
        cell
        for cell in claims
        if cell.source is not None and len(cell.code) <= MAX_SOURCE and wanted not in WORD.findall(cell.code)
    ]
    left = distinct([cell for cell in left if cell.number != main.number])
    used = set(WORD.findall(main.code[:MAX_SOURCE]))
    while wanted and (piece := next((cell for cell in left if defined_by(cell.code) & used), None)):
        left.remove(piece)
        parts.append(piece)
        used |= set(WORD.findall(piece.code))
    return sorted(parts, key=lambda cell: cell.number)


def distinct(cells: Sequence[Cell]) -> list[Cell]:
    """The first of all that say the same."""
    return list({unmarked(cell.code).strip(): cell for cell in reversed(cells)}.values())[::-1]


def source_of(cell: dict[str, Any]) -> str | None:
    source = cell.get("source")
    if isinstance(source, list) and all(isinstance(line, str) for line in source):
        source = "".join(source)
    return source.replace("\r\n", "\n").replace("\r", "\n") if isinstance(source, str) else None


def defined_by(source: str) -> set[str]:
    """Names of functions, classes, values and modules at the top of a cell, which need not be Python."""
    names: set[str] = set()
    for function, value, modules in DEFINED.findall(source[:MAX_SOURCE]):
        names |= {function or value} - {""}
        names |= {part.split()[-1].split(".")[0] for part in modules.strip("() \t").split(",") if part.strip()}
    return names
