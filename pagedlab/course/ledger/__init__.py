"""The claim ledger: every checkable claim that the course meets, what is right, and how it was found out.

One CSV file a chapter (ch00.csv ...) with the columns COLUMNS. The chapter's notebook has a cell for every row.
"""

from __future__ import annotations

import ast
import csv
import difflib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from pagedlab.errors import CourseError

COLUMNS = ("id", "claim", "stated", "right", "expected", "tolerance", "verdict", "why", "source")
VERDICTS = ("holds", "corrected", "imprecise", "cited", "measured", "needs-gpu")
IDENTIFIER = re.compile(r"c(sum|(ex)?\d+(\.\d+)*)-[a-z]+\d*")


@dataclass(frozen=True)
class Row:
    """One claim.

    Attributes:
        id: "c5.1.2-a"
        chapter: of the notebook that checks it, "01"
        claim, stated: the claim in the course's words, and the number or statement as it is commonly given
        right: what is right, in words
        expected: what a measurement must give; None if there is nothing to compare with
        tolerance: relative to each expected number; absolute if `absolute`; 0 is exact
        verdict: one of VERDICTS
        why: one sentence
        source: of a citation; may be empty otherwise
    """

    id: str
    chapter: str
    claim: str
    stated: str
    right: str
    expected: Any
    tolerance: float
    absolute: bool
    verdict: str
    why: str
    source: str

    @property
    def is_cited(self) -> bool:
        """Nothing to measure: cite() shows it, not claim()."""
        return self.expected is None and self.verdict not in ("measured", "needs-gpu")


@dataclass(frozen=True)
class Raw:
    """A line as it stands in a file, before anything is checked."""

    file: str
    line: int
    fields: dict[str | None, Any]


@cache
def raw_rows() -> tuple[Raw, ...]:
    """Every line of every file, in chapter order."""
    files = [entry for entry in resources.files(__package__).iterdir() if re.fullmatch(r"ch\d\d\.csv", entry.name)]
    found: list[Raw] = []
    for entry in sorted(files, key=lambda entry: entry.name):
        found += read_csv(entry.name, entry.read_text(encoding="utf-8"))
    return tuple(found)


def read_csv(file: str, content: str) -> list[Raw]:
    reader = csv.DictReader(content.splitlines(keepends=True))
    if reader.fieldnames is None or tuple(reader.fieldnames) != COLUMNS:
        raise CourseError(f"The first line of {file} must be {','.join(COLUMNS)}.")
    return [Raw(file, reader.line_num, fields) for fields in reader]


def find(identifier: str) -> Row:
    """The row of one claim. A mistake in another row does not matter here; rows() finds it.

    Raises:
        CourseError: no row, or more than one, has this id; or the row is malformed.
    """
    found = [raw for raw in raw_rows() if raw.fields["id"] == identifier]
    if len(found) > 1:
        places = ", ".join(f"{raw.file} line {raw.line}" for raw in found)
        raise CourseError(f"The ledger has {identifier!r} more than once ({places}): keep one.")
    if not found:
        near = difflib.get_close_matches(str(identifier), [str(raw.fields["id"]) for raw in raw_rows()], n=3)
        hint = f"; near it are {', '.join(near)}" if near else ""
        raise CourseError(f"The ledger has no claim {identifier!r}{hint}: add it to pagedlab/course/ledger/chNN.csv.")
    return parse(found[0])


def rows(chapter: str | None = None) -> list[Row]:
    """All claims, or those of one chapter ("01"), checked: a malformed row or an id used twice raises CourseError."""
    chosen = [raw for raw in raw_rows() if chapter is None or raw.file == f"ch{chapter}.csv"]
    counts = Counter(raw.fields["id"] for raw in raw_rows())
    for raw in chosen:
        if counts[raw.fields["id"]] > 1:
            find(raw.fields["id"])  # raises, and names the places
    return [parse(raw) for raw in chosen]


def summary(chapter: str | None = None) -> dict[str, int]:
    """How many claims have each verdict, for a table at a chapter's end."""
    counts = Counter(row.verdict for row in rows(chapter))
    return {verdict: counts[verdict] for verdict in VERDICTS if counts[verdict]}


def parse(raw: Raw) -> Row:
    problem = next(problems(raw), None)
    if problem:
        raise CourseError(f"{raw.file} line {raw.line} ({raw.fields.get('id')}): {problem}")
    fields = {name: (raw.fields[name] or "").strip() for name in COLUMNS}
    tolerance = fields["tolerance"].removeprefix("abs:")
    return Row(
        id=fields["id"],
        chapter=raw.file[2:4],
        claim=fields["claim"],
        stated=fields["stated"],
        right=fields["right"],
        expected=literal(fields["expected"]) if fields["expected"] else None,
        tolerance=float(tolerance or 0),
        absolute=fields["tolerance"].startswith("abs:"),
        verdict=fields["verdict"],
        why=fields["why"],
        source=fields["source"],
    )


def problems(raw: Raw) -> Iterator[str]:
    """What is wrong with a line, in one sentence each."""
    if None in raw.fields or any(value is None for value in raw.fields.values()):
        yield f'it needs {len(COLUMNS)} columns: put a field that has commas in "double quotes".'
        return
    fields = raw.fields
    if not IDENTIFIER.fullmatch(fields["id"]):
        yield "its id must look like c5.1.2-a."
    if fields["verdict"] not in VERDICTS:
        yield f"its verdict must be one of {', '.join(VERDICTS)}, not {fields['verdict']!r}."
    for name in ("claim", "why"):
        if not fields[name].strip():
            yield f"its column {name!r} is empty."
    if fields["expected"]:
        try:
            literal(fields["expected"])
        except (ValueError, SyntaxError):
            yield f"expected must be a literal (13.4, true, 'text', [1, 2]), not {fields['expected']!r}."
    if not re.fullmatch(r"((abs:)?\d*\.?\d+(e-?\d+)?)?", fields["tolerance"]):
        yield f"tolerance must be a relative number, abs:0.5 or empty, not {fields['tolerance']!r}."
    if not fields["expected"] and fields["verdict"] not in ("measured", "needs-gpu") and not fields["source"]:
        yield "it has nothing to compare with: give `expected`, or a `source` to cite."


def literal(written: str) -> Any:
    """JSON (true, [1, 2]) or Python (True, 'text', {1: 2})."""
    try:
        return json.loads(written)
    except json.JSONDecodeError:
        return ast.literal_eval(written)
