"""Claims against measurements: claim() compares a number of this run with the ledger, cite() shows a source."""

from __future__ import annotations

import re
from typing import Any

from pagedlab.course import ledger
from pagedlab.course.comparison import matches
from pagedlab.course.display import BADGES, badge, emit, format_value, plain_value, table, text
from pagedlab.errors import ClaimError, CourseError

ADDRESS = re.compile(r"https?://\S*[^\s.,;:)]")


def claim(identifier: str, measured: Any) -> None:
    """Set what is commonly said beside what this run found.

    Args:
        identifier: row of the ledger, "c5.1.2-a".
        measured: a number, truth, text, or a sequence or dictionary of them in the shape of the row's `expected`.

    Raises:
        ClaimError: measured is not within the row's tolerance of what is expected.
        CourseError: the ledger has no such row, or it can only be cited.
    """
    row = ledger.find(identifier)
    if row.is_cited:
        raise CourseError(f"{identifier} has nothing to compare with: show it with cite({identifier!r}).")
    measured = plain_value(measured)
    if row.expected is not None and not agrees(measured, row):
        within = "exactly" if not row.tolerance else f"within {row.tolerance:g}{'' if row.absolute else ' (relative)'}"
        raise ClaimError(f"{identifier}: measured {measured!r}, but the ledger expects {row.expected!r} {within}.")
    show_row(row, format_value(measured))


def cite(identifier: str) -> None:
    """Show a claim that is not measured here, with its source.

    Raises:
        CourseError: the ledger has no such row, or the row can be measured.
    """
    row = ledger.find(identifier)
    if not row.is_cited:
        raise CourseError(f"{identifier} can be measured: use claim({identifier!r}, measured).")
    show_row(row, None)


def agrees(measured: Any, row: ledger.Row) -> bool:
    """Does a measurement match the row's expected value, part by part?"""
    return matches(measured, plain_value(row.expected), row.tolerance, row.absolute)


def show_row(row: ledger.Row, measured: str | None) -> None:
    _sign, words, _colour = BADGES[row.verdict]
    found = row.right if measured is None else measured + (f" ({row.right})" if adds(row.right, measured) else "")
    lines = [f"Claim {row.id}: {row.claim}"]
    if row.stated:
        lines.append(f"  commonly said: {row.stated}")
    lines += [f"  {'right' if measured is None else 'found'}: {found}", f"  verdict: {words}. {row.why}"]
    if row.source:
        lines.append(f"  source: {row.source}")
    source = f"<br><small>Source: {linked(row.source)}</small>" if row.source else ""
    header = ["claim", "commonly said", "right" if measured is None else "what we found", "verdict"]
    cells = [text(row.claim), text(row.stated or "–"), found_markup(row, measured)]
    markup = table(header, [*cells, f"{badge(row.verdict)}<br>{text(row.why)}{source}"])
    emit("\n".join(lines), markup)


def found_markup(row: ledger.Row, measured: str | None) -> str:
    if measured is None:
        return text(row.right)
    return f"<b>{text(measured)}</b>" + (f"<br>{text(row.right)}" if adds(row.right, measured) else "")


def adds(right: str, measured: str) -> bool:
    """Do the words of the row say more than the measurement itself?"""
    return bool(right) and right != measured


def linked(source: str) -> str:
    """A source with its addresses as links; a comma behind one is no part of it."""
    return ADDRESS.sub(lambda found: f'<a href="{found[0]}">{found[0]}</a>', text(source))
