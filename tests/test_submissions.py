"""Whatever editor saved a notebook and whatever exported it, an answer is found, or the learner is told why not."""

from __future__ import annotations

import copy
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import pytest
from exercise_tools import MASTERS, SOLUTION, master_cells
from hostile import RIGHT, WRONG, as_notebook
from hypothesis import given, settings
from hypothesis import strategies as st

from pagedlab.course import notebooks, questions
from pagedlab.course.answer_cells import answers_in, is_stub, mark, unmarked
from pagedlab.course.exercise_notebooks import exercise_of
from pagedlab.course.grading.files import MAX_BYTES, copy_number, learner_of
from pagedlab.course.grading.grade import grade_command
from pagedlab.course.grading.submissions import Learner, collect
from pagedlab.course.masters import cell_id, stubbed
from pagedlab.course.questions import of_chapter

CHAPTERS = [f"ch{path.name[:2]}" for path in MASTERS]
Json = dict[str, Any]


def filled_in(chapter: str) -> Json:
    """An exercise notebook as it is handed out, with the right answers written below the line that marks them."""
    (path,) = (path for path in MASTERS if path.name[:2] == chapter[2:])
    notebook = exercise_of(notebooks.read(path), of_chapter(chapter))
    solutions = master_cells(chapter)
    for cell in notebook.cells:
        if cell.id.endswith("-answer"):
            cell.source = f"{cell.source.splitlines()[0]}\n{solutions[cell.id]}"
    return json.loads(notebooks.serialise(notebook))


def expected(chapter: str) -> dict[str, str]:
    solutions = master_cells(chapter)
    return {name: solutions[name] for question in of_chapter(chapter) for name in [cell_id(question, "answer")]}


def found(notebook: Json) -> dict[str, str]:
    return {name: unmarked(source).strip() for name, source in answers_in(notebook["cells"]).sources.items()}


def answer_cells(notebook: Json) -> list[Json]:
    return [cell for cell in notebook["cells"] if cell["id"].endswith("-answer")]


def text_of(cell: Json) -> str:
    return "".join(cell["source"])


# ---- what editors make of a notebook of format 4.5 -------------------------------------------------------------------


def jupyterlab(notebook: Json) -> None:
    """Keeps ids and metadata."""


def vs_code(notebook: Json) -> None:
    """Keeps ids (extensions/ipynb/src/serializers.ts writes cell.id); adds its own metadata."""
    for cell in notebook["cells"]:
        cell["metadata"]["vscode"] = {"languageId": "python"}


def vs_code_of_2021(notebook: Json) -> None:
    """Lost ids and kept metadata (microsoft/vscode-jupyter issue 5933)."""
    for cell in notebook["cells"]:
        del cell["id"]


def classic_without_ids(notebook: Json) -> None:
    """A front end that knows no ids, saved by a server that then makes random ones (jupyterlab issue 9729)."""
    for number, cell in enumerate(notebook["cells"]):
        cell["id"] = f"{0xFEDCBA98 ^ number:08x}"


def colab(notebook: Json) -> None:
    """Format 4.0, ids in the metadata (googlecolab/colabtools issue 5402); those of 4.5 it keeps, but not always."""
    notebook["nbformat_minor"] = 0
    for cell in notebook["cells"]:
        cell["metadata"]["id"] = cell.pop("id")


def colab_with_ids_of_its_own(notebook: Json) -> None:
    colab(notebook)
    for number, cell in enumerate(notebook["cells"]):
        cell["metadata"] |= {"id": f"ASMaI2_SEN{number}", "outputId": "c6ced464-a6cc", "colab": {"base_uri": "x"}}


def kaggle(notebook: Json) -> None:
    """Format 4.4, no ids, sources as one text, metadata kept (as files that it wrote show)."""
    notebook["nbformat_minor"] = 4
    for cell in notebook["cells"]:
        del cell["id"]
        cell["source"] = text_of(cell)
        cell["metadata"] |= {"trusted": True, "execution": {"iopub.status.busy": "2025-11-15T19:30:07.534605Z"}}


def deepnote(notebook: Json) -> None:
    """Format 4.0, an id of its own as cell_id, other metadata kept (deepnote/deepnote, packages/convert)."""
    notebook["nbformat_minor"] = 0
    for number, cell in enumerate(notebook["cells"]):
        del cell["id"]
        cell["source"] = text_of(cell)
        cell["metadata"] = {"cell_id": f"{number:032x}", "deepnote_cell_type": cell["cell_type"], **cell["metadata"]}


def marimo(notebook: Json) -> None:
    """Ids of its own, no metadata (marimo/_convert/ipynb/from_ir.py)."""
    for number, cell in enumerate(notebook["cells"]):
        cell |= {"id": f"Hbo{chr(97 + number % 26)}{number}", "metadata": {}}


def only_text_survives(notebook: Json) -> None:
    """vim-jukit replaces ids and all metadata, and cost a learner all points (luk400/vim-jukit issue 121)."""
    marimo(notebook)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["source"] = unmarked(text_of(cell))


def nbstripout(notebook: Json) -> None:
    """Ids are numbers (kynan/nbstripout pull request 184)."""
    for number, cell in enumerate(notebook["cells"]):
        cell["id"] = str(number)


def jupytext_round_trip(notebook: Json) -> None:
    """Random ids (jupytext issue 735); the percent format keeps metadata."""
    script = jupytext.writes(nbformat.reads(json.dumps(notebook), as_version=4), "py:percent")
    notebook["cells"] = json.loads(nbformat.writes(jupytext.reads(script, "py:percent")))["cells"]


def jupytext_light(notebook: Json) -> None:
    """No cell markers: what stands in one cell may become several."""
    script = jupytext.writes(nbformat.reads(json.dumps(notebook), as_version=4), "py:light")
    notebook["cells"] = json.loads(nbformat.writes(jupytext.reads(script, "py:light")))["cells"]


def older_format(notebook: Json) -> None:
    """As nbformat itself converts to 4.4."""
    notebook["nbformat_minor"] = 4
    for cell in notebook["cells"]:
        del cell["id"]


EDITORS: list[Callable[[Json], None]] = [
    jupyterlab,
    vs_code,
    vs_code_of_2021,
    classic_without_ids,
    colab,
    colab_with_ids_of_its_own,
    kaggle,
    deepnote,
    marimo,
    only_text_survives,
    nbstripout,
    jupytext_round_trip,
    jupytext_light,
    older_format,
]


@pytest.mark.parametrize("chapter", CHAPTERS)
@pytest.mark.parametrize("editor", EDITORS, ids=lambda editor: editor.__name__)
def test_every_answer_is_found_whatever_saved_the_notebook(editor: Callable[[Json], None], chapter: str) -> None:
    notebook = filled_in(chapter)
    editor(notebook)
    assert found(notebook) == expected(chapter)


@pytest.mark.parametrize("editor", EDITORS, ids=lambda editor: editor.__name__)
def test_the_exercise_as_it_was_handed_out_is_no_answer(editor: Callable[[Json], None]) -> None:
    notebook = filled_in("ch03")
    for cell, question in zip(answer_cells(notebook), of_chapter("ch03"), strict=True):
        cell["source"] = f"# Answer: {question.id}\n{stubbed(text_of(cell), question.answer)}"
    editor(notebook)
    answers = answers_in(notebook["cells"])
    assert all(map(is_stub, answers.sources.values())) and set(answers.sources) <= set(expected("ch03"))


# ---- what learners do ------------------------------------------------------------------------------------------------

NAME = "ch00-q1-answer"
HELPER = "import math\n\n\ndef blocks(n):\n    return math.ceil(n / 16)"
USES = "def blocks_needed(n):\n    return blocks(n)"
STUB = 'def blocks_needed(n):\n    raise NotImplementedError("Write your code here.")'


def code(source: str, *, id: str = "x", comment: bool = False, tag: bool = False, kind: str = "code") -> Json:
    """A cell with the signs that are asked for."""
    metadata = {"tags": [NAME]} if tag else {}
    source = f"# Answer: ch00.q1\n{source}" if comment else source
    return {"cell_type": kind, "id": id, "metadata": metadata, "source": source, "outputs": []}


CALL = 'check("ch00.q1")'
CHECK = code(CALL, id="ch00-q1-check")
SPLIT = f"{HELPER}\n\n{USES}"
MADE: dict[str, tuple[list[Json], str]] = {
    "JupyterLab 4.6 splits: the last piece keeps the id, all keep the tag": (
        [code(HELPER, tag=True, comment=True), code(USES, id=NAME, tag=True)],
        SPLIT,
    ),
    "JupyterLab 4.0 splits: no piece keeps the id": (
        [code(HELPER, tag=True, comment=True), code(USES, tag=True)],
        SPLIT,
    ),
    "split, function first": ([code(USES, tag=True), code(HELPER, id=NAME, tag=True)], f"{USES}\n\n{HELPER}"),
    "split by an editor that copies no metadata": ([code("import math", id=NAME, comment=True), code(RIGHT)], RIGHT),
    "merged in JupyterLab: a new id": ([code(RIGHT, tag=True, comment=True)], RIGHT),
    "merged with the check cell": (
        [code(f'{RIGHT}\n\ncheck("ch00.q1")', comment=True)],
        f'{RIGHT}\n\ncheck("ch00.q1")',
    ),
    "written anew": ([code(RIGHT), CHECK], RIGHT),
    "written anew below the stub": ([code(STUB, id=NAME, tag=True), code(RIGHT), CHECK], RIGHT),
    "duplicated: the id decides": ([code(RIGHT, id=NAME, tag=True), code(WRONG, tag=True, comment=True)], RIGHT),
    "duplicated with its id by VS Code of 2022": ([code(RIGHT, id=NAME), code(RIGHT, id=NAME)], RIGHT),
    "a copy tries the answer": ([code(RIGHT, id=NAME, tag=True), code("n = 5\nblocks_needed(n)", tag=True)], RIGHT),
    "a copy of the stub": ([code(STUB, tag=True, comment=True), code(RIGHT, tag=True)], RIGHT),
    "an answer that is pasted over another's": (
        [code(RIGHT.replace("16", "8"), id="ch00-q2-answer", comment=True), code(RIGHT, id=NAME)],
        RIGHT,
    ),
    "moved below its check": ([CHECK, code(RIGHT, id=NAME)], RIGHT),
    "made a text and code again": ([code(RIGHT, kind="markdown", id=NAME), code(RIGHT), CHECK], RIGHT),
    "a trial below": ([code(RIGHT), CHECK, code("blocks_needed(7)\nx = blocks_needed")], RIGHT),
    "the comment stays behind what was there": (
        [code("blocks_needed = 7  # your answer", id=NAME)],
        "blocks_needed = 7",
    ),
    "timed": ([code(f"%%time\n# answer CH00.q1, mine\n{RIGHT}", id="y")], RIGHT),
}


@pytest.mark.parametrize("name", MADE)
def test_what_learners_do_to_cells_costs_no_answer(name: str) -> None:
    cells, source = MADE[name]
    answers = answers_in(cells)
    got = answers.sources[NAME]
    for sign in ("# Answer: ch00.q1\n", "# answer CH00.q1, mine\n", "%%time\n", "  # your answer"):
        got = got.replace(sign, "")
    assert got.strip() == source.strip() and answers.problems == {}


AMBIGUOUS: dict[str, tuple[list[Json], str]] = {
    "one id": ([code(RIGHT, id=NAME), code(WRONG, id=NAME)], "two cells ch00-q1-answer (numbers 1 and 2"),
    "one tag": ([code(RIGHT, tag=True), CHECK, code(WRONG, tag=True)], "(numbers 1 and 3"),
    "one comment": ([code(RIGHT, comment=True), code(WRONG, comment=True)], "two cells ch00-q1-answer"),
    "no sign": ([code(RIGHT), code(WRONG), CHECK], "two cells that define blocks_needed"),
    "no sign, below a stub": ([code(STUB, id=NAME), code(RIGHT), code(WRONG)], "two cells"),
    "a text": ([code(RIGHT, kind="markdown", id=NAME), CHECK], "is no code cell"),
    "nothing": ([code("x = 1"), CHECK], "none answers by defining blocks_needed"),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_may_be_either_is_neither_and_said_so(name: str) -> None:
    cells, words = AMBIGUOUS[name]
    answers = answers_in(cells)
    assert answers.sources == {} and words in answers.problems[NAME]


def test_names_without_a_check_are_no_answers() -> None:
    """A chapter's own notebook defines what its exercises ask for, too."""
    assert answers_in([code(RIGHT)]).sources == {} == answers_in([code(RIGHT)]).problems


SOURCES = st.sampled_from(
    [RIGHT, WRONG, STUB, "", HELPER, USES, "import math", "blocks_needed = 3", "x = (", "%%time\n"]
)
SIGNS = st.builds(
    code,
    SOURCES,
    id=st.sampled_from(["x", NAME, "ch00-q2-answer", "ch00-setup", "0"]),
    comment=st.booleans(),
    tag=st.booleans(),
    kind=st.sampled_from(["code", "code", "code", "markdown", "raw"]),
)
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.just(NAME),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "metadata", "tags", "source", "cell_type", "cell_id"]), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(SIGNS | JUNK, max_size=7), st.booleans())
def test_nobody_has_two_tries_and_no_cell_answers_two_questions(cells: list[Any], is_checked: bool) -> None:
    cells = [*cells, CHECK] if is_checked else cells
    before = copy.deepcopy(cells)
    answers = answers_in(cells)
    assert cells == before and not set(answers.sources) & set(answers.problems)
    numbers = [number for parts in answers.parts.values() for number in parts]
    assert len(numbers) == len(set(numbers))
    for name, parts in answers.parts.items():
        sources = {unmarked(cells[number - 1]["source"]).strip() for number in parts}
        if name == NAME:
            defining = {source for source in sources if source.startswith(("def blocks_needed", "blocks_needed ="))}
            assert len(defining) <= 1
        assert all(cells[number - 1]["cell_type"] == "code" for number in parts)


@settings(max_examples=200, deadline=None)
@given(st.lists(SIGNS, max_size=6), st.integers(0, 6), st.sampled_from([WRONG, HELPER, "y = 2"]))
def test_an_answer_that_bears_its_id_is_moved_by_no_other_cell(others: list[Json], place: int, own: str) -> None:
    """Whatever else is in the notebook, as long as nothing else bears the id."""
    others = [{**cell, "id": "x"} if cell["id"] == NAME else cell for cell in others]
    cells = [*others[:place], code(f"{RIGHT}# {own!r}", id=NAME), *others[place:]]
    assert f"{RIGHT}# {own!r}" in answers_in(cells).sources[NAME]


def test_marks_are_taken_off_as_they_were_put_on() -> None:
    question = of_chapter("ch03")[1]
    cell = nbformat.v4.new_code_cell(RIGHT)
    mark(cell, question)
    assert unmarked(cell.source) == RIGHT and cell.metadata.tags == ["ch03-q2-answer"]


# ---- files -----------------------------------------------------------------------------------------------------------


def write(folder: Path, name: str, source: str = RIGHT) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(as_notebook(source), encoding="utf-8")
    return path


def zipped(**files: bytes | str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def learners(folder: Path) -> dict[str, Learner]:
    return {learner.name: learner for learner in collect(folder)[0]}


def answer_of(learner: Learner) -> str:
    return learner.notebooks["ch00"].answers.sources[NAME]


@pytest.mark.parametrize(
    ("name", "learner"),
    [
        ("smith_12345_678901_03_kv_cache.ipynb", "smith_12345"),
        ("smith_LATE_12345_678901_03_kv_cache-1.ipynb", "smith_12345"),
        ("o'brienzoë_12345_678_exercises.zip", "o'brienzoë_12345"),
        ("Ada Lovelace_123_assignsubmission_file_", "Ada Lovelace_123"),
        ("Ada Lovelace_123_assignsubmission_file_03_kv_cache.ipynb", "Ada Lovelace_123"),
        ("小 明_9_assignsubmission_file", "小 明_9"),
        ("ada.ipynb", "ada"),
        ("Ada.IPYNB.txt", "Ada"),
        ("03_kv_cache", "03_kv_cache"),
        ("week_1_2_ch03.ipynb", "week_1_2_ch03"),
        ("Zoe\u0308.ipynb", "Zoë"),
    ],
)
def test_whose_a_file_is(name: str, learner: str) -> None:
    assert learner_of(name) == learner


def test_folders_and_zip_files_as_courses_export_them(tmp_path: Path) -> None:
    write(tmp_path, "Ada Lovelace_123_assignsubmission_file_/00_small.ipynb")
    write(tmp_path, "smith_12345_678901_00_small.ipynb")
    write(tmp_path, "doe_LATE_12399_678902_00_small-1.ipynb")
    write(tmp_path, "lab-3-grace/exercises/00_small.ipynb")
    write(tmp_path, "lab-3-grace/solutions/00_small.ipynb", WRONG)
    write(tmp_path, "lab-3-grace/chapters/other.ipynb", "x = 1")
    write(tmp_path, "lab-3-grace/.ipynb_checkpoints/00_small-checkpoint.ipynb", WRONG)
    write(tmp_path, "saved.ipynb.txt")
    write(tmp_path, "only_solutions/my/solutions/00_small.ipynb")
    inside = as_notebook(RIGHT)
    (tmp_path / "kay.zip").write_bytes(zipped(**{"a/b/00_small.ipynb": inside, "__MACOSX/a/b/._00_small.ipynb": "x"}))
    (tmp_path / "zed").mkdir()
    (tmp_path / "zed" / "work.zip").write_bytes(zipped(**{"00_small.ipynb": b"\xef\xbb\xbf" + inside.encode()}))
    found = learners(tmp_path)
    assert set(found) == {
        *("Ada Lovelace_123", "smith_12345", "doe_12399", "lab-3-grace", "saved", "only_solutions", "kay", "zed")
    }
    assert all(answer_of(learner) == RIGHT for learner in found.values())
    assert all(learner.problems == [] for learner in found.values())
    assert found["kay"].notebooks["ch00"].file == "a/b/00_small.ipynb"
    assert found["zed"].notebooks["ch00"].file == "work.zip/00_small.ipynb"


def test_one_folder_or_zip_file_that_holds_everybody(tmp_path: Path) -> None:
    """As the export is unpacked, or is not; what a learner named like another's file stays the learner's own."""
    for name in ("Ada_1_assignsubmission_file_", "Bob_2_assignsubmission_file_"):
        write(tmp_path, f"Assignment 3/{name}/00_small.ipynb")
    names = ("eve_12345_678_a.ipynb", "kay_12399_679_a.ipynb")
    (tmp_path / "submissions.zip").write_bytes(zipped(**dict.fromkeys(names, as_notebook(RIGHT))))
    write(tmp_path, "Mallory_3_assignsubmission_file_/Ada_1_assignsubmission_file_/00.ipynb", WRONG)
    write(tmp_path, "Mallory_3_assignsubmission_file_/Bob_2_assignsubmission_file_/00.ipynb", WRONG)
    found = learners(tmp_path)
    assert set(found) == {"Ada_1", "Bob_2", "eve_12345", "kay_12399", "Mallory_3"}
    assert [answer_of(found[name]) for name in ("Ada_1", "Bob_2")] == [RIGHT, RIGHT]
    assert answer_of(found["Mallory_3"]) == WRONG


def test_of_two_notebooks_the_later_counts_unless_nothing_is_answered_in_it(tmp_path: Path) -> None:
    numbers = {"03": 0, "03-1": 1, "03 (2)": 2, "03(12)": 12, "03_v3": 3, "03-Copy1": -1, "03-Copy2": -2, "kv2": 0}
    assert {name: copy_number(f"{name}.ipynb") for name in numbers} == numbers
    for learner, files in {
        "later": {"00.ipynb": WRONG, "00-1.ipynb": RIGHT},
        "backup": {"00.ipynb": RIGHT, "00-Copy1.ipynb": WRONG},
        "empty": {"00.ipynb": RIGHT, "00 (1).ipynb": STUB},
        "same": {"a.ipynb": RIGHT, "b.ipynb": RIGHT},
        "first": {"a.ipynb": RIGHT, "b.ipynb": WRONG},
    }.items():
        for name, source in files.items():
            write(tmp_path, f"{learner}/{name}", source)
    found = learners(tmp_path)
    assert {answer_of(learner) for learner in found.values()} == {RIGHT}
    assert found["later"].problems == ["00.ipynb is a second notebook of ch00: only 00-1.ipynb counts."]
    assert found["same"].problems == [] and "b.ipynb is a second" in found["first"].problems[0]


def test_what_cannot_be_unpacked_or_read_is_said(tmp_path: Path) -> None:
    """None of it is read further than allowed, whatever a zip file says of itself."""
    bomb = zipped(**{"a.ipynb": b" " * (MAX_BYTES + 1)})
    damaged = bytearray(zipped(**{"a.ipynb": os.urandom(9000)}))
    damaged[3000:3100] = bytes(100)
    files = {
        "bomb.zip": (bomb, "at most 21: clear its outputs"),
        "damaged.zip": (bytes(damaged), "is damaged in its zip file"),
        "none.zip": (b"PK\x03\x04" + bytes(99), "is no zip file"),
        "empty.zip": (zipped(**{"readme.txt": "x"}), "holds no notebook"),
        "big.ipynb": (b" " * (MAX_BYTES + 1), "jupyter nbconvert --clear-output"),
    }
    for name, (content, _) in files.items():
        (tmp_path / name).write_bytes(content)
    locked = bytearray(zipped(**{"a.ipynb": b"x"}))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        locked[locked.index(signature) + offset] |= 1
    (tmp_path / "locked.zip").write_bytes(bytes(locked))
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "more").symlink_to("/etc")
    (tmp_path / "links" / "a.ipynb").symlink_to("/etc/passwd")
    found = {name: " ".join(learner.problems) for name, learner in learners(tmp_path).items()}
    assert not [name for name, (_, words) in files.items() if words not in found[name.split(".")[0]]], found
    assert "is encrypted" in found["locked"]
    assert found["links"] == "a.ipynb is a link: hand in the file itself. more is a link: hand in the file itself."


def test_the_reason_for_a_missing_chapter_is_about_that_chapter(tmp_path: Path) -> None:
    write(tmp_path, "ada/00_small.ipynb")
    (tmp_path / "ada" / "03_kv_cache.ipynb").write_text("{")
    (tmp_path / "ada" / "notes.ipynb").write_text("{}")
    learner = learners(tmp_path)["ada"]
    assert learner.why_without("ch03") == "03_kv_cache.ipynb is no notebook: it is not JSON text."
    assert learner.why_without("ch04") == "No ch04 handed in."


@pytest.mark.slow
def test_found_answers_get_their_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "QUESTIONS", tuple(of_chapter("ch00")))
    (tmp_path / "solutions").mkdir()
    (tmp_path / "solutions" / "00_small.ipynb").write_text(as_notebook(SOLUTION))
    work = tmp_path / "work"
    write(work, "kay_12345_678_00-1.ipynb")
    split, _ = MADE["JupyterLab 4.6 splits: the last piece keeps the id, all keep the tag"]
    for name, cells in {"split": split, "two": [code(RIGHT, id=NAME), code(WRONG, id=NAME)]}.items():
        (work / f"{name}.ipynb").write_text(json.dumps({"nbformat": 4, "cells": cells}))
    (work / "zip.zip").write_bytes(
        zipped(**{"a/00.ipynb": as_notebook(f"%%time\n{RIGHT}"), "00.ipynb": as_notebook(STUB)})
    )
    assert grade_command(str(work), str(tmp_path / "g.csv"), None, 2, str(tmp_path / "solutions")) == 0
    rows = [row.split(",") for row in (tmp_path / "g.csv").read_text().splitlines()[1:]]
    assert rows == [["kay_12345", "2", "2"], ["split", "2", "2"], ["two", "0", "0"], ["zip", "2", "2"]]
    told = json.loads((tmp_path / "g.json").read_text())["learners"]
    assert "two cells ch00-q1-answer" in told["two"]["questions"]["ch00.q1"]["reason"]
    assert told["zip"]["problems"] == ["00.ipynb is a second notebook of ch00: only a/00.ipynb counts."]
