"""What a master notebook in solutions/ must hold: a cell of each kind for each question of its chapter, under its id.

The graded half of the exercises rests on these ids: the grader takes setup and given cells from the master, and of a
reader's notebook nothing but the answer cells.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from typing import Any

from pagedlab.course.questions import Question

BEGIN = "### BEGIN SOLUTION"
END = "### END SOLUTION"
STUB = "Write your code here."
"""What the stub of an unanswered function raises NotImplementedError with."""
PLACE = "  # your answer"
"""Follows the stub of an unanswered value."""
PARTS = ("text", "given", "answer", "check", "hint")
OPTIONAL = "given"
INFO = re.compile(r"^difficulty (?P<dots>[●○]{3}) · (?P<points>\d+) points? · (?P<kind>\w+)$", re.MULTILINE)


def cell_id(question: Question, part: str) -> str:
    """ "ch03-q2-answer"."""
    return f"{question.id.replace('.', '-')}-{part}"


def master_problems(notebook: Any, chapter: str, questions: Sequence[Question]) -> list[str]:
    """Everything that keeps a notebook from being the master of a chapter's exercises, one sentence each.

    Args:
        notebook: as nbformat reads it
        chapter: "ch03"
        questions: of that chapter
    """
    wanted = wanted_ids(chapter, questions)
    given = [cell.get("id", "") for cell in notebook.cells]
    found = list(problems_of_ids(wanted, given))
    if not questions:
        found.append(f"{chapter} has no questions: add them in pagedlab/course/questions/{chapter}.py.")
    if found:  # what follows looks cells up by their ids
        return found
    cells = {cell.id: cell for cell in notebook.cells}
    total = sum(question.points for question in questions)
    if not re.search(rf"\b{total} points\b", cells[f"{chapter}-title"].source):
        found.append(f'cell {chapter}-title must say how many points there are in all: "{total} points".')
    for question in questions:
        found += problems_of_question(question, cells)
    return found


def wanted_ids(chapter: str, questions: Sequence[Question]) -> list[str]:
    inner = [cell_id(question, part) for question in questions for part in PARTS]
    return [f"{chapter}-title", f"{chapter}-setup", *inner, f"{chapter}-end"]


def problems_of_ids(wanted: list[str], given: list[str]) -> Iterator[str]:
    for identifier in wanted:
        if identifier not in given and not identifier.endswith(f"-{OPTIONAL}"):
            yield f"there is no cell {identifier}."
    for position, identifier in enumerate(given):
        if identifier not in wanted:
            yield f"cell {identifier} (number {position + 1}) is none of a master's cells: {', '.join(PARTS)}."
        elif identifier in given[:position]:
            yield f"there are two cells {identifier}."
    in_order = [identifier for identifier in wanted if identifier in given]
    known = [identifier for identifier in given if identifier in wanted]
    if len(known) == len(in_order) and known != in_order:
        first = next(have for have, want in zip(known, in_order, strict=True) if have != want)
        yield f"cell {first} is not in its place: title, setup, then each question's {', '.join(PARTS)}, then end."


def problems_of_question(question: Question, cells: dict[str, Any]) -> Iterator[str]:
    part = {name: cells.get(cell_id(question, name)) for name in PARTS}
    for name, cell in part.items():
        kind = "markdown" if name == "text" else "code"
        if cell is not None and cell.cell_type != kind:
            yield f"cell {cell.id} must be a {kind} cell."
    source = {name: cell.source if cell is not None else "" for name, cell in part.items()}
    yield from problems_of_text(question, source["text"])
    for name, call in (("check", f'check("{question.id}")'), ("hint", f'# hint("{question.id}")')):
        if source[name].strip() != call:
            yield f"cell {cell_id(question, name)} must be {call} and nothing else."
    if BEGIN in source["given"]:
        yield f"cell {cell_id(question, 'given')} holds a solution: what is given is shown to the reader."
    yield from problems_of_answer(question, source["answer"])


def problems_of_text(question: Question, text: str) -> Iterator[str]:
    name = cell_id(question, "text")
    number = question.id.split(".q")[1]
    heading = f"## Question {number}: {question.title}"
    if not text.lower().startswith(heading.lower()):
        yield f'cell {name} must begin with "{heading}", as the question is registered.'
    info = INFO.search(text)
    dots = "●" * question.difficulty + "○" * (3 - question.difficulty)
    wanted = f"difficulty {dots} · {question.points} points · {question.kind.value}"
    if not info:
        yield f'cell {name} needs the line "{wanted}".'
    elif (info["dots"], int(info["points"]), info["kind"]) != (dots, question.points, question.kind.value):
        yield f'cell {name} says "{info[0]}", but the question is registered with "{wanted}".'


def problems_of_answer(question: Question, source: str) -> Iterator[str]:
    name = cell_id(question, "answer")
    marks = [line.strip() for line in source.splitlines() if line.strip() in (BEGIN, END)]
    if not marks or marks != [BEGIN, END] * (len(marks) // 2):
        yield f"cell {name} must hold its solution between the lines {BEGIN} and {END}."
        return
    whole = list(problems_of_code(question, source))
    yield from (f"cell {name} {problem}" for problem in whole)
    if whole:
        return
    for problem in problems_of_code(question, stubbed(source, question.answer)):
        yield f"cell {name}, once its solution is taken out, {problem}"


def problems_of_code(question: Question, source: str) -> Iterator[str]:
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        yield f"is no Python: line {error.lineno}: {error.msg}."
        return
    if question.answer not in set(defined_names(tree)):
        yield f"does not define {question.answer}."
    inside = {id(child) for function in functions(tree) for child in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and id(node) not in inside and "NotImplementedError" in ast.unparse(node):
            yield f"raises in line {node.lineno} when it is run: put BEGIN and END inside a function, or at the margin."


def functions(tree: ast.AST) -> Iterator[ast.AST]:
    return (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def defined_names(tree: ast.Module) -> Iterator[str]:
    """Names that the statements at the margin bind."""
    for statement in tree.body:
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
            yield statement.name
        else:
            for node in ast.walk(statement):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    yield node.id


# ---- taking the solution out -----------------------------------------------------------------------------------------


def stubbed(source: str, answer: str) -> str:
    """An answer cell without its solution.

    A region at the margin becomes `answer = ...`, once a cell; one inside a function becomes a NotImplementedError that
    check() knows as "not answered yet"; one between the methods of a class becomes a constructor that raises it.
    """
    lines: list[str] = []
    inside = assigned = False
    for number, line in enumerate(source.splitlines(), start=1):
        mark = line.strip()
        indent = line[: len(line) - len(line.lstrip())]
        if mark == BEGIN:
            inside = True
            if not indent:
                lines += [] if assigned else [f"{answer} = ...{PLACE}"]
                assigned = True
            elif in_function(source, number):
                lines.append(f'{indent}raise NotImplementedError("{STUB}")')
            else:
                lines.append(f"{indent}def __init__(self, *arguments):")
                lines.append(f'{indent}    raise NotImplementedError("{STUB}")')
        elif mark == END:
            inside = False
        elif not inside:
            lines.append(line)
    return "\n".join(lines)


def in_function(source: str, line: int) -> bool:
    return any(
        isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.lineno < line <= (node.end_lineno or 0)
        for node in ast.walk(ast.parse(source))
    )
