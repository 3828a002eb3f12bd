"""For the server's tests: a tiny model with a tokenizer, servers that always end, and clients close to the wire."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tiny_models import make_tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pagedlab import EngineConfig, LLMEngine
from pagedlab.interfaces.openai_server.app import build_app
from pagedlab.interfaces.openai_server.http_protocol import HttpProtocol
from pagedlab.interfaces.openai_server.server import Server, make_server
from pagedlab.interfaces.openai_server.settings import ServerSettings

VOCABULARY = 384
POSITIONS = 12_288
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CORPUS = ["the quick brown fox jumps over the lazy dog", "a block table maps a block to a block", "1 2 3 4 5 6 7 8 9"]


def make_tiny_chat_model(directory: Path, **overrides: Any) -> Path:
    """A random model of 2 layers with a byte-level tokenizer and a chat template: any text in, babble out."""
    options = {"vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS, **overrides}
    path = make_tiny_model(directory, seed=1, std=0.2, **options)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", chat_template=TEMPLATE
    )
    fast.save_pretrained(path)
    return path


def wait_until(is_so: Callable[[], object], what: str, timeout: float = 60) -> None:
    """Wait for something that another thread or process does; the timeout is far beyond what a busy machine takes."""
    deadline = time.monotonic() + timeout
    while not is_so():
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        time.sleep(0.005)


class RunningServer:
    """A server in a thread of this process, on a free port of this machine.

    Attributes:
        url: where it answers
        engine: the LLMEngine; read it while nothing runs
        serving: the app's state
    """

    def __init__(self, model: Path | None, engine: LLMEngine | None = None, **options: Any) -> None:
        names = ServerSettings.__dataclass_fields__
        settings = ServerSettings(port=0, **{name: value for name, value in options.items() if name in names})
        if engine is None:
            config = {name: value for name, value in options.items() if name not in names}
            self.server = make_server(EngineConfig(model=model, **config), settings)
        else:
            self.server = Server(build_app(engine, engine.tokenizer, settings, "tiny"), settings)
        self.serving = self.server.serving
        self.engine: LLMEngine = self.serving.engine._engine
        self._thread = threading.Thread(target=self.server.run, daemon=True)
        self._thread.start()
        wait_until(lambda: self.server.started or not self._thread.is_alive(), "the server has started", 120)
        assert self.server.started, "the server did not start"
        self.url = f"http://127.0.0.1:{self.server.port}"

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.server.port

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, **options)

    @property
    def is_idle(self) -> bool:
        """No request is left, and the engine's thread has carried out all that it was told: none is on its way."""
        engine = self.serving.engine
        return not engine.pending and engine._num_obeyed == engine._num_commands

    def wait_idle(self) -> None:
        """Wait until no request is left; then every block must be free."""
        wait_until(lambda: self.is_idle and not self.engine.has_unfinished_requests(), "the server is idle")
        self.check_blocks()

    def check_blocks(self) -> None:
        """Not one block is leaked."""
        self.engine.block_manager.check_integrity()
        stats = self.engine.stats()
        assert stats.num_free_blocks == stats.num_total_blocks
        assert stats.num_running == stats.num_waiting == 0

    def freeze(self, after: int = 0) -> Callable[[], None]:
        """Let the engine make `after` more steps and then none, while it goes on obeying, until the returned function
        is called: whatever runs then stays as it is for as long as the test takes to look at it."""
        step, left = self.engine.step, after

        def limited() -> list[Any]:
            nonlocal left
            if left > 0:
                left -= 1
                return step()
            time.sleep(0.002)
            return []

        def thaw() -> None:
            self.engine.step = step  # type: ignore[method-assign]

        self.engine.step = limited  # type: ignore[method-assign]
        return thaw

    @contextlib.contextmanager
    def frozen(self, after: int = 0) -> Iterator[None]:
        """freeze() for the length of a block."""
        thaw = self.freeze(after)
        try:
            yield
        finally:
            thaw()

    def stop(self) -> int:
        self.server.should_exit = True
        self._thread.join(120)
        assert not self._thread.is_alive(), "the server did not end"
        return self.server.exit_status


@contextlib.contextmanager
def running(model: Path | None, **options: Any) -> Iterator[RunningServer]:
    """A server that ends with the block, whatever happens in it."""
    server = RunningServer(model, **options)
    try:
        yield server
    finally:
        server.stop()


class ServerProcess:
    """`pagedlab serve` as a user runs it. Use it in a with block, which ends it."""

    def __init__(self, *arguments: str, env: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "pagedlab.interfaces.cli", "serve", "--port", "0", *arguments]
        self.log: list[str] = []
        self.begin = time.monotonic()
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
        )
        self.url = ""
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            found = re.search(r"http://127\.0\.0\.1:\d+", line)
            if found and not self.url:
                self.url = found[0]
                self._listening.set()
        self._listening.set()

    def __enter__(self) -> ServerProcess:
        try:
            assert self._listening.wait(300) and self.url, "".join(self.log)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(60)

    def terminate(self, timeout: float = 120) -> int:
        """Send SIGTERM and return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait(timeout)

    def wait(self, timeout: float = 120) -> int:
        status = self.process.wait(timeout)
        self._reader.join(60)
        return status


def events(text: str) -> list[str]:
    """The data of each server-sent event; every line of a stream must belong to one."""
    parts = text.split("\n\n")
    assert parts.pop() == "", "the stream does not end with an empty line"
    assert all(part.startswith("data: ") and "\n" not in part for part in parts), parts
    return [part.removeprefix("data: ") for part in parts]


def chunks(response: httpx.Response) -> list[dict[str, Any]]:
    """The chunks of a stream, which must end with [DONE] and hold it once."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    found = events(response.text)
    assert found.count("[DONE]") == 1 and found[-1] == "[DONE]"
    return [json.loads(one) for one in found[:-1]]


def check_error(response: httpx.Response, status: int | None = None) -> dict[str, Any]:
    """The error of a response, which must have the one shape that all have."""
    if status is not None:
        assert response.status_code == status, response.text
    assert response.status_code >= 400
    assert response.headers["content-type"].startswith("application/json")
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    error = body["error"]
    assert isinstance(error["message"], str) and error["message"]
    assert isinstance(error["type"], str) and error["type"]
    assert all(error[name] is None or isinstance(error[name], str) for name in ("param", "code"))
    return error


def http_bytes(path: str, body: bytes, *headers: str, method: str = "POST") -> bytes:
    """A request as it goes over the wire."""
    head = [f"{method} {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers]
    return "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body


def connect(server: RunningServer, timeout: float = 60, receive_buffer: int | None = None) -> socket.socket:
    """A connection; a small receive buffer (bytes) makes the server feel soon that nobody reads."""
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(timeout)
    connection.connect(server.address)
    return connection


def shrink_send_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the system take some 100 kB of an answer, not up to 4 MB: a client that does not read is soon felt."""
    connection_made = HttpProtocol.connection_made

    def with_small_buffer(one: HttpProtocol, transport: asyncio.Transport) -> None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 << 10)
        connection_made(one, transport)

    monkeypatch.setattr(HttpProtocol, "connection_made", with_small_buffer)


def read_all(connection: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    parts = []
    while True:
        with contextlib.suppress(ConnectionResetError):
            if part := connection.recv(65536):
                parts.append(part)
                continue
        return b"".join(parts)
