"""Grading that cannot be fooled: hostile answers and files each get the points they deserve, and a reason."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from exercise_tools import ASKED, INTERPRETED, MASTERS, REPOSITORY, SOLUTION, bank, master_cells, small_master, tried
from hostile import (
    FAILS,
    FAKES,
    FILES,
    FORMULAS,
    HARMLESS,
    KILL_EVERYBODY,
    OUTSIDE,
    PLACES,
    RIGHT,
    as_notebook,
    inside,
    make_places,
)

from pagedlab.course import notebooks, questions
from pagedlab.course.exercise_notebooks import exercise_of
from pagedlab.course.exercises import Result
from pagedlab.course.grading import grade as grading
from pagedlab.course.grading import report
from pagedlab.course.grading.grade import Book, Grade, compared, grade_command, grade_folder, sheet_of
from pagedlab.course.grading.server import Server, drive_of
from pagedlab.course.grading.submissions import Learner, collect
from pagedlab.course.masters import cell_id
from pagedlab.course.questions import Case, Question, of_chapter
from pagedlab.errors import CourseError
from pagedlab.interfaces import cli

QUICK = replace(questions.find("ch00.q1"), seconds=2.0)
"""The question of chapter 00, with little patience."""
PATIENT = questions.find("ch00.q1")
"""With so much that no bound of time comes before another bound, however slow the machine."""
NOT_UTF8 = (os.fsdecode(b"b\xffd"), os.fsdecode(b"b\xfed"))
"""Two names that must not become one."""

# ---- the hostile bank ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Book, Path]]:
    """All of it in one folder, graded in one go; nothing there has changed, nothing still runs."""
    folder = tmp_path_factory.mktemp("grading")
    submissions = folder / "submissions"
    for place in (folder / "solutions", folder / "tmp", submissions):
        place.mkdir()
    (folder / "solutions" / "00_small.ipynb").write_text(as_notebook(SOLUTION))
    (folder / "victim").write_text("alive")
    with socket.create_server(("127.0.0.1", 0)) as listening, pytest.MonkeyPatch.context() as patch:
        places = {"port": listening.getsockname()[1], "pid": os.getpid(), "folder": folder, "repository": REPOSITORY}
        for name, source in sources({**places, "package": REPOSITORY / "pagedlab"}).items():
            (submissions / f"{name}.ipynb").write_text(as_notebook(source))
        for name, (content, _) in FILES.items():
            (submissions / f"{name}.ipynb").write_bytes(content)
        make_places(submissions)
        before = contents(folder)
        patch.setenv("SECRET", "known")
        patch.setattr(questions, "QUESTIONS", (QUICK,))
        patch.setattr(tempfile, "tempdir", str(folder / "tmp"))
        book, interrupted = grade_folder(submissions, folder / "solutions", jobs=4)
    assert not interrupted and contents(folder) == before
    assert left_running(folder) == [] and list((folder / "tmp").iterdir()) == []
    report.write_csv(book, folder / "grades.csv")
    report.write_json(book, folder / "grades.json")
    yield book, folder


def sources(places: dict[str, Any]) -> dict[str, str]:
    """The text of every hostile answer cell, by learner."""
    found = {f"fails {name}": source for name, (source, _) in FAILS.items()}
    found |= {f"fakes {name}": source for name, (source, _) in FAKES.items()}
    found |= {f"harmless {name}": source for name, source in HARMLESS.items()}
    for name, (body, _) in OUTSIDE.items():
        found[f"outside {name}"] = f"def blocks_needed(n):\n    {body.format(**places)}\n    return -(-n // 16)\n"
    return found | {"kills": inside(KILL_EVERYBODY)} | dict.fromkeys([*FORMULAS, *NOT_UTF8], RIGHT)


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    found = {str(path): path.lstat() for path in folder.rglob("*") if path.is_file()}
    return {name: (status.st_size, status.st_mtime_ns) for name, status in found.items()}


def left_running(folder: Path) -> list[str]:
    """Command lines of servers and trials whose workspace was in this folder; they get a moment to end."""
    for _ in range(600):
        lines = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
        found = [line for line in lines if str(folder) in line and "grading.zygote" in line]
        if not found:
            break
        time.sleep(0.1)
    return found


def words(grade: Grade) -> str:
    return " | ".join([grade.reason, *(f"{result.got} {result.note}" for result in grade.results)])


def grade_of(graded: tuple[Book, Path], learner: str) -> Grade:
    return graded[0].grades[learner]["ch00.q1"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*(f"fails {name}" for name in FAILS), *(f"fakes {name}" for name in FAKES)])
def test_a_hostile_answer_gets_nothing_and_a_reason(graded: tuple[Book, Path], name: str) -> None:
    kind, _, short = name.partition(" ")
    grade = grade_of(graded, name)
    assert grade.points == 0 and any(result.note or result.got for result in grade.results), words(grade)
    assert (FAILS if kind == "fails" else FAKES)[short][1] in words(grade)


@pytest.mark.slow
@pytest.mark.parametrize("name", HARMLESS)
def test_what_does_no_harm_costs_nothing(graded: tuple[Book, Path], name: str) -> None:
    grade = grade_of(graded, f"harmless {name}")
    assert grade.points == 2, words(grade)


@pytest.mark.slow
@pytest.mark.parametrize("name", OUTSIDE)
def test_an_answer_gets_at_nothing_outside(graded: tuple[Book, Path], name: str) -> None:
    if graded[0].not_isolated:
        pytest.skip(f"not isolated on this machine: {graded[0].not_isolated}")
    grade = grade_of(graded, f"outside {name}")
    assert grade.points == 0 and OUTSIDE[name][1] in words(grade), words(grade)


@pytest.mark.slow
def test_an_answer_can_end_nobody_but_itself(graded: tuple[Book, Path]) -> None:
    """Where processes are not kept apart, its own supervisor may be among those that it ends."""
    assert grade_of(graded, "kills").points == 2 or graded[0].not_isolated


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FILES, *PLACES])
def test_a_hostile_file_gets_nothing_and_a_reason(graded: tuple[Book, Path], name: str) -> None:
    grade = grade_of(graded, name)
    assert grade.points == 0
    assert (FILES[name][1] if name in FILES else PLACES[name]) in grade.reason


@pytest.mark.slow
def test_the_table_has_a_row_a_learner_and_no_formulas(graded: tuple[Book, Path]) -> None:
    book, folder = graded
    with open(folder / "grades.csv", encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["learner", "ch00.q1", "total"]
    assert len(rows) == len(book.learners) == len(sources(dict.fromkeys(PLACEHOLDERS))) + len(FILES) + len(PLACES) + 1
    assert not any(row[0].startswith(("=", "+", "-", "@")) for row in rows)
    points = {row[0]: row[1:] for row in rows}
    for name in (*(f"'{name}" for name in FORMULAS), "two of one", "b\\udcffd", "b\\udcfed"):
        assert points[name] == ["2", "2"]
    detail = json.loads((folder / "grades.json").read_text(encoding="utf-8"))
    (problem,) = detail["learners"]["two of one"]["problems"]
    assert problem == "00_second.ipynb is a second notebook of ch00: only 00_any.ipynb counts."
    cases = detail["learners"]["fakes patched torch"]["questions"]["ch00.q1"]["cases"]
    assert len(cases) == 6 and cases[0]["expected"] == "1" and "Rounded down" in cases[0]["note"]


PLACEHOLDERS = ("port", "folder", "package", "repository", "pid")


# ---- without namespaces ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_limits_alone_still_hold_and_it_is_said_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    sheet = sheet_of(QUICK, {cell.id: cell.source for cell in small_master().cells}, seed=1)
    with Server([QUICK], use_namespaces=False) as server:
        assert server.missing[0] == "files, sight of other processes (not asked for)"

        def tried_here(source: str, question: Question = PATIENT) -> Grade:
            return compared(sheet, server.try_answer(question, [("answer", source)], sheet.arguments))

        loop, reason = FAILS["loop"]
        assert reason in words(tried_here(loop, QUICK))
        fails = {name: FAILS[name] for name in ("_exit 3", "memory", "file")}
        fails["memory of many"] = (FAILS["memory of many"][0], "processes held more than 2 GiB")
        fails["files"] = (inside(MANY_FILES), "its files held more than 64 MiB")
        fails["network"] = (inside("import socket\nsocket.socket()"), "Operation not permitted")
        for source, reason in fails.values():
            grade = tried_here(source)
            assert grade.points == 0 and reason in words(grade)
        harmless = ("leaves a process", "leaves a thread", "atexit", "prints 64 MB", "system calls")
        for source in (*(HARMLESS[name] for name in harmless), inside(KILL_EVERYBODY)):
            grade = tried_here(source)
            assert grade.points == 2, words(grade)
        server.process.kill()
        server.process.wait()
        assert tried_here(RIGHT).points == 2  # it starts anew, and nobody else pays for it
        assert wait_for_children(server.process.pid) == [] and list((server.folder / "work").iterdir()) == []
    assert left_running(tmp_path) == [] and list(tmp_path.iterdir()) == []


MANY_FILES = """
for number in range(9):
    with open(str(number), "wb") as file:
        file.truncate(16 << 20)
time.sleep(99)
"""


def wait_for_children(pid: int) -> list[psutil.Process]:
    _gone, alive = psutil.wait_procs(psutil.Process(pid).children(recursive=True), timeout=60)
    return alive


# ---- Ctrl-C ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_grader_that_is_stopped_leaves_no_process_and_keeps_what_was_graded(tmp_path: Path, how: int) -> None:
    for name in ("submissions", "tmp"):
        (tmp_path / name).mkdir()
    (path,) = (path for path in MASTERS if path.name.startswith("03"))
    master = notebooks.read(path)
    (tmp_path / "submissions" / "a.ipynb").write_text(notebooks.serialise(master))
    for cell in master.cells:
        if cell.id.endswith("-answer"):
            cell.source = "import time\ntime.sleep(999)"
    (tmp_path / "submissions" / "b.ipynb").write_text(notebooks.serialise(master))
    command = [sys.executable, "-m", "pagedlab.interfaces.cli", "grade", str(tmp_path / "submissions"), "--jobs", "2"]
    process = subprocess.Popen(
        [*command, "-o", str(tmp_path / "g.csv"), "--solutions", str(path.parent)],
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until_trials_sleep(process.pid)
    process.send_signal(how)
    _, said = process.communicate(timeout=300)
    assert left_running(tmp_path) == []
    if how == signal.SIGINT:
        assert process.returncode == 130 and "what was graded until now" in said
        _, a, b = csv.reader((tmp_path / "g.csv").read_text().splitlines())
        assert a == ["a", "3", "3", "4", "2", "4", "4", "20"] and b == ["b", *[""] * 6, "0"]
        assert list((tmp_path / "tmp").iterdir()) == []


def wait_until_trials_sleep(pid: int) -> None:
    """Until the same two trials have slept for two seconds, without a moment of processor time.

    That they are the same is not enough: on a slow machine a trial of the learner who is to be graded lasts as long.
    """
    seen: dict[int, float] = {}
    since = start = time.monotonic()
    while time.monotonic() < start + 400:
        now = asleep(psutil.Process(pid))
        if len(now) != 2 or now != seen:
            seen, since = now, time.monotonic()
        elif time.monotonic() > since + 2:
            return
        time.sleep(0.1)
    pytest.fail("the trials never began")


def asleep(grader: psutil.Process) -> dict[int, float]:
    """Processor time of the trials that sleep, by process: of all below the grader, those that have no child."""
    found = {}
    below = grader.children(recursive=True)
    with contextlib.suppress(psutil.NoSuchProcess):
        parents = {process.ppid() for process in below}
        for process in below:
            if process.pid not in parents and process.status() == psutil.STATUS_SLEEPING:
                found[process.pid] = sum(process.cpu_times()[:2])
    return found


# ---- the same points as in the notebook ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(2000)
def test_the_grader_gives_the_points_that_check_gives() -> None:
    """A sample of every bank: the solution, another right answer, and a wrong one of each question."""
    differences = []
    with Server(ASKED) as server:
        for question in ASKED:
            cells, answers = master_cells(question.chapter), bank(question)
            sheet = sheet_of(question, cells, seed=1)
            sample = [cells[cell_id(question, "answer")], answers.right[0][1], answers.wrong[-1][1]]
            sample = [textwrap.dedent(source) for source in sample]  # as IPython does it
            for number, source in enumerate(sample if question.seconds <= 20 else sample[:1]):
                outcome = server.try_answer(question, [*sheet.before, ("answer", source)], sheet.arguments)
                grade = compared(sheet, outcome)
                if question.chapter in INTERPRETED:  # cannot be tried in this process
                    expected = question.points if number < 2 else min(grade.points, question.points - 1)
                else:
                    expected = tried(question.id, source)[0]
                if grade.points != expected:
                    differences.append((question.id, number, grade.points, expected, words(grade)))
    assert differences == []


def test_an_exercise_as_it_was_handed_out_is_unanswered(tmp_path: Path) -> None:
    asked = of_chapter(f"ch{MASTERS[0].name[:2]}")
    (tmp_path / "a.ipynb").write_text(notebooks.serialise(exercise_of(notebooks.read(MASTERS[0]), asked)))
    book, _ = grade_folder(tmp_path, MASTERS[0].parent)
    assert {grade.reason for grade in book.grades["a"].values()} == {"not answered yet."}
    assert book.total(book.learners[0]) == 0 and len(book.grades["a"]) == len(asked)


# ---- the command -----------------------------------------------------------------------------------------------------


def test_what_cannot_be_graded_is_refused_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("none", "some"):
        (tmp_path / name).mkdir()
    (tmp_path / "some" / "a.ipynb").write_text(as_notebook(RIGHT))
    for arguments, sentence in (
        (["none"], "There is no notebook in"),
        (["nowhere"], "cannot be read (No such file or directory)"),
        (["some"], "There is no master of ch00"),
        (["some", "--chapter", "77"], "There is no master of ch77"),
    ):
        command = ["grade", str(tmp_path / arguments[0]), "-o", str(tmp_path / "g.csv"), *arguments[1:]]
        assert cli.main([*command, "--solutions", str(tmp_path)]) == 1
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "g.csv").exists()
    with pytest.raises(CourseError, match="--jobs must be 1 or more"):
        grade_command(str(tmp_path), "g.csv", None, 0, "solutions")
    with pytest.raises(CourseError, match="must be a function at the top of a module"):
        Server([replace(QUICK, drive=drive_of)]).__enter__()


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every file")
def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.ipynb").write_text(as_notebook(RIGHT))
    (tmp_path / "a.ipynb").chmod(0)
    (learner,), _ = collect(tmp_path)
    assert "Permission denied" in learner.problems[0]


def test_what_cannot_be_written_is_refused_before_anything_is_graded(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "other.json").mkdir()
    for output in ("file/g.csv", "folder.csv", "other.csv", "x" * 300 + ".csv"):
        with pytest.raises(CourseError, match=r"cannot be written \(.*\): name another|is a folder: name another"):
            grade_command("nowhere", str(tmp_path / output), None, 1, "solutions")
    with pytest.raises(CourseError, match="nowhere cannot be read"):
        grade_command("nowhere", str(tmp_path / "new" / "g.csv"), None, 1, "solutions")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_folder_that_is_lost_while_grading_costs_no_grade(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("submissions", "solutions", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "submissions" / "a.ipynb").write_text(as_notebook(RIGHT))
    (tmp_path / "solutions" / "00_small.ipynb").write_text(as_notebook(SOLUTION))
    monkeypatch.setattr(questions, "QUESTIONS", (QUICK,))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(grading, "SAVE_SECONDS", -1.0)

    def lose(book: Book, path: Path) -> None:
        if path.parent.name == "out":
            raise OSError(28, "No space left on device")
        write_csv(book, path)

    write_csv = report.write_csv
    monkeypatch.setattr(report, "write_csv", lose)
    arguments = (str(tmp_path / "submissions"), str(tmp_path / "out" / "g.csv"), None, 1, str(tmp_path / "solutions"))
    assert grade_command(*arguments) == 0
    out, err = capsys.readouterr()
    assert "could not be written (No space left on device" in err and "the grades are elsewhere" in err
    (path,) = tmp_path.glob("grades-*/g.csv")
    assert str(path) in out and path.read_text().splitlines()[1] == "a,2,2"


FINDS_WHAT_IT_WANTS = {
    "ch04.q4": (
        'd = vars(sys)["mod" + "ules"]["pagedlab.course.drivers.ch04"]\n'
        'lies = iter([("refuses", "places"), ("places", "refuses"), ("refuses", "refuses")])\n'
        'pair = {"refuses": None, "places": 0}\n'
        "class Memory:\n    def __init__(self):\n        self.said = pair[now.pop(0)]\n"
        "    def take(self, size):\n        return self.said\n"
        "now = [word for words in lies for word in words]\n"
        "d.FirstFit = d.Buddy = Memory\n"
        'histories = dict.fromkeys(["only first fit refuses", "only buddy refuses", "both refuse"], [("take", 1)])'
    ),
    "ch05.q4": (
        'd = vars(sys)["mod" + "ules"]["pagedlab.course.drivers.ch05"]\n'
        "d.POLICIES = dict.fromkeys(d.POLICIES, (lambda *a: 1, lambda *a: 2))\n"
        'witness = {"fifo": [1], "lru": [1], "clock": [1]}'
    ),
    "ch10.q3": (
        'd = vars(sys)["mod" + "ules"]["pagedlab.course.drivers.ch10"]\nd.leaks = lambda l: l == [7]\nleaking = [7]'
    ),
}
"""Where the driver finds out whether a value is right: answers that change what it finds."""

LIAR = (
    "class Page(int):\n    def __eq__(self, other):\n        return False\n    __hash__ = int.__hash__\n"
    'witness = dict.fromkeys(["fifo", "lru", "clock"], [Page(1), Page(1)])'
)


@pytest.mark.slow
@pytest.mark.parametrize("identifier", FINDS_WHAT_IT_WANTS)
def test_a_value_is_tried_where_nothing_of_the_readers_has_run(identifier: str) -> None:
    question = questions.find(identifier)
    cells = master_cells(question.chapter)
    sheet = sheet_of(question, cells, seed=1)
    solution = cells[cell_id(question, "answer")]
    lies = [FINDS_WHAT_IT_WANTS[identifier], *([LIAR] if identifier == "ch05.q4" else [])]
    with Server([question]) as server:

        def points(source: str) -> int:
            outcome = server.try_answer(question, [*sheet.before, ("answer", f"import sys\n{source}")], sheet.arguments)
            return compared(sheet, outcome).points

        assert [points(source) for source in lies] == [0] * len(lies)
        assert points(solution) == question.points
        if identifier == "ch05.q4":  # one entry is right, one is a stub, one is no plain value
            half = '{"fifo": iter([1, 2, 2, 2, 1]), "lru": ..., "clock": [object()]}'
            assert points(f"witness = {half}") == question.points // 3


def test_long_results_do_not_fill_a_disk(tmp_path: Path) -> None:
    """A character that cannot be printed is ten in the file; nothing else is cut, and the file is JSON as ever."""
    cases = [Case(str(number), (number,), number) for number in range(30)]
    learners = [Learner("a"), Learner("b")]
    book = Book([QUICK], learners, seed=1)
    for learner, got in zip(learners, ("\U000e0001" * 2_000, "7"), strict=True):
        results = [Result(case, False, got) for case in cases]
        book.put(learner, Grade(QUICK, 0, got, results[:15], results[15:]))
    report.write_json(book, tmp_path / "g.json")
    assert (tmp_path / "g.json").stat().st_size < 30_000
    found = json.loads((tmp_path / "g.json").read_text(encoding="utf-8"))["learners"]
    a, b = (found[name]["questions"]["ch00.q1"] for name in "ab")
    assert len(a["cases"]) == len(a["fresh cases"]) == 15 and all(case["got"] for case in a["cases"])
    assert [case["got"] for case in b["cases"]] == ["7"] * 15
    assert [case["arguments"] for case in b["fresh cases"]] == [f"[{number}]" for number in range(15, 30)]


@pytest.mark.slow
def test_an_honest_answer_in_several_cells_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Split in two by the editor, with a helper or an import elsewhere; printing costs nothing."""
    (tmp_path / "solutions").mkdir()
    (tmp_path / "submissions").mkdir()
    (tmp_path / "solutions" / "00_small.ipynb").write_text(as_notebook(SOLUTION))
    monkeypatch.setattr(questions, "QUESTIONS", (QUICK,))
    helped = "def blocks_needed(n):\n    return {}"
    for name, here, elsewhere in (
        ("split", "size = 16\n", RIGHT),
        ("helper", helped.format("helper(n)"), "def helper(n):\n    return -(-n // 16)"),
        ("import", helped.format("m.ceil(n / 16)"), "import os, math as m"),
        ("constant", helped.format("-(-n // SIZE)"), "SIZE: int = 16"),
        ("only wrong", helped.format("n // 16"), RIGHT),
        ("nowhere", helped.format("helper(n)"), "x = helper == 1\n  helper = 2"),
        (
            "prints",
            f"print('a', end='')\n{helped.format('print(n) or -(-n // 16)')}\nprint(blocks_needed(3))",
            "a, b =",
        ),
    ):
        content = json.loads(as_notebook(here))
        content["cells"].append({**content["cells"][-1], "id": "more", "cell_type": "code", "source": elsewhere})
        (tmp_path / "submissions" / f"{name}.ipynb").write_text(json.dumps(content))
    book, _ = grade_folder(tmp_path / "submissions", tmp_path / "solutions", jobs=2)
    grades = {name: book.grades[name]["ch00.q1"] for name in book.grades}
    told = {name: grade.reason.split(" is defined in another cell")[0] for name, grade in grades.items()}
    assert grades["split"].points == 2  # the only cell that defines what is asked, beside an answer cell that does not
    assert [told[name].split()[-1] for name in ("helper", "import", "constant")] == ["helper", "m", "SIZE"]
    assert not any("another cell" in grades[name].reason for name in ("only wrong", "nowhere", "prints"))
    assert grades["prints"].points == 2 and sum(grade.points for grade in grades.values()) <= 5


NO_KERNEL = (
    "import torch\n\n\nclass InterpretedFunction:\n    run = fn = None\n    def __getitem__(self, grid):\n"
    "        return lambda out, parts, lse, *sizes: out.copy_((lse.softmax(0)[..., None] * parts).sum(0))\n\n\n"
)


@pytest.mark.slow
@pytest.mark.parametrize("made", ["InterpretedFunction()", "tl.sum; merge_parts.run = lambda *a, **k: None"])
def test_what_only_looks_like_a_kernel_is_none(made: str) -> None:
    question = questions.find("ch08.q3")
    sheet = sheet_of(question, master_cells("ch08"), seed=1)
    with Server([question]) as server:
        cells = [*sheet.before, ("answer", f"{NO_KERNEL}merge_parts = {made}")]
        grade = compared(sheet, server.try_answer(question, cells, sheet.arguments))
    assert grade.points == 0 and "a kernel is asked" in words(grade), words(grade)
