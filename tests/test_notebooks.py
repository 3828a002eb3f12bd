"""Every chapter keeps the course's rules, every rule can fail, and the runner writes what it says."""

from __future__ import annotations

import base64
import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from pagedlab.course import ledger
from pagedlab.course.notebook_rules import problems
from pagedlab.course.notebooks import (
    check_command,
    execute,
    list_problems,
    normalised,
    read,
    run_command,
    serialise,
)
from pagedlab.errors import CourseError
from pagedlab.interfaces import cli

REPOSITORY = Path(__file__).parent.parent
CHAPTERS = sorted((REPOSITORY / "chapters").glob("*.ipynb"))


@pytest.mark.parametrize("path", CHAPTERS, ids=[path.stem for path in CHAPTERS])
def test_chapter_keeps_every_rule(path: Path) -> None:
    found = list_problems(path)
    assert not found, "\n".join(found)


def test_every_row_of_the_ledger_belongs_to_a_chapter_that_exists() -> None:
    """That a cell of the chapter shows the row is one of the rules above."""
    chapters = {path.stem[:2] for path in CHAPTERS}
    assert {row.chapter for row in ledger.rows()} <= chapters


# ---- a notebook that keeps every rule, and what breaks each ------------------------------------------------------

PIXEL = base64.b64encode(b"\x89PNG not really").decode()
ALT = "Two lines: one rises, one stays flat."


def text_output(text: str) -> Any:
    return new_output("display_data", {"text/plain": text})


def picture() -> Any:
    return new_output("display_data", {"image/png": PIXEL, "text/plain": ALT}, metadata={"image/png": {"alt": ALT}})


def code(identifier: str, source: str, *outputs: Any, tags: tuple[str, ...] = ()) -> Any:
    return new_code_cell(source, id=identifier, outputs=list(outputs), metadata={"tags": list(tags)} if tags else {})


def good_chapter() -> Any:
    """A finished chapter 01, as small as the rules allow."""
    cells = [
        new_markdown_cell("# Why", id="why"),
        code("guess", 'predict("ch01.x", "How many?")', text_output("Predict: How many?")),
        code("headline", "# NBVAL_CHECK_OUTPUT\nprint(6)", new_output("stream", name="stdout", text="6\n")),
        code("seen", 'reveal("ch01.x", 6)', text_output("measured: 6")),
        code("first", 'show(a, alt="...")', picture()),
        code("second", 'show(b, alt="...")', picture()),
        code("controls", "explore(draw, n=(1, 2))", tags=("nbval-ignore-output",)),
        code("kept", "show_source(draw)", text_output("def draw(): ...")),
        code("claim-one", 'claim("c9-a", 6)', text_output("Claim c9-a: six is six\n  verdict: holds")),
        new_markdown_cell("<details><summary>Why?</summary>So.</details>\n" * 5, id="check-yourself"),
    ]
    for count, cell in enumerate((cell for cell in cells if cell.cell_type == "code"), start=1):
        cell.execution_count = count
    return normalised(new_notebook(cells=cells))


LEDGER = """id,claim,stated,right,expected,tolerance,verdict,why,source
c9-a,six is six,6,6,6,,holds,Counted.,
"""


@pytest.fixture
def chapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a chapter 01 with a ledger of one row stands."""
    rows = tuple(ledger.read_csv("ch01.csv", LEDGER))
    monkeypatch.setattr(ledger, "raw_rows", lambda: rows)
    (tmp_path / "chapters").mkdir()
    return tmp_path / "chapters" / "01_small_one.ipynb"


def cell(notebook: Any, identifier: str) -> Any:
    return next(cell for cell in notebook.cells if cell.id == identifier)


def test_a_finished_chapter_breaks_no_rule(chapter: Path) -> None:
    chapter.write_text(serialise(good_chapter()))
    assert list_problems(chapter) == []


def drop(*identifiers: str) -> Callable[[Any], None]:
    def change(notebook: Any) -> None:
        notebook.cells = [cell for cell in notebook.cells if cell.id not in identifiers]

    return change


def put(identifier: str, **fields: Any) -> Callable[[Any], None]:
    return lambda notebook: cell(notebook, identifier).update(nbformat.from_dict(fields))


def stream(name: str, text: str) -> Any:
    return new_output("stream", name=name, text=text)


WIDGET = new_output("display_data", {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}})
BARE_PICTURE = new_output("display_data", {"image/png": PIXEL})
HTML_PICTURE = new_output("display_data", {"text/html": '<img src="a.png">'})
OLD_CLAIM = text_output("Claim c9-a: six is five")

BROKEN: dict[str, tuple[Callable[[Any], None], str]] = {
    "too big": (put("first", source="# " + "x" * 1_000_001), "1.0 MB"),
    "random id": (put("first", id="0a1b2c3d"), "'0a1b2c3d' is not readable"),
    "numbers as id": (put("first", id="7"), "'7' is not readable"),
    "widget state": (lambda notebook: notebook.metadata.update(widgets={}), "hold widget state"),
    "widget in outputs": (put("controls", outputs=[WIDGET]), "has a widget"),
    "home directory in output": (put("seen", outputs=[stream("stdout", "in /home/ann/x.py")]), "/home/ann"),
    "directory in source": (put("seen", source='reveal(1, "/mnt/x")'), "/mnt/x"),
    "directory in prose": (put("why", source="see /tmp/x"), "/tmp/x"),
    "Windows directory": (put("why", source=r"see C:\Users\ann"), r"C:\Users"),
    "picture without alt": (put("first", outputs=[BARE_PICTURE]), "cell first has a picture without alt text"),
    "HTML picture without alt": (put("seen", outputs=[HTML_PICTURE]), "cell seen has an <img>"),
    "Markdown picture without alt": (put("why", source="![](a.png)"), "cell why has a Markdown picture"),
    "dead link": (put("why", source="see [there](99_nowhere.ipynb#top)"), "links to 99_nowhere.ipynb"),
    "31 lines": (put("seen", source="reveal()\n" * 31), "31 lines"),
    "empty cell": (put("claim-one", source=" "), "cell claim-one is empty"),
    "not run": (put("kept", execution_count=None), "not run once each"),
    "run out of order": (put("kept", execution_count=3), "not run once each"),
    "no outputs": (lambda notebook: [c.update(outputs=[]) for c in notebook.cells if "outputs" in c], "no cell has an"),
    "error": (put("seen", outputs=[new_output("error", ename="KeyError", evalue="")]), "seen ended in KeyError"),
    "warning": (put("seen", outputs=[stream("stderr", "UserWarning: no")]), "UserWarning"),
    "nothing compared": (put("headline", source="print(6)"), "no cell is compared"),
    "marker not first": (put("headline", source="print(6)\n# NBVAL_CHECK_OUTPUT"), "as its first line"),
    "compared without output": (put("headline", outputs=[]), "has no text in its output"),
    "compared and ignored": (put("headline", metadata={"tags": ["nbval-ignore-output"]}), "choose one"),
    "unknown claim": (put("kept", source='show_source(draw)\nclaim("c9-z", 1)'), "c9-z, which is not in the ledger"),
    "claim not shown": (put("claim-one", outputs=[]), "no cell shows the ledger's c9-a"),
    "ledger changed since": (put("claim-one", outputs=[OLD_CLAIM]), "as it was before the ledger changed"),
    "one picture": (drop("second"), "it shows 1 pictures"),
    "no prediction": (drop("guess"), "never calls predict"),
    "no measurement beside it": (drop("seen"), "never calls reveal"),
    "no controls": (drop("controls"), "never calls explore"),
    "no source shown": (drop("kept"), "never calls show_source"),
    "controls without tag": (put("controls", metadata={}), "needs the tag"),
    "no questions": (drop("check-yourself"), "asks 0 questions"),
    "metadata of an editor": (put("why", metadata={"jupyter": {"x": 1}}), "not in normal form"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_each_rule_can_fail(chapter: Path, name: str) -> None:
    change, expected = BROKEN[name]
    notebook = good_chapter()
    change(notebook)
    chapter.write_text(serialise(notebook))
    found = list_problems(chapter)
    assert any(expected in problem for problem in found), found


@pytest.mark.filterwarnings("ignore::nbformat.warnings.DuplicateCellId")
def test_two_cells_with_one_id_are_found(chapter: Path) -> None:
    """nbformat gives the second a random id as it reads the file."""
    notebook = good_chapter()
    cell(notebook, "second").id = "first"
    chapter.write_text(serialise(notebook))
    assert any("is not readable" in problem for problem in list_problems(chapter))


def test_a_chapter_needs_a_number_in_its_name(chapter: Path) -> None:
    path = chapter.with_name("small_one.ipynb")
    path.write_text(serialise(good_chapter()))
    assert any("NN_short_name" in problem for problem in list_problems(path))


def test_only_chapters_that_teach_need_every_part(chapter: Path) -> None:
    notebook = good_chapter()
    drop("guess", "seen", "controls", "kept", "second", "claim-one", "check-yourself")(notebook)
    notebook = normalised(notebook)
    opening = chapter.with_name("00_small_one.ipynb")
    opening.write_text(serialise(notebook))
    assert list(problems(notebook, opening)) == []
    chapter.write_text(serialise(notebook))
    assert len(list(problems(notebook, chapter))) == 7


@pytest.mark.parametrize("prose", ["POST /v1/chat/completions", "https://example.org/home/x", "a/tmp/b", "x /tmp"])
def test_what_is_no_path_of_a_machine_passes(chapter: Path, prose: str) -> None:
    notebook = good_chapter()
    cell(notebook, "why").source = prose
    chapter.write_text(serialise(notebook))
    assert list_problems(chapter) == []


def test_a_file_that_is_no_notebook_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "x.ipynb"
    path.write_text("{}")
    with pytest.raises(CourseError, match="cannot be read as a notebook"):
        read(path)
    with pytest.raises(CourseError, match=r"missing\.ipynb is not a notebook"):
        check_command([str(tmp_path / "missing.ipynb")])


# ---- the normal form ---------------------------------------------------------------------------------------------

SOURCES = st.text(alphabet="ab \n#=()x1", max_size=30)
IDS = st.sampled_from(["", "0a1b2c3d", "naive-cost", "why", "x-2", "00000000-0000-0000-0000-000000000000"])
OUTPUTS = st.lists(st.sampled_from(["a", "b\n"]).map(lambda text: stream("stdout", text)), max_size=3)


@st.composite
def notebooks(draw: st.DrawFn) -> Any:
    cells = []
    for _ in range(draw(st.integers(0, 6))):
        source, identifier = draw(SOURCES), draw(IDS)
        if draw(st.booleans()):
            one = new_code_cell(source, outputs=draw(OUTPUTS), execution_count=draw(st.none() | st.integers(1, 99)))
        else:
            one = new_markdown_cell(source)
        one.id = identifier
        one.metadata = nbformat.from_dict(draw(st.sampled_from([{}, {"tags": ["t"]}, {"execution": {"a": "b"}}])))
        cells.append(one)
    notebook = new_notebook(metadata={"widgets": {"state": {}}})
    notebook.cells = cells
    return notebook


@given(notebooks())
def test_normal_form_is_reached_at_once_and_names_every_cell_readably(notebook: Any) -> None:
    once = normalised(notebook)
    assert serialise(normalised(once)) == serialise(once)
    nbformat.validate(once)
    ids = [cell.id for cell in once.cells]
    assert len(set(ids)) == len(ids)
    for before, after in zip(notebook.cells, once.cells, strict=True):
        if before.id in ("naive-cost", "why", "x-2") and [c.id for c in notebook.cells].count(before.id) == 1:
            assert after.id == before.id
    assert not any("widget" in problem or "readable" in problem for problem in common_problems(once))


def common_problems(notebook: Any) -> list[str]:
    from pagedlab.course.notebook_rules import cell_ids, no_widget_state

    return [problem for rule in (cell_ids, no_widget_state) for problem in rule(notebook, Path("x.ipynb"))]


def test_an_id_comes_from_the_content_and_then_stays() -> None:
    notebook = new_notebook(
        cells=[new_markdown_cell("## The naive cost\nand so on"), new_code_cell("def f():\n  pass")]
    )
    notebook = normalised(notebook)
    assert [cell.id for cell in notebook.cells] == ["the-naive-cost", "f"]
    notebook.cells[0].source = "## Renamed"
    notebook.cells.insert(0, new_markdown_cell("## The naive cost"))
    assert [cell.id for cell in normalised(notebook).cells] == ["the-naive-cost-2", "the-naive-cost", "f"]


def test_an_id_in_a_percent_marker_becomes_the_cells_own() -> None:
    notebook = new_notebook(cells=[new_code_cell("1", metadata={"id": "one", "tags": ["a"]})])
    one = normalised(notebook).cells[0]
    assert one.id == "one" and one.metadata == {"tags": ["a"]}


def test_widgets_leave_only_their_text() -> None:
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}}
    outputs = [
        new_output("display_data", {**widget, "text/plain": "VBox(children=())"}),
        new_output("display_data", {**widget, "text/plain": "three sliders"}),
    ]
    one = normalised(new_notebook(cells=[new_code_cell("1", outputs=outputs)])).cells[0]
    assert [output.data for output in one.outputs] == [{"text/plain": "three sliders"}]


# ---- running -----------------------------------------------------------------------------------------------------


def write_notebook(path: Path, *sources: str) -> Path:
    path.write_text(serialise(new_notebook(cells=[new_code_cell(source) for source in sources])))
    return path


def test_running_executes_in_the_folder_and_writes_the_normal_form(tmp_path: Path) -> None:
    path = write_notebook(tmp_path / "a.ipynb", "from pathlib import Path\nn = 6", "n * 7, Path('a.ipynb').exists()")
    execute(path)
    notebook = read(path)
    assert [cell.execution_count for cell in notebook.cells] == [1, 2]
    assert notebook.cells[1].outputs[0].data["text/plain"] == "(42, True)"
    assert all(cell.metadata == {} for cell in notebook.cells)
    assert path.read_text() == serialise(normalised(notebook))
    assert [file.name for file in tmp_path.iterdir() if file.name != ".ruff_cache"] == ["a.ipynb"]
    before = path.read_bytes()
    execute(path)
    assert path.read_bytes() == before


def test_a_failing_cell_is_named_and_the_file_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_notebook(tmp_path / "a.ipynb", "ok = 1", "def broken():\n    return 1 / 0\n\n\nbroken()")
    cells = copy.deepcopy(read(path).cells)
    assert run_command([str(path)]) == 1
    assert "cell broken (def broken():) raised ZeroDivisionError: division by zero" in capsys.readouterr().out
    assert [cell.source for cell in read(path).cells] == [cell.source for cell in cells]
    assert all(cell.execution_count is None for cell in read(path).cells)


def test_time_runs_out(tmp_path: Path) -> None:
    path = write_notebook(tmp_path / "a.ipynb", "import time\ntime.sleep(60)")
    with pytest.raises(CourseError, match="more than 1 s"):
        execute(path, timeout=1)


def test_output_that_comes_long_after_its_cell_has_ended_is_kept(tmp_path: Path) -> None:
    """As on a busy machine: the thread that sends output stands still, and the kernel does not wait for it any more."""
    hasty = "import sys, time\nsys.stdout.flush_timeout = sys.stderr.flush_timeout = 0\n"
    stalls = "get_ipython().kernel.iopub_thread.schedule(lambda: time.sleep(6))\n"
    path = write_notebook(tmp_path / "a.ipynb", f"{hasty}{stalls}display({{'text/plain': 'late'}}, raw=True)")
    execute(path)
    assert read(path).cells[0].outputs[0].data["text/plain"] == "late"


def test_the_command_line_reaches_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_notebook(tmp_path / "a.ipynb", "x = 1")
    assert cli.main(["notebooks", "check", str(path)]) == 1
    assert "not in normal form" in capsys.readouterr().out
    assert cli.main(["notebooks", "run", str(path)]) == 0
    assert cli.main(["notebooks", "check", str(path)]) == 0
    assert "1 notebook in order." in capsys.readouterr().out
    assert cli.main(["notebooks", "check", str(tmp_path)]) == 1
    assert "is not a notebook" in capsys.readouterr().err


WITH_EVERYTHING = (
    "from pagedlab.course import check, predict, reveal\nfrom pagedlab.visualize import explore, new_figure, show",
    'predict("ch00.x", "How many?", guess=3)\nreveal("ch00.x", 6)',
    "def draw(n=3):\n    figure = new_figure()\n    figure.subplots().plot([1, n])\n    return figure",
    'show(draw(), alt="A line that rises from one to three.")',
    "explore(draw, n=(1, 6), kind=['a', 'b'])",
    "# NBVAL_CHECK_OUTPUT\nprint('six')",
)


def nbval(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "-q", *options]
    command += ["-p", "no:cacheprovider", "-c", str(REPOSITORY / "pyproject.toml"), "--rootdir", str(path.parent)]
    return subprocess.run([*command, str(path)], capture_output=True, text=True, cwd=path.parent)


@pytest.mark.slow
def test_nbval_compares_marked_cells_and_needs_no_widgets(tmp_path: Path) -> None:
    """The notebook tests of `make test` can fail, and do not for a notebook that runs as it was committed."""
    sources = list(WITH_EVERYTHING)
    sources[4] = "explore(draw, n=(1, 6))"
    path = write_notebook(tmp_path / "a.ipynb", *sources)
    execute(path)
    same = nbval(path, "-n", "2", "--dist", "loadscope")
    assert same.returncode == 0 and "6 passed" in same.stdout, same.stdout
    path.write_text(path.read_text().replace('"six\\n"', '"seven\\n"'))
    changed = nbval(path, "-n", "0")
    assert changed.returncode == 1 and "1 failed, 5 passed" in changed.stdout, changed.stdout


def test_a_control_that_the_figure_function_does_not_take_fails_headless(tmp_path: Path) -> None:
    path = write_notebook(tmp_path / "a.ipynb", *WITH_EVERYTHING)
    with pytest.raises(CourseError, match="unexpected keyword argument 'kind'"):
        execute(path)
