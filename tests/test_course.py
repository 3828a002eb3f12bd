"""What the notebooks call: guesses, claims, source, questions, pictures, controls."""

from __future__ import annotations

import csv
import html.parser
import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pagedlab.course as course
from pagedlab.basics.attention import OnlineSoftmax, attention
from pagedlab.course import exercises, ledger, predictions, progress, questions
from pagedlab.course.chapters import CHAPTERS, TOKEN_WAY, files_beside_the_way
from pagedlab.course.claims import linked
from pagedlab.course.comparison import matches
from pagedlab.course.display import BADGES, format_value, plain_value
from pagedlab.errors import ClaimError, CourseError
from pagedlab.visualize import PALETTE, explore, new_figure, show, widgets
from pagedlab.visualize.course_map import course_map
from pagedlab.visualize.style import CYCLE, legend_below, legend_beside


class Screen:
    """What was displayed, in place of a notebook's page."""

    def __init__(self) -> None:
        self.shown: list[dict[str, Any]] = []
        self.metadata: list[dict[str, Any]] = []

    def __call__(self, data: Any, metadata: Any = None, raw: bool = False) -> None:
        assert raw
        self.shown.append(data)
        self.metadata.append(metadata or {})

    @property
    def text(self) -> str:
        return "\n".join(data["text/plain"] for data in self.shown)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    screen = Screen()
    for module in ("course.display", "course.source", "visualize.widgets"):
        monkeypatch.setattr(f"pagedlab.{module}.display", screen)
    monkeypatch.setattr(predictions, "PREDICTIONS", {})
    monkeypatch.setattr(progress, "session", {})
    monkeypatch.setattr(exercises, "hints_given", {})
    return screen


class Balance(html.parser.HTMLParser):
    """Every tag that opens closes, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in ("br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def assert_well_formed(screen: Screen) -> None:
    for data in screen.shown:
        balance = Balance()
        balance.feed(data.get("text/html", ""))
        assert balance.open == []


# ---- predict, reveal ---------------------------------------------------------------------------------------------


def test_a_guess_stands_beside_the_measurement(screen: Screen) -> None:
    course.predict("ch00.a", "How many times slower?", guess=8, unit="x")
    course.reveal("ch00.a", 2.0, "On this machine.")
    assert "Your guess: 8x" in screen.text
    assert "your guess: 8x | measured: 2x | 4 times too high. On this machine." in screen.text
    assert_well_formed(screen)


def test_running_on_without_a_guess_shows_everything_else(screen: Screen) -> None:
    prediction = course.predict("ch00.a", "How many?")
    course.reveal("ch00.a", 3)
    course.reveal("ch00.never-asked", 4)
    assert prediction.guess is None
    assert "your guess: none | measured: 3" in screen.text and "measured: 4" in screen.text


@pytest.mark.parametrize("bad", ["a lot", float("nan"), float("inf"), True, [1, 2], object()])
def test_a_bad_guess_is_answered_in_a_sentence_and_does_not_count(screen: Screen, bad: Any) -> None:
    assert course.predict("ch00.a", "How many?", guess=bad).guess is None
    assert "is not a number: write guess=8" in screen.text


def test_a_choice_is_taken_whatever_its_case_and_a_wrong_one_is_named(screen: Screen) -> None:
    choices = ["Faster", "Slower"]
    assert course.predict("ch00.a", "Which?", guess=" slower", choices=choices).guess == "Slower"
    course.reveal("ch00.a", "Slower")
    assert "As you said." in screen.text
    course.reveal("ch00.a", "Faster")
    assert "Not what you said." in screen.text
    course.predict("ch00.b", "Which?", guess="same", choices=choices)
    assert "guess='same' is not among the choices" in screen.text
    with pytest.raises(CourseError, match="two or more"):
        course.predict("ch00.c", "Which?", choices=["only"])


def test_running_a_prediction_again_keeps_the_guess_typed_before(screen: Screen) -> None:
    course.predict("ch00.a", "How many?", guess=5)
    assert course.predict("ch00.a", "How many?").guess == 5


@given(guess=st.floats(allow_nan=True), measured=st.one_of(st.floats(), st.integers(), st.text(), st.none()))
def test_comparing_never_fails(guess: float, measured: Any) -> None:
    assert isinstance(predictions.compare(guess, measured), str)


@pytest.mark.parametrize(
    ("guess", "measured", "words"),
    [
        (3, 3, "Exactly."),
        (10.5, 10, "Within 10 %."),
        (1, 4, "4 times too low."),
        (0, 4, "4 too low."),
        (5, -1, "6 too"),
    ],
)
def test_how_far_off_is_said_in_words(guess: float, measured: float, words: str) -> None:
    assert predictions.compare(guess, measured).startswith(words)


# ---- the ledger --------------------------------------------------------------------------------------------------


def test_the_whole_ledger_is_well_formed() -> None:
    rows = ledger.rows()
    assert len({row.id for row in rows}) == len(rows) > 0
    assert sum(ledger.summary().values()) == len(rows)


HEADER = ",".join(ledger.COLUMNS)


def ledger_of(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    rows = tuple(ledger.read_csv("ch42.csv", "\n".join([HEADER, *lines])))
    monkeypatch.setattr(ledger, "raw_rows", lambda: rows)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("c1-a,six,5,6,6,,right,So.,", "verdict must be one of holds, corrected"),
        ("c1-a,six, or so,5,6,6,,holds,So.,", "needs 9 columns"),
        ("c1-a,six", "needs 9 columns"),
        ("c1-a,,5,6,6,,holds,So.,", "column 'claim' is empty"),
        ("c1-a,six,5,6,6,,holds,,", "column 'why' is empty"),
        ("c1-a,six,5,6,6 apples,,holds,So.,", "expected must be a literal"),
        ("c1-a,six,5,6,6,10%,holds,So.,", "tolerance must be"),
        ("c1-a,six,5,6,,,cited,So.,", "nothing to compare with"),
        ("c1-a,six,5,6,,,holds,So.,", "nothing to compare with"),
    ],
)
def test_a_malformed_row_is_named_with_its_line(monkeypatch: pytest.MonkeyPatch, line: str, problem: str) -> None:
    ledger_of(monkeypatch, "c0-a,fine,1,1,1,,holds,So.,", line)
    with pytest.raises(CourseError, match=f"ch42.csv line 3 .*{problem}"):
        ledger.rows()
    assert ledger.find("c0-a").expected == 1  # a neighbour's mistake does not stop a chapter


def test_a_strange_id_a_second_use_and_an_unknown_id_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger_of(monkeypatch, "claim 1,six,5,6,6,,holds,So.,")
    with pytest.raises(CourseError, match=r"must look like c5\.1\.2-a"):
        ledger.rows()
    ledger_of(monkeypatch, *["c1-a,six,5,6,6,,holds,So.,"] * 2)
    for read in (ledger.rows, lambda: ledger.find("c1-a")):
        with pytest.raises(CourseError, match=r"more than once \(ch42.csv line 2, ch42.csv line 3\)"):
            read()
    with pytest.raises(CourseError, match=r"no claim 'c1-b'; near it are c1-a"):
        ledger.find("c1-b")
    with pytest.raises(CourseError, match=r"first line of ch42\.csv must be id,claim"):
        ledger.read_csv("ch42.csv", "id,claim\n")


@pytest.mark.parametrize(
    ("written", "value"),
    [("6", 6), ("1.5e3", 1500.0), ("true", True), ("True", True), ("[1, 2]", [1, 2]), ("'a'", "a"), ('"a"', "a")],
)
def test_expected_is_json_or_python(written: str, value: Any) -> None:
    assert ledger.literal(written) == value


# ---- claim, cite -------------------------------------------------------------------------------------------------

CLAIMS = (
    'c1-a,"six, no less",5,half a dozen,6,,corrected,"Counted, twice.",',
    "c1-b,about ten,10,10,10,0.05,holds,So.,",
    "c1-c,near zero,0,0,0,abs:0.5,holds,So.,",
    'c1-d,parts,,parts,"{""16"": [1, true], ""name"": ""x""}",,holds,So.,',
    "c1-e,first is slower,,yes,true,,measured,So.,",
    "c1-f,free,,depends,,,measured,So.,",
    "c1-g,24x,24x,up to 24x,,,cited,One comparison.,Blog https://example.org/a?b=1&c=2",
    "c1-h,on a GPU,,13.4 ms,13.4,0.01,needs-gpu,So.,",
)


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch, screen: Screen) -> Screen:
    ledger_of(monkeypatch, *CLAIMS)
    return screen


def test_a_claim_shows_what_is_said_what_was_found_and_the_verdict(claims: Screen) -> None:
    course.claim("c1-a", 6)
    assert claims.text.splitlines() == [
        "Claim c1-a: six, no less",
        "  commonly said: 5",
        "  found: 6 (half a dozen)",
        "  verdict: corrected. Counted, twice.",
    ]
    assert "corrected" in claims.shown[0]["text/html"]
    assert_well_formed(claims)


@pytest.mark.parametrize(
    ("identifier", "right", "wrong"),
    [
        ("c1-a", 6, 7),
        ("c1-a", 6.0, 6.0001),
        ("c1-a", 6, True),
        ("c1-a", 6, "6"),
        ("c1-a", 6, None),
        ("c1-b", 10.5, 10.51),
        ("c1-b", 9.5, float("nan")),
        ("c1-c", -0.5, 0.51),
        ("c1-d", {16: (1, True), "name": "x"}, {16: (1, False), "name": "x"}),
        ("c1-d", {"16": [1, True], "name": "x"}, {"16": [1, True]}),
        ("c1-d", {"16": [1, True], "name": "x"}, [1, True]),
        ("c1-d", {"16": [1, True], "name": "x"}, {"16": [1], "name": "x"}),
        ("c1-e", True, False),
        ("c1-e", True, 1),
        ("c1-h", 13.4, 20),
    ],
)
def test_a_claim_holds_within_its_tolerance_and_fails_outside(
    claims: Screen, identifier: str, right: Any, wrong: Any
) -> None:
    course.claim(identifier, right)
    with pytest.raises(ClaimError, match=f"{identifier}: measured .* but the ledger expects"):
        course.claim(identifier, wrong)
    with pytest.raises(AssertionError):
        course.claim(identifier, wrong)


def test_measurements_may_be_tensors_and_arrays(claims: Screen) -> None:
    import numpy as np
    import torch

    course.claim("c1-a", torch.tensor(6))
    course.claim("c1-b", np.float32(10.1))
    course.claim("c1-e", torch.tensor([1.0]).gt(0).all())
    with pytest.raises(ClaimError):
        course.claim("c1-a", torch.tensor([6, 6]))


def test_what_has_nothing_to_compare_is_shown_as_measured(claims: Screen) -> None:
    course.claim("c1-f", 3.25)
    assert "found: 3.25 (depends)" in claims.text and "measured here" in claims.text


def test_claim_and_cite_are_not_mistaken_for_each_other(claims: Screen) -> None:
    course.cite("c1-g")
    assert "source: Blog https://example.org/a?b=1&c=2" in claims.text
    assert '<a href="https://example.org/a?b=1&amp;c=2">' in claims.shown[0]["text/html"]
    with pytest.raises(CourseError, match="show it with cite"):
        course.claim("c1-g", 24)
    for identifier in ("c1-a", "c1-f"):
        with pytest.raises(CourseError, match="use claim"):
            course.cite(identifier)


def test_every_verdict_has_a_badge_that_says_it_in_words() -> None:
    assert set(ledger.VERDICTS) <= set(BADGES)
    for _sign, words, colour in BADGES.values():
        assert words and contrast_with_white(colour) >= 4.5  # WCAG 2, level AA


def contrast_with_white(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 1.05 / (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)


@given(st.recursive(st.integers(-9, 9) | st.booleans() | st.text(max_size=2), lambda part: st.lists(part, max_size=3)))
def test_a_value_matches_itself_and_nothing_longer(value: Any) -> None:
    assert matches(value, value, 0.0, absolute=False)
    assert not matches([value, value], [value], 0.0, absolute=False)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1048576, "1,048,576"),
        (0.03125, "0.03125"),
        (1234.56, "1,234.6"),
        (52_428_800_000.0, "52,428,800,000"),
        (3e-7, "3.000e-07"),
        (True, "yes"),
        ((1, 2.5), "1, 2.5"),
        ({"a": 1}, "a: 1"),
        ({"preempted": [], "free": 0}, "preempted: none, free: 0"),
        ([[], ""], "none, none"),
        (float("nan"), "nan"),
    ],
)
def test_numbers_are_shown_as_people_write_them(value: Any, shown: str) -> None:
    assert format_value(value) == shown
    assert json.dumps(plain_value(value)) is not None


# ---- show_source -------------------------------------------------------------------------------------------------


def test_the_source_is_the_installed_one_with_its_file_and_lines(screen: Screen) -> None:
    course.show_source(attention)
    caption, *lines = screen.text.splitlines()
    file, _, numbers = caption.removeprefix("# pagedlab/").partition(", lines ")
    first, last = map(int, numbers.split("–"))
    written = (Path(course.__file__).parents[1] / file).read_text().splitlines()
    assert lines == written[first - 1 : last] and lines[0] == "def attention("
    assert "```python\ndef attention(" in screen.shown[0]["text/markdown"]


def test_only_the_chosen_methods_of_a_class_are_shown(screen: Screen) -> None:
    course.show_source(OnlineSoftmax, only=["update", "empty"])
    assert "class OnlineSoftmax" in screen.text and "@classmethod" in screen.text
    assert screen.text.index("def update") < screen.text.index("def empty")
    assert "def merge" not in screen.text
    course.show_source([attention, OnlineSoftmax.merge])
    assert "def merge" in screen.text


def test_properties_modules_and_classes_have_source(screen: Screen) -> None:
    from pagedlab.model_authoring.request import Request

    some_property = next(value for value in vars(Request).values() if isinstance(value, property))
    for obj in (some_property, exercises, ledger.Row):
        course.show_source(obj)
    assert "@property" in screen.text and "class Row" in screen.text


def test_a_function_that_torch_has_decorated_has_its_own_source(screen: Screen) -> None:
    from pagedlab.basics.generation import generate_naive

    course.show_source(generate_naive)
    assert (
        "# pagedlab/basics/generation.py" in screen.text
        and "@torch.inference_mode()\ndef generate_naive" in screen.text
    )


class Outside:
    @cached_property
    def method(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((3,), "no source for 3"),
        ((len,), "no source for"),
        ((csv.DictReader,), "not code of pagedlab"),
        ((Outside.method,), "not code of pagedlab"),
        ((attention, ["x"]), "pass the class"),
        ((OnlineSoftmax, ["upgrade"]), "defines no method 'upgrade'"),
    ],
)
def test_what_has_no_source_in_pagedlab_is_refused(screen: Screen, arguments: tuple, sentence: str) -> None:
    with pytest.raises(CourseError, match=sentence):
        course.show_source(*arguments)


# ---- check, hint -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [lambda n: (n + 15) // 16, lambda n: -(-n // 16), lambda n: -(-n / 16 // 1)])
def test_a_right_answer_earns_all_points_however_it_is_written(screen: Screen, answer: Any) -> None:
    course.check("ch00.q1", answer)
    assert "right in every case, 2 of 2 points" in screen.text and "█" * 20 in screen.text
    assert_well_formed(screen)


@pytest.mark.parametrize(
    ("answer", "misunderstanding"),
    [
        (lambda n: n // 16, "Rounded down"),
        (lambda n: n // 16 + 1, "One block too many"),
        (lambda n: n / 16, "not rounded to whole blocks"),
        (lambda n: None, "end it with `return`"),
        (lambda n: n / 0, "ZeroDivisionError"),
        (lambda: 1, "TypeError"),
        (7, "expected 1"),
        (lambda n: str(n), "got 17, expected 2"),
    ],
)
def test_a_wrong_answer_is_told_what_is_wrong(screen: Screen, answer: Any, misunderstanding: str) -> None:
    course.check("ch00.q1", answer)
    assert misunderstanding in screen.text and "2 of 2 points" not in screen.text
    assert 'Stuck? hint("ch00.q1")' in screen.text
    assert_well_formed(screen)


def test_an_exception_is_shown_with_its_line_in_the_notebook(screen: Screen) -> None:
    notebook: dict[str, Any] = {"__name__": "__main__"}
    exec("import json\n\n\ndef blocks_needed(n):\n    return json.loads('{')\n", notebook)
    course.check("ch00.q1", notebook["blocks_needed"])
    assert "JSONDecodeError: " in screen.text and " (line 5 of the cell, in blocks_needed)" in screen.text
    course.check("ch00.q1", lambda n: 1 // 0)  # of a module: its lines say nothing to a reader
    assert "ZeroDivisionError" in screen.text and "of the cell, in <lambda>" not in screen.text


def test_hints_come_one_by_one_and_end(screen: Screen) -> None:
    for _ in range(4):
        course.hint("ch00.q1")
    numbers = [line.split(":")[0] for line in screen.text.splitlines() if line.startswith("Hint")]
    assert numbers == ["Hint 1 of 3", "Hint 2 of 3", "Hint 3 of 3", "Hint 3 of 3"]
    for helper in (lambda: course.hint("ch00.q9"), lambda: course.check("ch00.q9", 1)):
        with pytest.raises(CourseError, match=r"no question 'ch00\.q9'"):
            helper()


def test_every_question_has_an_id_of_its_own_cases_and_points() -> None:
    ids = [question.id for question in questions.QUESTIONS]
    assert len(set(ids)) == len(ids)
    for question in questions.QUESTIONS:
        assert question.points > 0 and len(question.hints) == 3 and list(question.cases())


def test_progress_keeps_the_best_result_and_a_broken_file(
    screen: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAGEDLAB_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(progress, "has_frontend", lambda: True)
    path = progress.progress_path()
    course.check("ch00.q1", lambda n: -(-n // 16))
    course.check("ch00.q1", lambda n: 0)
    assert json.loads(path.read_text()) == {"ch00.q1": 2}
    monkeypatch.setattr(progress, "session", {})
    for number, broken in enumerate(("{", "[1]", '{"ch00.q1": "2"}', "\udcff"), start=1):
        path.write_bytes(broken.encode(errors="surrogateescape"))
        course.check("ch00.q1", lambda n: n // 16)
        aside = path.with_name(f"progress.json.unreadable-{number}")
        assert aside.read_bytes() == broken.encode(errors="surrogateescape")
    assert json.loads(path.read_text()) == {"ch00.q1": 0}


def test_without_a_reader_or_a_disk_nothing_is_written_and_nothing_fails(
    screen: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAGEDLAB_HOME", str(tmp_path / "home"))
    course.check("ch00.q1", lambda n: n)
    assert not (tmp_path / "home").exists()
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PAGEDLAB_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(progress, "has_frontend", lambda: True)
    course.check("ch00.q1", lambda n: n)
    assert "points" in screen.text


# ---- the course as data ------------------------------------------------------------------------------------------


def test_the_course_names_chapters_in_order_and_files_that_exist() -> None:
    assert [chapter.number for chapter in CHAPTERS] == [f"{number:02d}" for number in range(len(CHAPTERS))]
    package = Path(course.__file__).parents[1]
    files = {*TOKEN_WAY, *(module for chapter in CHAPTERS for module in chapter.modules)}
    assert [file for file in files if not (package / file).exists()] == []
    notebooks = {path.stem for path in (package.parent / "chapters").glob("*.ipynb")}
    assert notebooks <= {chapter.name for chapter in CHAPTERS}
    assert not set(files_beside_the_way()) & set(TOKEN_WAY)


def test_the_readme_lists_the_chapters_that_are_there_and_counts_the_questions() -> None:
    root = Path(course.__file__).parents[2]
    readme = (root / "README.md").read_text(encoding="utf-8")
    there = [chapter for chapter in CHAPTERS if (root / "chapters" / f"{chapter.name}.ipynb").exists()]
    rows = [f"| [{c.number} {c.title}](chapters/{c.name}.ipynb) | {c.question} |" for c in there]
    assert [line for line in readme.splitlines() if "](chapters/" in line] == rows
    asked = [question for question in questions.QUESTIONS if question.chapter != "ch00"]
    assert f"{len(asked)} questions in all" in readme


def test_the_map_has_a_dot_for_each_file_that_a_chapter_explains() -> None:
    explains = {chapter.title: chapter.modules for chapter in CHAPTERS}
    figure = course_map(explains, TOKEN_WAY, files_beside_the_way(), highlight="Serving")
    dots = sum(len(collection.get_offsets()) for collection in figure.axes[0].collections)
    assert dots == sum(map(len, explains.values()))
    assert len(figure.axes[0].get_yticklabels()) == len(TOKEN_WAY) + len(files_beside_the_way())
    with pytest.raises(CourseError, match="no row or column for Cooking"):
        course_map(explains, TOKEN_WAY, files_beside_the_way(), highlight="Cooking")
    with pytest.raises(CourseError, match=r"no row or column for x\.py"):
        course_map({"a": ["x.py"]}, TOKEN_WAY)


# ---- show, explore, new_figure -----------------------------------------------------------------------------------


def line(n: int = 3, kind: str = "b", grow: float = 0.5, on: bool = True) -> Any:
    figure = new_figure(title="A line")
    axes = figure.subplots()
    axes.plot([0, n], label=kind)
    axes.set_xlabel("tokens")
    return figure


def test_a_picture_carries_its_alt_text_and_is_the_same_each_time(screen: Screen) -> None:
    for _ in range(2):
        show(line(), alt="A line rises\n from zero to three.")
    assert screen.metadata[0]["image/png"]["alt"] == "A line rises from zero to three."
    assert screen.shown[0] == screen.shown[1]
    assert set(screen.shown[0]) == {"image/png", "text/plain"}


def test_with_a_reader_in_front_the_page_gets_an_alt_text_too(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widgets, "has_frontend", lambda: True)
    show(line(), alt='A line & a "title" in quotes.')
    assert '<img alt="A line &amp; a &quot;title&quot; in quotes."' in screen.shown[0]["text/html"]


def test_a_picture_without_words_is_refused(screen: Screen) -> None:
    for alt in ("", "plot", None):
        with pytest.raises(CourseError, match="Say in `alt`"):
            show(line(), alt=alt)  # type: ignore[arg-type]
    with pytest.raises(CourseError, match="pass the figure itself"):
        show(line().axes, alt="A line rises from zero to three.")  # type: ignore[arg-type]
    with pytest.raises(CourseError, match="inches between 0 and 20"):
        new_figure(width=800)


def test_pyplot_does_not_know_a_new_figure() -> None:
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    figure = line()
    legend_beside(figure.axes[0])
    legend_below(figure.axes[0])
    widgets.png_bytes(figure)
    assert pyplot.get_fignums() == before
    assert set(CYCLE) <= set(PALETTE.values())


def test_controls_start_where_the_function_does_or_in_the_middle() -> None:
    start = widgets.starting_value
    assert start(line, "n", (1, 9)) == 3 and start(line, "n", (4, 8)) == 6
    assert start(line, "kind", ["a", "b"]) == "b" and start(line, "kind", ["x", "y"]) == "x"
    assert start(line, "grow", (0.0, 1.0)) == 0.5 and start(line, "grow", (1.0, 2.0)) == 1.5
    assert start(line, "kind", {"Bee": "b", "Cee": "c"}) == "b"
    assert start(line, "on", False) is False
    for bad in ((1,), (2, 1), [], {}, None, (True, False), 3):
        with pytest.raises(CourseError, match="is no control"):
            start(line, "n", bad)


def test_without_a_page_controls_are_a_sentence_and_the_function_is_tried(capsys: pytest.CaptureFixture[str]) -> None:
    explore(line, n=(1, 9), kind=["a", "b"], on=True)
    assert capsys.readouterr().out == (
        "Here JupyterLab shows controls that redraw the picture: n (1 to 9), kind (a, b), on (on or off).\n"
    )
    with pytest.raises(TypeError):
        explore(line, colour=["red"])


def test_controls_redraw_with_what_the_reader_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    import ipywidgets

    calls = []

    def draw(**values: Any) -> Any:
        calls.append(values)
        return line()

    shown = []
    monkeypatch.setattr(widgets, "has_frontend", lambda: True)
    monkeypatch.setattr(widgets, "display", lambda item, **options: shown.append(item))
    explore(draw, n=(2, 64), size=[16, 32], kind=["a", "b"], share=(0.0, 1.0), on=True, name="x", menu={"one": 1})
    panel = shown[-1].children[0]
    kinds = [type(child) for child in panel.children]
    assert kinds == [
        ipywidgets.IntSlider,
        ipywidgets.SelectionSlider,
        ipywidgets.Dropdown,
        ipywidgets.FloatSlider,
        ipywidgets.Checkbox,
        ipywidgets.Text,
        ipywidgets.Dropdown,
    ]
    panel.children[0].value = 7
    assert [call["n"] for call in calls] == [33, 7]
    assert calls[-1] == {"n": 7, "size": 16, "kind": "a", "share": 0.5, "on": True, "name": "x", "menu": 1}


def test_no_number_is_within_a_tolerance_of_infinity() -> None:
    assert not matches(3.0, float("inf"), 1e-6, absolute=False)
    assert not matches(float("inf"), 3.0, 1e-6, absolute=False)


def test_an_address_in_a_source_is_a_link_without_the_comma_behind_it() -> None:
    source = "Paper (https://a.org/b_(c)?x=1&y=2), code: http://c.org/d; e.g. https://f.org."
    assert re.findall('href="(.*?)"', linked(source)) == [
        "https://a.org/b_(c)?x=1&amp;y=2",
        "http://c.org/d",
        "https://f.org",
    ]
    assert html.unescape(re.sub("<.*?>", "", linked(source))) == source
