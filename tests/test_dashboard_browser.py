"""The dashboard in a real browser: it shows live numbers, and asks nobody but this server for anything."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from server_tools import RunningServer, make_tiny_chat_model, running

from pagedlab.interfaces.openai_server.dashboard import PAGE, POLICY, DashboardData

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NUM_BLOCKS = 2000
VIRTUAL_MS = 4000
"""Of the page's own clock: it asks for data once a second."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    model = make_tiny_chat_model(tmp_path_factory.mktemp("model"))
    with running(model, num_blocks=NUM_BLOCKS, served_model_name=["tiny"]) as server:
        yield server


@pytest.fixture
def long_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens a second are those of the last half minute: on a busy machine none may have come in the last 5 s."""
    monkeypatch.setattr("pagedlab.interfaces.openai_server.metrics.RATE_SECONDS", 30)


class Load:
    """Two streams at all times, for as long as the block lasts: each ends and begins anew.

    Between an end and the next beginning there is only one, or none: streams of many tokens make that a rare sight.
    """

    def __init__(self, server: RunningServer, max_tokens: int) -> None:
        self._server = server
        self._max_tokens = max_tokens
        self._stop = threading.Event()
        self._begun = threading.Semaphore(0)
        self._threads = [threading.Thread(target=self._run, args=(index,), daemon=True) for index in range(2)]
        self.num_answers = 0
        self.errors: list[str] = []

    def _run(self, index: int) -> None:
        body = {"prompt": f"the quick brown fox {index}", "max_tokens": self._max_tokens, "ignore_eos": True}
        try:
            while not self._stop.is_set():
                url, asked = "/v1/completions", {**body, "stream": True}
                with self._server.client() as client, client.stream("POST", url, json=asked) as response:
                    for line in response.iter_lines():
                        if line.startswith("data: {"):
                            self._begun.release()
                        if self._stop.is_set():
                            return
                self.num_answers += 1
        except Exception as error:
            self.errors.append(f"{type(error).__name__}: {error}")

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        assert self._begun.acquire(timeout=60)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()


def browse(url: str, folder: Path) -> tuple[str, list[str]]:
    """The page's DOM after a few seconds of its own time, and every URL that the page asked for."""
    assert BROWSER is not None
    log = folder / "net.json"
    command = [
        BROWSER,
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
        f"--user-data-dir={folder / 'profile'}",
        f"--log-net-log={log}",
        f"--virtual-time-budget={VIRTUAL_MS}",
        "--dump-dom",
        url,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, requested_urls(log.read_text(), url)


def requested_urls(log: str, page: str) -> list[str]:
    """From Chromium's log of its network: what the page's own origin started (the browser's own errands are not)."""
    parts = urlsplit(page)
    origin = f"{parts.scheme}://{parts.netloc}"
    events = json.loads(log)["events"]
    parameters = [event["params"] for event in events if isinstance(event.get("params"), dict)]
    return [one["url"] for one in parameters if "url" in one and one.get("initiator") == origin]


def number(dom: str, name: str) -> float:
    """The number that an element shows."""
    found = re.search(rf'id="{name}">([^<]*)<', dom)
    assert found, f"the page has no {name}"
    return float(found[1].removesuffix(" %"))


@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome here")
@pytest.mark.slow
@pytest.mark.usefixtures("long_memory")
def test_a_browser_shows_the_engine_live(server: RunningServer, tmp_path: Path) -> None:
    url = f"{server.url}/dashboard"
    with Load(server, max_tokens=12_000) as load:
        (tmp_path / "first").mkdir()
        dom, urls = browse(url, tmp_path / "first")
        (tmp_path / "second").mkdir()
        later, _ = browse(url, tmp_path / "second")
    assert not load.errors
    server.wait_idle()

    state = re.search(r'id="state"[^>]*>live: (\d+) steps, (\d+) tokens generated<', dom)
    later_state = re.search(r'id="state"[^>]*>live: (\d+) steps, (\d+) tokens generated<', later)
    assert state and later_state, dom[:3000]
    assert int(later_state[1]) > int(state[1]) > 0 and int(later_state[2]) > int(state[2]) > 0
    assert int(later_state[2]) <= server.engine.stats().num_generated_tokens
    assert 'id="model">tiny<' in dom
    assert number(dom, "running") + number(dom, "waiting") in (1, 2)
    assert number(dom, "tokens_per_second") > 0
    assert number(dom, "kv_cache_usage") >= 0 and number(dom, "preemptions") == 0
    blocks = re.search(r'id="blocks"[^>]*>(.*?)</div>', dom, re.S)
    assert blocks and blocks[1].count("<i ") == NUM_BLOCKS - 1  # the null block is not shown
    assert 'class="o"' in blocks[1] or 'class="s"' in blocks[1]

    hosts = {urlsplit(one).netloc for one in urls}
    assert hosts == {urlsplit(server.url).netloc}
    asked = [urlsplit(one).path for one in urls]
    assert set(asked) == {"/dashboard/data"} and len(asked) >= 2, "the page asks again and again"


@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome here")
def test_a_browser_says_when_there_is_no_data(server: RunningServer, tmp_path: Path) -> None:
    """The engine's thread is gone, as after a crash: the page must not go on showing old numbers as live."""
    serving = server.serving
    serving.engine.error = RuntimeError("gone")
    try:
        dom, _ = browse(f"{server.url}/dashboard", tmp_path)
    finally:
        serving.engine.error = None
    state = re.search(r'id="state"[^>]*class="bad"[^>]*>(no data: [^<]*)<', dom)
    assert state and "died" in state[1]


# ---- without a browser ----------------------------------------------------------------------------------------------


class Links(HTMLParser):
    """Everything in a page that would load something, and the ids that it has."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "srcset", "action", "data", "poster", "background"):
                self.loads.append(value or "")
            if name == "id" and value:
                self.ids.add(value)


def test_the_page_names_no_other_host() -> None:
    links = Links(PAGE)
    assert all(link.startswith("data:") for link in links.loads), links.loads
    assert not re.search(r"https?:|//[a-z]|@import|url\(|WebSocket|EventSource|sendBeacon|importScripts|import\(", PAGE)
    assert re.findall(r"fetch\(([^)]*)\)", PAGE) == ['"/dashboard/data"']
    assert "default-src 'none'" in POLICY and "connect-src 'self'" in POLICY and "http" not in POLICY


def test_the_script_uses_ids_that_the_page_has_and_numbers_that_the_server_sends() -> None:
    script = PAGE.split("<script>")[1].split("</script>")[0]
    ids = set(re.findall(r'byId\("(\w+)"\)', script))
    looped = {
        name for names in re.findall(r"of \[((?:\"\w+\"(?:, )?)+)\]", script) for name in re.findall(r"\w+", names)
    }
    assert ids and looped and ids | looped <= Links(PAGE).ids
    used = set(re.findall(r"data\.(\w+)", script)) - {"error"} | looped
    assert used <= set(DashboardData.model_fields)


@pytest.mark.usefixtures("long_memory")
def test_the_numbers_behind_the_page_move(server: RunningServer) -> None:
    with Load(server, max_tokens=400) as load, httpx.Client(base_url=server.url, timeout=60) as client:
        first = later = client.get("/dashboard/data").json()
        deadline = time.monotonic() + 60
        while load.num_answers == 0 or later["generated_tokens"] == first["generated_tokens"]:
            assert not load.errors and time.monotonic() < deadline
            later = client.get("/dashboard/data").json()
    server.wait_idle()
    assert later["steps"] > first["steps"] and later["generated_tokens"] > first["generated_tokens"]
    assert later["running"] + later["waiting"] in (0, 1, 2) and later["tokens_per_second"] > 0
    assert len(later["blocks"]) == NUM_BLOCKS - 1 and set(later["blocks"]) <= set("fcos")
    after = httpx.get(f"{server.url}/dashboard/data", timeout=60).json()
    assert after["running"] == 0 and not set(after["blocks"]) & set("os")
    assert after["ttft"]["p50"] > 0 and after["tpot"]["p50"] > 0
