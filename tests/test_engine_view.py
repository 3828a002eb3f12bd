"""A recording of the engine says what the engine did, and its pictures and its page say what the recording says."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from matplotlib.text import Text
from memory_worker import MemoryWorker, expected_output, memory_engine

from pagedlab.basics.published_configs import PUBLISHED
from pagedlab.errors import CourseError, PagedlabError
from pagedlab.interfaces.engine import LLMEngine
from pagedlab.model_authoring.recorder import StepRecorder
from pagedlab.model_authoring.recording import EngineRecording
from pagedlab.model_authoring.request import Request
from pagedlab.model_authoring.scheduler import Scheduler
from pagedlab.sampling_params import SamplingParams
from pagedlab.simulate.batching import simulate_continuous
from pagedlab.simulate.cost_model import CostModel
from pagedlab.simulate.devices import device
from pagedlab.simulate.roofline import ModelShape
from pagedlab.simulate.workloads import TraceRequest
from pagedlab.visualize import engine_view_html
from pagedlab.visualize.block_map import view_blocks
from pagedlab.visualize.engine_frames import make_frames, shown_blocks
from pagedlab.visualize.engine_view import engine_overview, engine_step, explore_engine
from pagedlab.visualize.engine_view_html import (
    as_script_data,
    engine_page,
    page_data,
    save_engine_page,
    show_engine_page,
)

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "</script><script>document.title='owned'</script><!--<script>$x^2$\u2028\u202e&quot;"


def params(max_tokens: int, **options: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": max_tokens, "ignore_eos": True, "seed": 7} | options)


def words(token_ids: Any) -> str:
    return "".join(f"{token} " for token in token_ids)


def story(third: str = "C") -> EngineRecording:
    """A and its fork share blocks, C hits them, B and C lose theirs and come back: 17 steps of a budget of 10."""
    engine = memory_engine(num_blocks=12, block_size=4, max_num_batched_tokens=10)
    recorder = StepRecorder(words)
    with recorder.attached_to(engine.scheduler):
        engine.add_request("A", list(range(1, 10)), params(6, n=2))
        engine.add_request("B", list(range(10, 30)), params(12))
        for _ in range(3):
            engine.step()
        engine.add_request(third, [*range(1, 9), 20], params(6))
        while engine.has_unfinished_requests():
            engine.step()
    return recorder.recording()


# ---- the recording against the engine -------------------------------------------------------------------------------


@dataclass
class Moment:
    """What a step looked like from the worker's side, and from the block manager's, before it was computed."""

    tables: list[list[int]]
    spans: list[tuple[int, int]]
    copies: list[tuple[int, int]]
    swap_in: list[tuple[int, int]]
    blocks: list[tuple[int, set[str], bool, bool]]
    waiting: list[str]


@dataclass
class Spy:
    """Notes a Moment for each batch that the engine sends to its worker."""

    engine: LLMEngine
    ahead: bool
    moments: list[Moment] = field(default_factory=list)

    def __post_init__(self) -> None:
        worker = self.engine.executor.worker
        assert isinstance(worker, MemoryWorker)
        name = "launch" if self.ahead else "execute"
        inner = getattr(worker, name)

        def watched(batch: Any, ops: Any) -> Any:
            starts = batch.query_starts.tolist()
            lengths = [after - before for before, after in pairwise(starts)]
            ends = batch.seq_lens.tolist()
            manager = self.engine.block_manager
            self.moments.append(
                Moment(
                    tables=[
                        row[: manager.blocks_for(end)]
                        for row, end in zip(batch.block_tables.tolist(), ends, strict=True)
                    ],
                    spans=[(end - length, end) for end, length in zip(ends, lengths, strict=True)],
                    copies=list(ops.copies),
                    swap_in=list(ops.swap_in),
                    blocks=[(b.block_id, set(b.owners), b.is_cached, b.is_null) for b in view_blocks(manager)],
                    waiting=[request.request_id for request in self.engine.scheduler.waiting],
                )
            )
            return inner(batch, ops)

        setattr(worker, name, watched)


@st.composite
def workloads(draw: st.DrawFn) -> list[dict[str, Any]]:
    stem = draw(st.lists(st.integers(1, 5), min_size=1, max_size=12))
    return [
        {
            "id": f"q{index}",
            "prompt": stem[: draw(st.integers(1, len(stem)))] + draw(st.lists(st.integers(1, 9), max_size=9)),
            "n": draw(st.sampled_from([1, 1, 2, 3])),
            "max_tokens": draw(st.integers(1, 9)),
            "arrives": draw(st.integers(0, 5)),
            "abort_at": draw(st.sampled_from([None, None, None, 3, 7])),
        }
        for index in range(draw(st.integers(1, 5)))
    ]


def run_spied(engine: LLMEngine, spy: Spy, workload: list[dict[str, Any]]) -> tuple[dict[str, list[Any]], set[str]]:
    """Finished completions by request, and who was aborted."""
    done: dict[str, list[Any]] = {}
    aborted: set[str] = set()
    for tick in range(2000):
        for one in workload:
            if one["arrives"] == tick:
                engine.add_request(one["id"], one["prompt"], params(one["max_tokens"], n=one["n"]))
            if one["abort_at"] == tick:
                aborted.update(output.request_id for output in engine.abort_request(one["id"]))
        for output in engine.step():
            if output.finished:
                done[output.request_id] = output.outputs  # type: ignore[union-attr]
        if tick > 7 and not engine.has_unfinished_requests():
            return done, aborted
    raise AssertionError("the engine did not come to an end")


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    workload=workloads(),
    block_size=st.sampled_from([1, 2, 4]),
    spare=st.integers(0, 8),
    budget=st.sampled_from([4, 7, 40]),
    preemption=st.sampled_from(["recompute", "swap"]),
    caching=st.booleans(),
    ahead=st.booleans(),
)
def test_the_record_equals_the_engine_at_every_step(
    workload: list[dict[str, Any]],
    block_size: int,
    spare: int,
    budget: int,
    preemption: str,
    caching: bool,
    ahead: bool,
) -> None:
    """Chunks, prefix hits, forks with copy-on-write, preemption of both kinds, aborts, steps decided ahead."""
    longest = max(-(-(len(one["prompt"]) + one["max_tokens"]) // block_size) for one in workload)
    engine = memory_engine(
        num_blocks=longest + spare + 1,
        block_size=block_size,
        num_host_blocks=30,
        max_num_seqs=4,
        max_num_batched_tokens=budget,
        enable_prefix_caching=caching,
        preemption_mode=preemption,
        async_scheduling=ahead,
    )
    spy, recorder = Spy(engine, ahead), StepRecorder(words)
    with recorder.attached_to(engine.scheduler):
        done, aborted = run_spied(engine, spy, workload)
    assert not {"schedule", "update", "recover"} & set(vars(engine.scheduler))
    if not spy.moments:  # whoever came was aborted before a step
        with pytest.raises(PagedlabError, match="Nothing was recorded"):
            recorder.recording()
        return
    recording = recorder.recording()

    assert len(recording) == len(spy.moments)
    for frame, moment in zip(make_frames(recording), spy.moments, strict=False):
        record = frame.record
        states = {state.request_id: state for state in record.requests}
        assert [(one.start, one.end) for one in record.computed] == moment.spans
        for one, table in zip(record.computed, moment.tables, strict=True):
            assert list(states[one.request_id].block_ids)[: len(table)] == table
            assert states[one.request_id].num_computed == one.start
        assert [(copy.source, copy.target) for copy in record.copies] == moment.copies
        assert [s.request_id for s in record.requests if s.status != "running"] == moment.waiting
        assert [(b.block_id, set(b.owners), b.is_cached, b.is_null) for b in frame.blocks] == moment.blocks
        check_slots(frame, block_size)
        back = sum(-(-one.num_swapped_tokens // block_size) for one in record.admitted)
        assert back == len(moment.swap_in)
        for copy in record.copies:
            assert copy.target in states[copy.request_id].block_ids

    hits = sum(one.num_hit_tokens for record in recording.steps for one in record.admitted)
    assert hits == engine.block_manager.prefix_cache_hits
    assert sum(len(record.preempted) for record in recording.steps) == engine.stats().num_preemptions
    assert sum(record.num_tokens for record in recording.steps) == engine.stats().num_computed_tokens
    check_outcome(recording, done, aborted, workload)
    assert EngineRecording.from_json(recording.to_json()) == recording


def check_slots(frame: Any, block_size: int) -> None:
    """Which slots hold a computed token, counted one by one."""
    filled: dict[int, set[int]] = {}
    written: Counter[int] = Counter()
    spans = {one.request_id: one for one in frame.record.computed}
    for state in frame.record.requests:
        span = spans.get(state.request_id)
        for position in range(span.end if span else state.num_computed if state.block_ids else 0):
            block_id = state.block_ids[position // block_size]
            filled.setdefault(block_id, set()).add(position % block_size)
            written[block_id] += bool(span and position >= span.start)
    assert set(frame.written) == {block_id for block_id, count in written.items() if count}
    for block in frame.blocks:
        if block.owners:
            assert block.num_filled == len(filled.get(block.block_id, ()))
        first, last = frame.written.get(block.block_id, (0, 0))
        assert last - first == written[block.block_id]


def check_outcome(
    recording: EngineRecording, done: dict[str, list[Any]], aborted: set[str], workload: list[dict[str, Any]]
) -> None:
    tokens: dict[str, list[int]] = {}
    for record in recording.steps:
        for one in record.sampled:
            tokens.setdefault(one.request_id, []).append(one.token_id)
    reasons = {one.request_id: one.reason for record in recording.steps for one in record.ended}
    assert len(reasons) == sum(len(record.ended) for record in recording.steps), "nobody ends twice"
    for record in recording.steps:
        got_one = {one.request_id for one in record.sampled}
        assert {one.request_id for one in record.ended if one.reason == "length"} <= got_one
    for request in workload:
        for index, completion in enumerate(done.get(request["id"], [])):
            name = request["id"] + (f"/{index}" if index else "")
            assert tokens[name] == completion.token_ids
            assert completion.token_ids == expected_output(request["prompt"], 7 + index, request["max_tokens"])
            assert reasons[name] == completion.finish_reason
    infos = {info.request_id for info in recording.requests}
    assert {name for name in infos if name not in reasons} <= {name for name in infos if name.split("/")[0] in aborted}
    requests = {request["id"]: request for request in workload}
    for name in reasons:
        request = requests[name.split("/")[0]]
        if request["id"] in aborted and reasons[name] != "abort":  # it had ended, and waited for its siblings
            assert reasons[name] == "length" and request["n"] > 1 and len(tokens[name]) == request["max_tokens"]
    assert recording.after.requests == ()


def test_the_story_has_a_copy_a_hit_and_two_preemptions() -> None:
    recording = story()
    events = [(frame.record.number + 1, e.kind, e.request_id) for frame in make_frames(recording) for e in frame.events]
    assert [event for event in events if event[1] in ("copy", "hit", "preempt")] == [
        (2, "copy", "A"),
        (4, "hit", "C"),
        (5, "preempt", "C"),
        (5, "preempt", "B"),
        (7, "hit", "B"),
        (7, "hit", "C"),
    ]
    shared = [block for block in make_frames(recording)[2].blocks if len(block.owners) == 2]
    assert [(block.block_id, block.owners) for block in shared] == [(1, ("A", "A/1")), (2, ("A", "A/1"))]
    assert recording.steps_of("B") == {0: 1, 1: 8, 2: 8, 3: 3} | dict.fromkeys(range(6, 17), 1)


def test_an_id_that_comes_again_gets_a_name_of_its_own() -> None:
    engine, recorder = memory_engine(), StepRecorder()
    with recorder.attached_to(engine.scheduler):
        for _ in range(2):
            engine.add_request("A", [1, 2, 3], params(2))
            while engine.has_unfinished_requests():
                engine.step()
    assert [info.request_id for info in recorder.recording().requests] == ["A", "A (2)"]


def test_a_step_that_fails_is_the_step_in_which_its_requests_end() -> None:
    engine, recorder = memory_engine(), StepRecorder()
    with recorder.attached_to(engine.scheduler):
        engine.add_request("A", [1, 2, 3], params(5))
        engine.step()
        engine.executor.worker.fail_next = True  # type: ignore[attr-defined]
        with pytest.raises(RuntimeError):
            engine.step()
        engine.step()
    ended = [[(one.request_id, one.reason) for one in record.ended] for record in recorder.recording().steps]
    assert ended == [[], [("A", "error")]]


def test_one_recorder_one_scheduler() -> None:
    first, second, recorder = memory_engine(), memory_engine(), StepRecorder()
    with pytest.raises(PagedlabError, match="Nothing was recorded"):
        recorder.recording()
    with recorder.attached_to(first.scheduler):
        with pytest.raises(PagedlabError, match="one scheduler"):
            recorder.attach(second.scheduler)
        with pytest.raises(PagedlabError, match="one scheduler"):
            StepRecorder().attach(first.scheduler)


# ---- simulation, own schedulers -------------------------------------------------------------------------------------


class Newest(Scheduler):
    def sort_key(self, request: Request) -> Any:
        return -request.arrival


@pytest.mark.parametrize("scheduler_cls", [Scheduler, Newest])
def test_a_simulation_is_recorded_and_goes_as_it_would(scheduler_cls: type[Scheduler]) -> None:
    cost = CostModel.from_device(ModelShape.from_config(PUBLISHED["Llama-2-7B"]), device("A100 80GB"))
    requests = [TraceRequest(0.001 * i, 5 + 7 * i % 30, 1 + 5 * i % 17) for i in range(12)]
    options: dict[str, Any] = {"max_num_seqs": 3, "max_num_batched_tokens": 16, "num_blocks": 9, "block_size": 8}
    recorder = StepRecorder()
    plain = simulate_continuous(requests, cost, scheduler_cls=scheduler_cls, jump=False, **options)
    run = simulate_continuous(requests, cost, scheduler_cls=recorder.watching(scheduler_cls), **options)
    recording = recorder.recording().timed(run.steps.starts, run.steps.seconds)
    assert run.steps == plain.steps and run.finished.tolist() == plain.finished.tolist()
    assert run.num_preemptions > 0
    assert [step.num_tokens for step in recording.steps] == run.steps.rows
    assert [len(step.used_block_ids) for step in recording.steps] == run.steps.used_blocks
    assert [step.start for step in recording.steps] == run.steps.starts
    assert recording.policy == ("fcfs" if scheduler_cls is Scheduler else "Newest")
    with pytest.raises(PagedlabError, match="starts and durations"):
        recording.timed([0.0], [1.0])


# ---- JSON -----------------------------------------------------------------------------------------------------------


def test_a_recording_survives_a_file(tmp_path: Path) -> None:
    recording = story(HOSTILE)
    path = recording.save(tmp_path / "run.json")
    assert EngineRecording.load(path) == recording
    json.loads(path.read_text())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "other"}', "null"])
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(PagedlabError, match="no pagedlab engine recording 1"):
        EngineRecording.from_json(text)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_recording_with_a_wrong_part_is_refused(data: st.DataObject) -> None:
    parts = json.loads(SAVED)
    place: Any = parts
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], (dict, list)) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(st.sampled_from([None, {"x": 1}, True]))
    with pytest.raises(PagedlabError, match="no pagedlab engine recording"):
        EngineRecording.from_json(json.dumps(parts))


SAVED = story().to_json()


# ---- figures --------------------------------------------------------------------------------------------------------


def drawn_texts(figure: Figure) -> list[Text]:
    """Every text of a figure, after a layout; asserts that none is cut off."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    beyond = {
        label
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
        for label in (tick.label1, tick.label2)
    }
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip() and t not in beyond]
    box = figure.bbox
    for text in texts:
        assert isinstance(text, Text)
        extent = text.get_window_extent()
        if extent.width == 0:
            continue
        assert extent.x0 >= -1 and extent.y0 >= -1, f"{text.get_text()!r} is cut off"
        assert extent.x1 <= box.x1 + 1 and extent.y1 <= box.y1 + 1, f"{text.get_text()!r} is cut off"
    return texts  # type: ignore[return-value]


@pytest.mark.parametrize("step", [1, 2, 5, 7, 18])
def test_a_step_shows_blocks_progress_and_events(step: int) -> None:
    recording = story("a name that is rather long, longer than fits")
    frame = make_frames(recording)[step - 1]
    figure = engine_step(recording, step)
    shown = [text.get_text() for text in drawn_texts(figure)]
    grid, bars, _ = figure.axes
    assert [t for t in shown if t.startswith("+")] == [f"+{r.end - r.start}" for r in frame.rows if r.end > r.start]
    assert len([patch for patch in grid.patches if patch.get_gid() == "written"]) == len(frame.written)
    assert sum(isinstance(patch, FancyArrowPatch) for patch in grid.patches) == len(frame.record.copies)
    for event in frame.events:
        assert any(event.text in text for text in shown)
    assert any(f"{frame.num_free} of 11 blocks free" in text for text in shown)
    # The names of the sequences stand between the two pictures and touch neither.
    left = grid.get_window_extent().x1
    assert all(label.get_window_extent().x0 >= left - 1 for label in bars.get_yticklabels())


def test_the_overview_writes_every_number_and_marks_every_event() -> None:
    recording = story()
    figure = engine_overview(recording)
    drawn_texts(figure)
    cells, budget, _ = figure.axes
    numbers = {(round(t.get_position()[0]), round(t.get_position()[1])): t.get_text() for t in cells.texts}
    names = [info.request_id for info in recording.requests]
    wanted = {
        (step + 1, names.index(name)): str(count) for name in names for step, count in recording.steps_of(name).items()
    }
    assert numbers == wanted
    marks = sum(len(points.get_offsets()) for points in cells.collections[1:])
    assert marks == sum(e.kind != "admit" for frame in make_frames(recording) for e in frame.events)
    tops = Counter({round(bar.get_x() + bar.get_width() / 2): 0.0 for bar in budget.patches})
    for bar in budget.patches:
        tops[round(bar.get_x() + bar.get_width() / 2)] += bar.get_height()
    assert [tops[number] for number in range(1, 18)] == [step.num_tokens for step in recording.steps]


def test_names_are_no_formulas() -> None:
    recording = story("$\\frac$\n$")
    drawn_texts(engine_step(recording, 5))
    drawn_texts(engine_overview(recording))


def test_what_cannot_be_seen_is_refused() -> None:
    recording = story()
    for step in (0, 19):
        with pytest.raises(CourseError, match="steps 1 to 17"):
            engine_step(recording, step)
    engine, recorder = memory_engine(num_blocks=300, max_num_seqs=40, max_num_batched_tokens=400), StepRecorder()
    with recorder.attached_to(engine.scheduler):
        for index in range(33):
            engine.add_request(str(index), [1 + index, 2, 3, 4, 5, 6, 7, 8], params(1))
        engine.step()
    crowd = recorder.recording()
    with pytest.raises(CourseError, match="33 sequences"):
        engine_overview(crowd)
    with pytest.raises(CourseError, match="smaller pool"):
        shown_blocks(make_frames(crowd), 60)
    assert len(shown_blocks(make_frames(crowd), 100)) == 66


def test_without_a_front_end_the_slider_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    explore_engine(story())
    assert "step (1 to 18)" in capsys.readouterr().out


# ---- the page -------------------------------------------------------------------------------------------------------


class Elements(HTMLParser):
    """Scripts with their text, and everything that would load something."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.loads: list[str] = []
        self.tags: Counter[str] = Counter()
        self.open = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        self.open = tag == "script"
        if self.open:
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self.open = False

    def handle_data(self, data: str) -> None:
        if self.open:
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)


@given(st.text(max_size=40) | st.sampled_from([HOSTILE, "@@DATA@@", "]]>", "\ud800", "</SCRIPT >"]))
@settings(max_examples=80, deadline=None)
def test_no_text_leaves_its_element(text: str) -> None:
    written = as_script_data({text: [text]})
    assert not re.search("[<>&\u2028\u2029]", written) and written.isascii()
    assert json.loads(written) == {text: [text]}


def test_the_page_is_one_file_whose_data_stay_data() -> None:
    recording = story(HOSTILE)
    page = engine_page(recording, title=HOSTILE + "@@DATA@@")
    elements, usual = Elements(page), Elements(engine_page(story()))
    assert elements.tags == usual.tags
    (kind, data), (_, script) = elements.scripts
    assert kind == {"type": "application/json", "id": "data"}
    assert json.loads(data) == json.loads(json.dumps(page_data(recording)))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page and "default-src 'none'" in page
    assert all(link.startswith("data:") for link in elements.loads)
    assert not re.search(
        r"https?:|@import|url\(|fetch\(|XMLHttp|WebSocket|import\(|innerHTML|outerHTML|document\.write", page
    )
    ids = set(re.findall(r'byId\("([\w-]+)"\)', script)) | {"data"}
    assert ids <= set(re.findall(r'id="([\w-]+)"', page))


def test_a_notebook_shows_the_page_in_a_frame_that_cannot_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, str]] = []
    monkeypatch.setattr(engine_view_html, "has_frontend", lambda: True)
    monkeypatch.setattr(engine_view_html, "display", lambda data, raw: shown.append(data))
    recording = story(HOSTILE)
    show_engine_page(recording, title=HOSTILE)
    frame = Elements("")
    attributes: dict[str, str | None] = {}
    frame.handle_starttag = lambda tag, attrs: attributes.update(attrs)  # type: ignore[method-assign]
    frame.feed(shown[0]["text/html"])
    assert attributes["srcdoc"] == engine_page(recording, title=HOSTILE)
    assert attributes["sandbox"] == "allow-scripts" and attributes["title"] == HOSTILE


def test_a_page_has_a_bound() -> None:
    recording = story()
    long = EngineRecording(
        **{name: getattr(recording, name) for name in recording.__slots__} | {"steps": recording.steps * 40}
    )
    with pytest.raises(CourseError, match="600 steps"):
        engine_page(long)


def browse(path: Path, folder: Path, after: str = "") -> str:
    """The page's DOM once its script has run."""
    assert BROWSER is not None
    command = [
        BROWSER,
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
        f"--user-data-dir={folder / 'profile'}",
        "--virtual-time-budget=3000",
        "--dump-dom",
        path.as_uri() + after,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome here")
def test_a_browser_shows_the_step_of_the_address_and_runs_no_foreign_script(tmp_path: Path) -> None:
    recording = story(HOSTILE)
    path = save_engine_page(recording, tmp_path / "view.html", title="a run")
    dom = browse(path, tmp_path, "#step=5")
    frame = make_frames(recording)[4]
    assert "<title>a run</title>" in dom
    headline = re.search(r'id="headline"[^>]*>([^<]*)<', dom)
    assert headline and headline[1].startswith("Step 5 of 17: 2 of 10 tokens in 2 sequences, 5 of 11 blocks free, ")
    labels = re.findall(r'<li class="block[^"]*" title="([^"]*)"', dom)
    assert len(labels) == 12 and labels[1] == "block 1; held by A, A/1; 4 of 4 slots computed; content can be hit"
    for block, label in zip(frame.blocks, labels, strict=True):
        owners = re.search("held by ([^;]*);", label)
        assert (owners[1].split(", ") if owners else []) == list(block.owners)
    assert dom.split("<script")[0].count("is preempted") == 4  # now, and in the list of all events
    assert len(re.findall("<b [^>]*data-step=", dom)) == 4 * 17


@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome here")
@pytest.mark.parametrize(
    ("action", "headline"),
    [
        ('key("ArrowRight"); key("ArrowRight"); key("ArrowLeft");', "Step 2 of 17"),
        ('key("End"); key("ArrowRight");', "After the last step: 11 of 11 blocks free"),
        ('key("End"); key("Home"); key("ArrowLeft");', "Step 1 of 17"),
        ('key(" ");', "Step 3 of 17"),
        ('key(" "); key(" ");', "Step 1 of 17"),
        ('document.getElementById("last").click(); document.getElementById("back").click();', "Step 17 of 17"),
        ('document.querySelector("#log li:last-child button").click();', "Step 17 of 17"),
        ("document.querySelector('.strip b[data-step=\"9\"]').click();", "Step 9 of 17"),
    ],
)
def test_a_browser_follows_keys_and_buttons(action: str, headline: str, tmp_path: Path) -> None:
    page = engine_page(story())
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)  # the test's own script must run
    key = 'const key = (name) => document.body.dispatchEvent(new KeyboardEvent("keydown", {key: name, bubbles: true}));'
    wait = (
        "setTimeout(() => { document.title = document.getElementById('headline').textContent; window.stop(); }, 2500);"
    )
    (tmp_path / "view.html").write_text(page.replace("</body>", f"<script>{{{key}{action}{wait}}}</script></body>"))
    dom = browse(tmp_path / "view.html", tmp_path)
    title = re.search("<title>([^<]*)</title>", dom)
    assert title and title[1].startswith(headline), title
