"""`pagedlab serve` as a process: the README's curl, logs, signals, exit statuses, and no child left behind."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest
import transformers
from server_tools import ServerProcess, check_error, make_tiny_chat_model, wait_until

from pagedlab import EngineConfig
from pagedlab.interfaces import cli
from pagedlab.interfaces.engine_parts import load_tokenizer
from pagedlab.interfaces.openai_server.settings import ServerSettings

PATIENCE = 120
"""Seconds for an answer; httpx would give up after 5."""
README = Path(__file__).resolve().parents[1] / "README.md"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_chat_model(tmp_path_factory.mktemp("model"))


def test_the_readmes_curl_is_answered(default_model_path: Path) -> None:
    """Within 5 s of the start, on a machine with nothing else to do: measured, not asserted, for CI is busy."""
    command = re.search(r"curl localhost:8000(\S+) .*?-d '(.*?)'", README.read_text(), re.DOTALL)
    assert command, "the README shows no curl"
    with ServerProcess() as server:
        body = json.loads(command[2])
        headers = {"Content-Type": "application/json"}
        answer = httpx.post(server.url + command[1], json=body, headers=headers, timeout=PATIENCE)
        print(f"answered {time.monotonic() - server.begin:.1f} s after the start")
        assert "Paris" in answer.text and answer.json()["usage"]["completion_tokens"] > 0
        assert server.terminate() == 0


def test_a_directory_with_nothing_but_a_tokenizer_will_do(default_model_path: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(EngineConfig(), default_model_path)
    tokenizer.save_pretrained(tmp_path)
    assert not (tmp_path / "config.json").exists()
    loaded = load_tokenizer(EngineConfig(tokenizer=str(tmp_path)), Path("nowhere"))
    assert loaded.encode("Once upon a time") == tokenizer.encode("Once upon a time")


def test_the_tokenizer_that_loads_quickly_is_autotokenizers(default_model_path: Path, model: Path) -> None:
    """The quick way round AutoTokenizer, which saves two seconds of each start, changes no token."""
    for path in (default_model_path, model):
        quick = load_tokenizer(EngineConfig(), path)
        slow = transformers.AutoTokenizer.from_pretrained(str(path), local_files_only=True)
        assert quick.get_vocab() == slow.get_vocab() and quick.chat_template == slow.chat_template
        assert quick.special_tokens_map == slow.special_tokens_map and len(quick) == len(slow)
        texts = [README.read_text(), "北京 🙂\n\n  x", "<|im_start|>user\nhi<|im_end|>", " lead", "", "a\tb\r\n", "é"]
        for text in texts:
            for special in (True, False):
                ids = slow.encode(text, add_special_tokens=special)
                assert quick.encode(text, add_special_tokens=special) == ids
                assert quick.decode(ids, skip_special_tokens=special) == slow.decode(ids, skip_special_tokens=special)
        turns = [{"role": "user", "content": "hi"}]
        options = {"tokenize": False, "add_generation_prompt": True}
        assert quick.apply_chat_template(turns, **options) == slow.apply_chat_template(turns, **options)


def test_sigterm_drains_and_leaves_no_process(model: Path) -> None:
    options = ["--num-blocks", "1024", "--log-format", "json", "--drain-timeout", "300"]
    with ServerProcess(str(model), *options) as server:
        found: list[httpx.Response] = []

        def ask() -> None:
            body = {"prompt": [5] * 4, "max_tokens": 1500, "ignore_eos": True}
            found.append(httpx.post(f"{server.url}/v1/completions", json=body, timeout=PATIENCE))

        def is_running() -> bool:
            if not thread.is_alive():
                return True  # it has ended before it was ever seen: the machine was busy with the rest
            text = httpx.get(f"{server.url}/metrics", timeout=PATIENCE).text
            return re.search(r"num_requests_running\{.*\} 1", text) is not None

        thread = threading.Thread(target=ask)
        thread.start()
        wait_until(is_running, "the request runs")
        children = psutil.Process(server.process.pid).children(recursive=True)
        assert server.terminate(timeout=300) == 0
        thread.join()
        assert found[0].json()["usage"]["completion_tokens"] == 1500
        assert not any(child.is_running() for child in children)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/health", timeout=PATIENCE)
        lines = [json.loads(line) for line in server.log]
        assert {line["layer"] for line in lines} == {"interfaces", "model_authoring", "runtime"}
        assert all({"time", "level", "request_id", "message"} <= set(line) for line in lines)


def test_the_drain_timeout_aborts_and_a_second_signal_does_not_wait(model: Path) -> None:
    endless = {"prompt": [5] * 4, "max_tokens": 10_000, "ignore_eos": True, "stream": True}
    for options, signals in ((["--drain-timeout", "0.2"], 1), (["--drain-timeout", "300"], 2)):
        with ServerProcess(str(model), "--num-blocks", "1024", *options) as server:
            client = httpx.stream("POST", f"{server.url}/v1/completions", json=endless, timeout=PATIENCE)
            with client as response, contextlib.suppress(httpx.RemoteProtocolError):
                pieces = response.iter_raw()  # closes the connection when it is forgotten
                next(pieces)
                server.process.send_signal(signal.SIGTERM)
                if signals == 2:  # not before the first is handled: two that wait are one
                    wait_until(lambda: "shutting down" in "".join(server.log), "the first signal is handled")
                    server.process.send_signal(signal.SIGTERM)
                assert server.wait() == 0, (options, server.log)


def test_vllms_option_names_and_the_environments_key(model: Path) -> None:
    options = [
        "--served-model-name",
        "one",
        "two",
        "--max-model-len",
        "128",
        "--max-num-seqs",
        "4",
        "--dtype",
        "float32",
    ]
    with ServerProcess(str(model), *options, "--num-blocks", "64", env={"PAGEDLAB_API_KEY": "secret"}) as server:
        check_error(httpx.get(f"{server.url}/v1/models", timeout=PATIENCE), 401)
        headers = {"Authorization": "Bearer secret"}
        cards = httpx.get(f"{server.url}/v1/models", headers=headers, timeout=PATIENCE).json()["data"]
        assert [(card["id"], card["max_model_len"]) for card in cards] == [("one", 128), ("two", 128)]
        assert server.terminate() == 0 and "secret" not in "".join(server.log)


def test_debug_logs_every_step_and_writes_the_trace(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    options = ["--log-level", "debug", "--trace-file", str(file), "--num-blocks", "64"]
    with ServerProcess(str(model), *options) as server:
        httpx.post(f"{server.url}/v1/completions", json={"prompt": "a", "max_tokens": 2}, timeout=PATIENCE)
        assert server.terminate() == 0
        log = "".join(server.log)
    assert re.search(r"DEBUG +runtime +forward", log) and re.search(r"DEBUG +model_authoring +schedule", log)
    assert json.loads(file.read_text())["traceEvents"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["/nowhere/at/all"], "nowhere"),
        (["--rate-limit", "many"], "rate_limit"),
        (["--log-format", "xml"], "log_format"),
        (["--num-blocks", "1"], "num_blocks"),
        (["--port", "99999"], "port"),
    ],
)
def test_bad_options_are_one_sentence_and_status_1(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["serve", *arguments]) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith("pagedlab: ") and said in error[0]


def test_help_shows_examples_and_every_option_has_a_home(capsys: pytest.CaptureFixture[str]) -> None:
    """An option that no field takes would be accepted and ignored."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve", "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0 and "examples:" in text and "curl" in text
    options = {name.replace("-", "_") for name in re.findall(r"--([a-z][a-z-]+)", text.split("examples:")[0])}
    fields = set(EngineConfig.__dataclass_fields__) | set(ServerSettings.__dataclass_fields__)
    assert {name.removeprefix("no_") for name in options} - {"help"} <= fields


def test_a_port_in_use_is_said_and_status_1(model: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "pagedlab.interfaces.cli", "serve", str(model), "--num-blocks", "64"]
        ended = subprocess.run([*command, "--port", port], capture_output=True, text=True, timeout=400)
    assert ended.returncode == 1 and port in ended.stderr and "Traceback" not in ended.stderr
