"""A server that a program starts: it answers, it says what it does, and it never outlives its owner."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from server_tools import make_tiny_chat_model

from pagedlab.errors import ConfigError
from pagedlab.interfaces.local_server import LocalServer, LocalServerError, command_line


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_chat_model(tmp_path_factory.mktemp("model"))


def post(url: str, key: str | None = None) -> dict:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    body = json.dumps({"prompt": [5] * 40, "max_tokens": 3, "ignore_eos": True}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/completions", body, headers), timeout=60) as answer:
        return json.load(answer)


def wait_for(condition, seconds: float = 120) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_it_serves_with_a_key_that_is_on_no_command_line_and_logs_the_three_layers(model: Path) -> None:
    with LocalServer(model=model, num_blocks=64, log_level="debug", api_key="open-sesame") as server:
        process = psutil.Process(server._process.pid)  # type: ignore[union-attr]
        assert "open-sesame" not in " ".join(process.cmdline())
        with pytest.raises(urllib.error.HTTPError, match="401"):
            post(server.url)
        request_id = post(server.url, "open-sesame")["id"]
        assert server.address[0] == "127.0.0.1" and server.log_file is not None
        file = server.log_file
    assert not server.is_running and not process.is_running() and not file.exists()
    lines = server.log()
    start = [(line["layer"], line["message"]) for line in lines[:5]]
    assert start[:4] == [
        ("interfaces", "starting"),
        ("model_authoring", "config read"),
        ("runtime", "weights loaded"),
        ("runtime", "KV cache allocated"),
    ]
    assert start[4][0] == "interfaces" and start[4][1].startswith("serving ")
    mine = sorted((line for line in lines if line["request_id"] == request_id), key=lambda line: line["time"])
    assert [line["message"] for line in mine if "event" in line][:3] == ["admit", "parse", "add_request"]


def test_stop_lets_a_running_stream_finish(model: Path) -> None:
    with LocalServer(model=model, num_blocks=256) as server:
        body = json.dumps({"prompt": [5] * 40, "max_tokens": 300, "ignore_eos": True, "stream": True}).encode()
        request = urllib.request.Request(f"{server.url}/v1/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer, ThreadPoolExecutor(1) as pool:
            answer.readline()
            status = pool.submit(server.stop, 300)  # killed after that, and a slow machine needs more than 20 s
            text = answer.read()
        assert status.result() == 0
    assert text.rstrip().endswith(b"data: [DONE]") and text.count(b'"finish_reason":"length"') == 1


def test_stop_twice_and_start_again(model: Path) -> None:
    server = LocalServer(model=model, num_blocks=64)
    assert server.stop() is None
    assert server.start() is server and server.start().is_running
    assert server.stop() == 0 == server.stop()
    with server:
        assert post(server.url)["usage"]["completion_tokens"] == 3


def test_a_server_that_cannot_start_says_why(model: Path) -> None:
    with pytest.raises(LocalServerError, match="num_blocks must be"):
        LocalServer(model=model, num_blocks=1).start()


def test_an_option_that_there_is_not_is_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match="no option 'colour'"):
        LocalServer(colour="red")
    with pytest.raises(ConfigError, match="no option 'host'"):
        LocalServer(host="0.0.0.0")


def test_options_become_arguments() -> None:
    options = {"served_model_name": ["a", "b"], "model": "m", "enable_prefix_caching": False, "max_num_seqs": 4}
    arguments = command_line(options)
    assert arguments[:5] == ["m", "--host", "127.0.0.1", "--port", "0"]
    assert arguments[5:] == ["--served-model-name", "a", "b", "--no-enable-prefix-caching", "--max-num-seqs", "4"]
    assert command_line({"seed": None, "enable_trace": True})[4:] == ["--enable-trace"]


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_it_ends_when_its_owner_is_killed(model: Path) -> None:
    code = (
        "import sys, time\nfrom pagedlab.interfaces.local_server import LocalServer\n"
        f"server = LocalServer(model={str(model)!r}, num_blocks=64).start()\n"
        "print(server._process.pid, flush=True)\ntime.sleep(600)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        served = psutil.Process(int(owner.stdout.readline()))
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    assert wait_for(lambda: not served.is_running() or served.status() == psutil.STATUS_ZOMBIE)
