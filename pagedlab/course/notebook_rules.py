"""What a finished notebook must be like, one rule a function; nothing is executed. Tests and the command line share it.

Each rule yields a sentence for each thing that is wrong. COMMON rules hold for every notebook, CHAPTER rules for those
in chapters/, LESSON rules for chapter 01 and later (chapter 00 only opens the course), MASTER rules in solutions/.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pagedlab.course import ledger

MAX_LINES = 30
MAX_BYTES = 1_000_000
MIN_PICTURES = 2
MIN_QUESTIONS = 5
MIN_ALT = 20
IGNORED = "nbval-ignore-output"
COMPARED = "# NBVAL_CHECK_OUTPUT"

READABLE_ID = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
MACHINE_PATH = re.compile(
    r"(?<![\w.~:/])/(?:home|root|work|tmp|Users|mnt|private|opt)/[\w.~-]+"
    r"|(?<!\w)[A-Za-z]:\\+(?:Users|Program|Windows|Temp)"
)
ANSWER_ID = re.compile(r"ch\d\d-q\d+-answer")
CHAPTER_NAME = re.compile(r"(\d\d)_[a-z0-9]+(_[a-z0-9]+)*")
CLAIM_LINE = re.compile(r"^Claim (c[\w.]+-[a-z]+\d*): (.*)", re.MULTILINE)

Rule = Callable[[Any, Path], Iterator[str]]


def problems(notebook: Any, path: Path) -> Iterator[str]:
    """Every broken rule of one notebook, in one sentence each, with the id of the cell."""
    rules = list(COMMON)
    if path.resolve().parent.name == "chapters":
        rules += CHAPTER
        if chapter_number(path) != "00":
            rules += LESSON
    if path.resolve().parent.name == "solutions":
        rules += MASTER
    for rule in rules:
        yield from rule(notebook, path)


def chapter_number(path: Path) -> str:
    found = CHAPTER_NAME.fullmatch(path.stem)
    return found[1] if found else ""


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def bundles(cell: Any) -> Iterator[Any]:
    """The outputs of a cell that have several forms: data by MIME type, and metadata."""
    for output in cell.get("outputs", []):
        if output.output_type in ("display_data", "execute_result"):
            yield output


def output_texts(cell: Any) -> Iterator[str]:
    """Everything a reader can read in a cell's outputs."""
    for output in cell.get("outputs", []):
        if output.output_type == "stream":
            yield output.text
        elif output.output_type == "error":
            yield "\n".join(output.traceback)
    for output in bundles(cell):
        for kind, content in output.data.items():
            if kind.startswith("text/"):
                yield "".join(content)


def calls(cell: Any) -> Iterator[tuple[str, ast.Call]]:
    """Every function call in a cell: the name without what stands before its last dot, and the call."""
    source = "\n".join("pass" if line.lstrip().startswith(("%", "!")) else line for line in cell.source.splitlines())
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", None) or getattr(node.func, "attr", None)
            if name:
                yield name, node


def first_text(call: ast.Call) -> str | None:
    value = call.args[0].value if call.args and isinstance(call.args[0], ast.Constant) else None
    return value if isinstance(value, str) else None


# ---- every notebook ----------------------------------------------------------------------------------------------


def size(notebook: Any, path: Path) -> Iterator[str]:
    if path.stat().st_size > MAX_BYTES:
        yield f"it has {path.stat().st_size / 1e6:.1f} MB, {MAX_BYTES / 1e6:g} are allowed: use fewer pixels."


def cell_ids(notebook: Any, path: Path) -> Iterator[str]:
    """nbformat has already given a random id to a second cell with the same one."""
    ids = [cell.get("id", "") for cell in notebook.cells]
    bad = [one for one in ids if not READABLE_ID.fullmatch(one) or re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f-]+)?", one)]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        yield f"the cell id {bad[0]!r}{more} is not readable: words in lower case, joined by hyphens."


def no_widget_state(notebook: Any, path: Path) -> Iterator[str]:
    if "widgets" in notebook.metadata:
        yield "its metadata hold widget state."
    for cell in notebook.cells:
        for output in bundles(cell):
            if any("widget" in kind for kind in output.data):
                yield f"cell {cell.id} has a widget in its outputs."


def no_machine_paths(notebook: Any, path: Path) -> Iterator[str]:
    for cell in notebook.cells:
        for content in (cell.source, *output_texts(cell)):
            found = MACHINE_PATH.search(content)
            if found:
                yield f"cell {cell.id} names a path of one machine: {found[0]}"


def images_have_alt_text(notebook: Any, path: Path) -> Iterator[str]:
    for cell in notebook.cells:
        for output in bundles(cell):
            for kind in output.data:
                alt = output.metadata.get(kind, {}).get("alt", "") if kind.startswith("image/") else None
                if alt is not None and len(alt.strip()) < MIN_ALT:
                    yield f"cell {cell.id} has a picture without alt text: display it with show(figure, alt=...)."
        written = [cell.source] if cell.cell_type == "markdown" else []
        written += ["".join(output.data.get("text/html", "")) for output in bundles(cell)]
        for markup in written:
            if re.search(r"!\[\s*\]\(", markup):
                yield f"cell {cell.id} has a Markdown picture without alt text: ![what it shows](...)."
            for tag in re.findall(r"<img\b[^>]*>", markup):
                if not re.search(r"""\balt=["'][^"']{5,}""", tag):
                    yield f"cell {cell.id} has an <img> without alt text."


def links_lead_somewhere(notebook: Any, path: Path) -> Iterator[str]:
    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            continue
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", cell.source):
            if not re.match(r"[a-z]+:", target) and not (path.parent / target).exists():
                yield f"cell {cell.id} links to {target}, which does not exist."


def small_cells(notebook: Any, path: Path) -> Iterator[str]:
    for cell in code_cells(notebook):
        lines = len(cell.source.splitlines())
        if lines > MAX_LINES and not ANSWER_ID.fullmatch(cell.id):  # an answer stands alone: it cannot be split
            yield f"cell {cell.id} has {lines} lines, {MAX_LINES} are allowed: split it."
        if not cell.source.strip():
            yield f"cell {cell.id} is empty."


COMMON: tuple[Rule, ...] = (
    size,
    cell_ids,
    no_widget_state,
    no_machine_paths,
    images_have_alt_text,
    links_lead_somewhere,
    small_cells,
)


# ---- chapters ----------------------------------------------------------------------------------------------------


def file_name(notebook: Any, path: Path) -> Iterator[str]:
    if not chapter_number(path):
        yield "a chapter's file is named NN_short_name.ipynb."


def executed_in_order(notebook: Any, path: Path) -> Iterator[str]:
    cells = code_cells(notebook)
    counts = [cell.execution_count for cell in cells]
    if counts != list(range(1, len(cells) + 1)):
        yield "its cells were not run once each, from the first to the last, in a clean kernel."
    if not any(cell.outputs for cell in cells):
        yield "no cell has an output."


def no_errors_or_warnings(notebook: Any, path: Path) -> Iterator[str]:
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if output.output_type == "error":
                yield f"cell {cell.id} ended in {output.ename}."
            elif output.output_type == "stream" and output.name == "stderr":
                yield f"cell {cell.id} wrote to stderr: {output.text.strip()[:80]}"


def compared_cells(notebook: Any, path: Path) -> Iterator[str]:
    """nbval compares nothing in a cell that has no output, and nothing without the marker."""
    compared = [cell for cell in code_cells(notebook) if COMPARED in cell.source]
    if not compared:
        yield f"no cell is compared when it is tested: start a deterministic one with {COMPARED}."
    for cell in compared:
        if not cell.source.startswith(COMPARED):
            yield f"cell {cell.id} must have {COMPARED} as its first line."
        if not any(text.strip() for text in output_texts(cell)):
            yield f"cell {cell.id} is to be compared but has no text in its output."
        if IGNORED in cell.metadata.get("tags", []):
            yield f"cell {cell.id} is to be compared and tagged {IGNORED}: choose one."


def claims_are_in_the_ledger(notebook: Any, path: Path) -> Iterator[str]:
    known = {raw.fields["id"]: raw.fields["claim"].strip() for raw in ledger.raw_rows()}
    for cell in code_cells(notebook):
        named = {first_text(call) for name, call in calls(cell) if name in ("claim", "cite")} - {None}
        for identifier in sorted(str(name) for name in named):
            if identifier not in known:
                yield f"cell {cell.id} claims {identifier}, which is not in the ledger."
        for identifier, wording in shown_claims(cell):
            if identifier in known and wording != known[identifier]:
                yield f"cell {cell.id} shows {identifier} as it was before the ledger changed: run the notebook again."


def ledger_is_covered(notebook: Any, path: Path) -> Iterator[str]:
    """A row counts when a cell has shown it: claim() and cite() print it only after the comparison held."""
    shown = {identifier for cell in code_cells(notebook) for identifier, _ in shown_claims(cell)}
    for row in ledger.rows(chapter_number(path)):
        if row.id not in shown:
            yield f"no cell shows the ledger's {row.id} ({row.claim})."


def shown_claims(cell: Any) -> list[tuple[str, str]]:
    """Ids and wordings of the claims in a cell's outputs."""
    return [
        found for output in bundles(cell) for found in CLAIM_LINE.findall("".join(output.data.get("text/plain", "")))
    ]


CHAPTER: tuple[Rule, ...] = (
    file_name,
    executed_in_order,
    no_errors_or_warnings,
    compared_cells,
    claims_are_in_the_ledger,
    ledger_is_covered,
)


# ---- chapters that teach -----------------------------------------------------------------------------------------


def enough_pictures(notebook: Any, path: Path) -> Iterator[str]:
    pictures = sum("image/png" in output.data for cell in code_cells(notebook) for output in bundles(cell))
    if pictures < MIN_PICTURES:
        yield f"it shows {pictures} pictures, a chapter has {MIN_PICTURES} or more."


def has_its_parts(notebook: Any, path: Path) -> Iterator[str]:
    used = {name for cell in code_cells(notebook) for name, _ in calls(cell)}
    for needed in ("predict", "reveal", "explore", "show_source"):
        if needed not in used:
            yield f"it never calls {needed}()."
    for cell in code_cells(notebook):
        names = {name for name, _ in calls(cell)}
        if "explore" in names and IGNORED not in cell.metadata.get("tags", []):
            yield f"cell {cell.id} has controls and needs the tag {IGNORED}."


def has_questions(notebook: Any, path: Path) -> Iterator[str]:
    folded = sum(cell.source.count("<details") for cell in notebook.cells if cell.cell_type == "markdown")
    if folded < MIN_QUESTIONS:
        yield f"it asks {folded} questions with folded answers (<details>), a chapter has {MIN_QUESTIONS} or more."


LESSON: tuple[Rule, ...] = (enough_pictures, has_its_parts, has_questions)


# ---- solutions -------------------------------------------------------------------------------------------------------


def earns_full_marks(notebook: Any, path: Path) -> Iterator[str]:
    for cell in code_cells(notebook):
        if cell.id.endswith("-check") and not any("right in every case" in text for text in output_texts(cell)):
            yield f"cell {cell.id} does not show full marks."


MASTER: tuple[Rule, ...] = (executed_in_order, no_errors_or_warnings, earns_full_marks)
