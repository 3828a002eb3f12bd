"""Every question: its solution is right, its stub earns nothing, and a bank of wrong answers is told what is wrong."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from exercise_tools import (
    ASKED,
    EXERCISES,
    IDS,
    IS_INTERPRETER,
    MASTERS,
    REPOSITORY,
    SOLUTION,
    TEXT,
    bank,
    master_cells,
    small_master,
    tried,
    with_cases,
)
from nbformat.v4 import new_code_cell

from pagedlab.course import exercise_notebooks, exercises, notebooks, questions
from pagedlab.course.exercise_notebooks import build_command, exercise_of, holds_answers
from pagedlab.course.masters import BEGIN, END, cell_id, master_problems, stubbed
from pagedlab.course.questions import of_chapter
from pagedlab.errors import CourseError
from pagedlab.interfaces import cli

MIN_QUESTIONS = 65
MIN_RIGHT = 2
MIN_WRONG = 8

# ---- every question --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("identifier", IDS)
def test_the_solution_earns_all_points_and_the_stub_none(identifier: str) -> None:
    question = with_cases(identifier)
    solution = master_cells(question.chapter)[cell_id(question, "answer")]
    assert tried(identifier, solution) == (question.points, "")
    points, told = tried(identifier, stubbed(solution, question.answer))
    assert points == 0
    assert told.count(exercises.NOT_ANSWERED) == len(list(question.cases())), told


@pytest.mark.parametrize("identifier", IDS)
def test_right_answers_written_in_other_ways_earn_all_points(identifier: str) -> None:
    question, answers = with_cases(identifier), bank(questions.find(identifier))
    assert len(answers.right) >= MIN_RIGHT
    failed = {name: tried(identifier, textwrap.dedent(source)) for name, source in answers.right}
    assert {name: (points, told) for name, (points, told) in failed.items() if points < question.points} == {}


@pytest.mark.parametrize("identifier", IDS)
def test_wrong_answers_are_told_which_mistake_it_is(identifier: str) -> None:
    question, answers = with_cases(identifier), bank(questions.find(identifier))
    assert len(answers.wrong) >= MIN_WRONG
    assert len({source for _, source, _ in answers.wrong}) == len(answers.wrong)
    unnoticed = {}
    for name, source, words in answers.wrong:
        points, told = tried(identifier, textwrap.dedent(source), until=words)
        if points == question.points or not words or words not in told:
            unnoticed[name] = (points, words, told)
    assert unnoticed == {}


@pytest.mark.skipif(IS_INTERPRETER or not find_spec("triton"), reason="runs the tests above where Triton interprets")
@pytest.mark.timeout(2000)
@pytest.mark.parametrize("file", ["test_exercises.py", "test_fresh_cases.py"])
def test_the_same_holds_for_triton_kernels(file: str) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    path = str(Path(__file__).with_name(file))
    command = [sys.executable, "-m", "pytest", path, "-n", "0", "-q", "-k", "answers or solution or fresh"]
    run = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:]


@pytest.mark.parametrize("identifier", ["ch00.q1", *[question.id for question in ASKED]])
def test_a_question_is_complete(identifier: str) -> None:
    question = questions.find(identifier)
    assert question.title and question.answer.isidentifier()
    assert question.kind in questions.Kind and question.difficulty in (1, 2, 3) and 1 <= question.points <= 6
    assert len(set(question.hints)) == 3 and all(len(hint) > 20 for hint in question.hints)
    names = [case.name for case in question.cases()]
    assert len(set(names)) == len(names) >= 1


@pytest.mark.parametrize("chapter", sorted({question.chapter for question in ASKED}))
def test_a_chapter_asks_in_several_ways_for_about_as_many_points_as_others(chapter: str) -> None:
    asked = of_chapter(chapter)
    assert 3 <= len(asked) <= 6
    assert [question.id for question in asked] == [f"{chapter}.q{number}" for number in range(1, len(asked) + 1)]
    assert len({question.kind for question in asked}) >= 2
    assert 10 <= sum(question.points for question in asked) <= 20
    bank_ids = set(importlib.import_module(f"answers.{chapter}").BANK)
    assert bank_ids == {question.id for question in asked}


def test_every_module_of_questions_is_registered_and_has_a_master() -> None:
    folder = Path(questions.__file__).parent
    modules = {path.stem for path in folder.glob("ch[0-9][0-9].py")}
    assert modules == {question.chapter for question in questions.QUESTIONS}
    assert modules - {"ch00"} == {f"ch{path.name[:2]}" for path in MASTERS}
    assert len(ASKED) >= MIN_QUESTIONS


# ---- the notebooks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*MASTERS, *EXERCISES], ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_masters_and_exercises_keep_every_rule(path: Path) -> None:
    if path.parent.name == "exercises" and holds_answers(path):
        pytest.skip("a reader has worked in it")
    assert notebooks.list_problems(path) == []


@pytest.mark.parametrize("master", MASTERS, ids=lambda path: path.stem)
def test_committed_exercises_are_what_their_masters_give(master: Path) -> None:
    asked = of_chapter(f"ch{master.name[:2]}")
    notebook = notebooks.read(master)
    assert master_problems(notebook, f"ch{master.name[:2]}", asked) == []
    assert committed(REPOSITORY / "exercises" / master.name) == notebooks.serialise(exercise_of(notebook, asked))


def committed(path: Path) -> str:
    """A file as it is, or as it was before a reader wrote answers into it."""
    if not holds_answers(path):
        return path.read_text(encoding="utf-8")
    show = ["git", "show", f"HEAD:{path.relative_to(REPOSITORY).as_posix()}"]
    return subprocess.run(show, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout


def test_every_exercise_has_a_master() -> None:
    assert {path.name for path in EXERCISES} == {path.name for path in MASTERS}


# ---- building --------------------------------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A repository whose only questions are chapter 00's, with a master for them."""
    monkeypatch.setattr(questions, "QUESTIONS", tuple(of_chapter("ch00")))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "solutions").mkdir()
    save(tmp_path, small_master())
    yield tmp_path


def save(repository: Path, master: Any) -> None:
    (repository / "solutions" / "00_small.ipynb").write_text(notebooks.serialise(master))


def test_building_takes_solutions_outputs_and_counts_out_and_is_then_done(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    master = small_master()
    master.cells[3].execution_count = 7
    save(repository, master)
    assert cli.main(["exercises", "build", "--check"]) == 1
    built = repository / "exercises" / "00_small.ipynb"
    assert "00_small.ipynb is not what its master gives" in capsys.readouterr().out and not built.exists()
    assert cli.main(["exercises", "build"]) == 0
    before = built.read_bytes()
    assert cli.main(["exercises", "build", "--check"]) == 0 and cli.main(["exercises", "build"]) == 0
    assert built.read_bytes() == before
    cells = {cell.id: cell for cell in notebooks.read(built).cells}
    assert list(cells) == [cell.id for cell in small_master().cells]
    stub = '    """Whole blocks."""\n    raise NotImplementedError("Write your code here.")'
    assert cells["ch00-q1-answer"].source == f"# Answer: ch00.q1\ndef blocks_needed(n):\n{stub}"
    assert all(cell.execution_count is None for cell in cells.values() if cell.cell_type == "code")
    assert notebooks.list_problems(built) == []


def test_a_changed_master_and_a_changed_exercise_are_noticed(repository: Path) -> None:
    build_command()
    built = repository / "exercises" / "00_small.ipynb"
    save(repository, small_master(end="That is not all."))
    assert build_command(check=True) == 1
    assert build_command() == 0 and "not all" in built.read_text()
    built.write_text(built.read_text().replace("Whole blocks", "Half blocks"))
    assert build_command(check=True) == 1


@pytest.mark.parametrize(
    "edit",
    [
        lambda cells: cells["ch00-q1-answer"].update(source="def blocks_needed(n):\n    return 5"),
        lambda cells: cells["ch00-q1-check"].update(execution_count=3),
    ],
)
def test_building_does_not_overwrite_what_a_reader_wrote(
    repository: Path, edit: Callable[[dict[str, Any]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    build_command()
    built = repository / "exercises" / "00_small.ipynb"
    notebook = notebooks.read(built)
    edit({cell.id: cell for cell in notebook.cells})
    built.write_text(notebooks.serialise(notebook))
    before = built.read_bytes()
    assert build_command() == 1 and built.read_bytes() == before
    assert "holds answers" in capsys.readouterr().out
    assert build_command(force=True) == 0 and built.read_bytes() != before


def test_a_file_without_a_master_and_a_chapter_without_one_are_named(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build_command()
    (repository / "exercises" / "07_gone.ipynb").write_text("{}")
    monkeypatch.setattr(exercise_notebooks, "ASKED_IN_ITS_CHAPTER", ())
    (repository / "solutions" / "00_small.ipynb").rename(repository / "solutions" / "99_small.ipynb")
    assert build_command(check=True) == 1
    said = capsys.readouterr().out
    assert "07_gone.ipynb has no master" in said and "ch00 has questions but no master" in said
    assert "ch99 has no questions" in said
    with pytest.raises(CourseError, match="no masters in"):
        build_command(root=repository / "exercises")


REGION_AT_THE_MARGIN = f"import math\n\n{BEGIN}\nblocks_needed = 7\n{END}\nprint(1)\n{BEGIN}\nx = 1\n{END}"
REGION_IN_A_CLASS = f"class A:\n    size = 1\n\n    {BEGIN}\n    def f(self):\n        return 1\n    {END}"
ONE_REGION = f"def f():\n    {BEGIN}\n    return 1\n    {END}\n\n\n"
TWO_REGIONS = f"{ONE_REGION}def g():\n    if f():\n        {BEGIN}\n        x = 1\n        {END}"
STUB = 'raise NotImplementedError("Write your code here.")'


@pytest.mark.parametrize(
    ("source", "stub"),
    [
        (REGION_AT_THE_MARGIN, "import math\n\nblocks_needed = ...  # your answer\nprint(1)"),
        (REGION_IN_A_CLASS, f"class A:\n    size = 1\n\n    def __init__(self, *arguments):\n        {STUB}"),
        (TWO_REGIONS, f"def f():\n    {STUB}\n\n\ndef g():\n    if f():\n        {STUB}"),
    ],
)
def test_what_becomes_of_a_region(source: str, stub: str) -> None:
    assert stubbed(source, "blocks_needed") == stub


WRONG_MASTERS: dict[str, tuple[dict[str, str], str]] = {
    "other points": (
        {"text": TEXT.replace("2 points", "3 points")},
        'registered with "difficulty ●○○ · 2 points · impl',
    ),
    "other difficulty": ({"text": TEXT.replace("●○○", "●●○")}, "says"),
    "no line of points": ({"text": TEXT.replace("difficulty", "level")}, 'needs the line "difficulty'),
    "other title": ({"text": TEXT.replace("Blocks", "Bricks")}, 'must begin with "## Question 1: Blocks for a text"'),
    "total missing": ({"title": "# Exercises"}, '"2 points"'),
    "no marks": ({"answer": SOLUTION.replace(BEGIN, "")}, "between the lines"),
    "marks in the wrong order": ({"answer": f"{END}\n{SOLUTION}\n{BEGIN}"}, "between the lines"),
    "no Python": ({"answer": SOLUTION.replace("return", "return return")}, "is no Python: line 4"),
    "other name": ({"answer": SOLUTION.replace("blocks_needed", "blocks")}, "does not define blocks_needed"),
    "name inside the region": (
        {"answer": f"if True:\n    {BEGIN}\n    blocks_needed = 1\n    {END}"},
        "taken out, does not",
    ),
    "check of another": ({"check": 'check("ch00.q2")'}, 'must be check("ch00.q1")'),
    "hint that shows itself": ({"hint": 'hint("ch00.q1")'}, 'must be # hint("ch00.q1")'),
}


@pytest.mark.parametrize("name", WRONG_MASTERS)
def test_a_master_that_is_not_in_order_is_told_so_in_a_sentence(
    repository: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sources, words = WRONG_MASTERS[name]
    save(repository, small_master(**sources))
    assert build_command() == 1
    said = capsys.readouterr().out
    assert words in said and "ch00-" in said, said
    assert not (repository / "exercises").exists()


def test_missing_misplaced_unknown_and_wrong_cells_are_named(repository: Path) -> None:
    asked = of_chapter("ch00")

    def found(change: Callable[[list[Any]], Any]) -> str:
        master = small_master()
        change(master.cells)
        return " ".join(master_problems(master, "ch00", asked))

    assert found(lambda cells: cells.pop(3)) == "there is no cell ch00-q1-answer."
    assert "is not in its place" in found(lambda cells: cells.insert(0, cells.pop(3)))
    assert "ch00-q1-extra (number 8) is none" in found(
        lambda cells: cells.append(new_code_cell("1", id="ch00-q1-extra"))
    )
    assert "two cells ch00-end" in found(lambda cells: cells.append(cells[-1]))
    assert "ch00-q1-check must be a code cell" in found(lambda cells: cells[4].update(cell_type="markdown"))
    given = new_code_cell(SOLUTION, id="ch00-q1-given")
    assert "ch00-q1-given holds a solution" in found(lambda cells: cells.insert(3, given))


def test_objects_that_claim_equality_are_no_results() -> None:
    class Yes(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    class Any_:
        def __eq__(self, other: object) -> bool:
            return True

    for fake, name in ((Yes(1), "Yes"), (Any_(), "Any_"), ([Yes(1)], "Yes"), (lambda: 1, "function")):
        results = exercises.run_cases(questions.find("ch00.q1"), lambda n, fake=fake: fake)
        assert not any(result.passed for result in results)
        assert all(f"returned an object of type {name}" in result.note for result in results)


# ---- what a confused reader sees -------------------------------------------------------------------------------------


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The plain texts that check and hint display."""
    texts: list[str] = []
    monkeypatch.setattr(exercises, "emit", lambda plain, markup: texts.append(plain))
    monkeypatch.setattr(exercises, "hints_given", {})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PAGEDLAB_HOME", str(tmp_path))
    return texts


def exits(n: int) -> int:
    raise SystemExit(n)


def raises(n: int) -> int:
    raise ValueError("A" * 9_000)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda n: str(-(-n // 16)), "got 1, expected 1. '1' is a text, but a number is asked for."),
        (lambda n: True, "'True' is True or False, but a number is asked for."),
        (lambda n: [], "got an empty list, expected 1. '[]' is a list, but a number"),
        (lambda n: "", "got an empty text"),
        (lambda n: None, "Your function returns nothing"),
        (None, "`blocks_needed` is None: nothing was assigned to it yet."),
        ({}, "got an empty dictionary"),
        (exits, "got SystemExit: 1"),
        (lambda: 1, "takes 0 positional arguments but 1 was given"),
    ],
)
def test_a_result_of_another_kind_is_told_so(shown: list[str], answer: Any, words: str) -> None:
    exercises.check("ch00.q1", answer)
    assert words in shown[0]


def test_kinds_are_told_apart_inside_lists_and_dictionaries() -> None:
    assert exercises.other_kind([1, "2"], [1, 2]) == "'2' is a text, but a number is asked for."
    assert exercises.other_kind({"a": [1]}, {"a": [True]}) == "'1' is a number, but True or False is asked for."
    assert exercises.other_kind([1, 2], [1]) == "That is a list of 2, but one of 1 is asked for."
    assert exercises.other_kind([2.5, [3]], [1, [7]]) == "" == exercises.other_kind({}, {"a": 1})


def test_long_messages_and_much_output_leave_the_cases_in_sight(
    shown: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def noisy(n: int) -> int:
        for _ in range(1_000):
            print("x" * 99)
        return -(-n // 16)

    exercises.check("ch00.q1", raises)
    assert len(shown[0]) < 6 * 600 and "AAA …" in shown[0]
    exercises.check("ch00.q1", noisy)
    printed = capsys.readouterr().out
    assert len(printed) < 5_200 and printed.startswith("x" * 99) and "595,000 characters more" in printed
    assert "right in every case" in shown[1]


def test_an_answer_that_was_not_run_is_told_where_it_goes(shown: list[str]) -> None:
    exercises.check("ch03.q2")
    assert "define bytes_per_token in the cell marked “Answer: ch03.q2”, and run that cell" in shown[0]


@pytest.mark.parametrize(
    ("identifier", "words"),
    [
        ("ch3.q2", 'did you mean "ch03.q2"?'),
        ("CH03.Q2", 'did you mean "ch03.q2"?'),
        ("ch03.q9", "there are ch03.q1, ch03.q2"),
        (len, "Name the question first"),
        (3, "Name the question first"),
    ],
)
def test_a_misspelt_question_is_told_which_there_are(identifier: Any, words: str) -> None:
    for ask in (exercises.check, exercises.hint):
        with pytest.raises(CourseError, match="uestion") as caught:
            ask(identifier)
        assert words in str(caught.value) and len(str(caught.value)) < 200


def test_after_the_last_hint_it_is_shown_again(shown: list[str]) -> None:
    for _ in range(5):
        exercises.hint("ch03.q2")
    assert [text.split(":")[0] for text in shown] == ["Hint 1 of 3", "Hint 2 of 3", *["Hint 3 of 3"] * 3]
    assert shown[2] == shown[4] and shown[4].endswith("That is the last one.")
