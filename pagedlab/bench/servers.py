"""Servers that a benchmark starts and always ends: `pagedlab serve` and `transformers serve`, on loopback only."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from pagedlab.bench.http_load import HttpError, get
from pagedlab.errors import PagedlabError

HOST = "127.0.0.1"


class ServerStartError(PagedlabError):
    """A server did not start, or not in time."""


class ServerProcess:
    """A server as a process of its own; use it in a with block, which ends it and what it started.

    Args:
        name: for messages.
        command: must make it listen on this machine, and either print its URL or listen on `port`.
        port: None if the process takes a free one and prints it.
        start_timeout: seconds until it must answer /health.
        variables: of its environment, besides this process's own.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        port: int | None,
        start_timeout: float,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self._variables = dict(variables or {})
        self.name = name
        self.command = list(command)
        self.address = (HOST, port or 0)
        self.start_timeout = start_timeout
        self.start_seconds = 0.0
        self.log: deque[str] = deque(maxlen=200)
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        begin = time.monotonic()
        _end_with_exceptions()
        always = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
        environment = {**os.environ, **always, **self._variables}
        try:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise ServerStartError(f"{self.name} cannot be started: {error}") from None
        threading.Thread(target=self._read, args=(self._process,), daemon=True).start()
        try:
            while not self._answers():
                if self._process.poll() is not None:
                    raise ServerStartError(f"{self.name} ended with status {self._process.returncode}: {self.tail()}")
                if time.monotonic() - begin > self.start_timeout:
                    raise ServerStartError(f"{self.name} was not ready after {self.start_timeout:g} s: {self.tail()}")
                time.sleep(0.05)
        except BaseException:
            self.__exit__()
            raise
        self.start_seconds = time.monotonic() - begin
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self, timeout: float = 20) -> int | None:
        """End it by SIGTERM, and if that takes longer than `timeout`, by SIGKILL. Returns its exit status."""
        process = self._process
        if process is None:
            return None
        if process.poll() is None:
            process.terminate()
            self.resume()  # a paused process does not see the signal
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # the session is its own: nobody else is in the group
        return process.wait()

    def pause(self) -> None:
        """Stop it in its tracks while others are measured: an idle server may poll, and take a core with it."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    def tail(self) -> str:
        """Its last words."""
        return " | ".join(line.strip() for line in list(self.log)[-4:] if line.strip())[-600:] or "it said nothing"

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.log.append(line)
            found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
            if found and not self.address[1]:
                self.address = (HOST, int(found[1]))

    def _answers(self) -> bool:
        if not self.address[1]:
            return False
        try:
            status, _ = asyncio.run(get(self.address, "/health", timeout=5))
        except (OSError, EOFError, ValueError, TimeoutError, HttpError):
            return False
        return status == 200


def _end_with_exceptions() -> None:
    """Let SIGTERM unwind this program, as Ctrl-C does: by default it would leave its servers behind."""
    on_main_thread = threading.current_thread() is threading.main_thread()
    if on_main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def pagedlab_server(
    model: Path | str, *options: str, start_timeout: float = 180, variables: Mapping[str, str] | None = None
) -> ServerProcess:
    """`pagedlab serve` on a free port."""
    command = [sys.executable, "-m", "pagedlab.interfaces.cli", "serve", str(model), "--host", HOST, "--port", "0"]
    return ServerProcess("pagedlab serve", [*command, *options], None, start_timeout, variables)


PEER_BLOCK_SIZE = 32
PEER_BATCH_TOKENS = 2048


def transformers_server(
    model: Path | str, device: str, dtype: str, start_timeout: float, kv_tokens: int | None = None
) -> ServerProcess:
    """`transformers serve` with continuous batching on a free port.

    Args:
        kv_tokens: places in its KV cache; None lets it take the memory that is free. On a CPU it then builds masks
            over a cache of many GB, and has not answered its first request after two minutes.

    Raises:
        ServerStartError: transformers' command line is not installed.
    """
    beside = Path(sys.executable).with_name("transformers")
    program = str(beside) if beside.exists() else shutil.which("transformers")
    if program is None:
        raise ServerStartError("transformers serve cannot be started: there is no `transformers` program here.")
    port = free_port()
    options = ["--continuous-batching", "--host", HOST, "--port", str(port), "--device", device, "--dtype", dtype]
    if kv_tokens is not None:
        options += ["--cb-block-size", str(PEER_BLOCK_SIZE), "--cb-num-blocks", str(kv_tokens // PEER_BLOCK_SIZE)]
        options += ["--cb-max-batch-tokens", str(PEER_BATCH_TOKENS)]
    return ServerProcess("transformers serve", [program, "serve", str(model), *options], port, start_timeout)


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def parse_metrics(text: str) -> dict[str, float]:
    """Prometheus' text: the sum over labels of each series, without `pagedlab:` or `vllm:` and a counter's `_total`.

    A label `finished_reason` stays apart: `request_success{length}`.
    """
    values: dict[str, float] = {}
    for line in text.splitlines():
        found = re.match(r"(?:pagedlab|vllm):(\w+)(\{[^}]*\})?\s+([0-9.eE+-]+|NaN)$", line)
        if not found or found[1].endswith(("_bucket", "_created")):
            continue
        reason = re.search(r'finished_reason="(\w+)"', found[2] or "")
        name = found[1].removesuffix("_total") + (f"{{{reason[1]}}}" if reason else "")
        values[name] = values.get(name, 0.0) + float(found[3])
    return values


async def scrape(address: tuple[str, int]) -> dict[str, float] | None:
    """The server's /metrics; None if it has none of these names.

    Raises:
        HttpError: nobody answers.
    """
    try:
        status, body = await get(address, "/metrics")
    except (OSError, EOFError, ValueError) as error:
        raise HttpError(f"The server does not answer /metrics ({type(error).__name__}): it ended, or hangs.") from error
    values = parse_metrics(body.decode()) if status == 200 else {}
    return values if "generation_tokens" in values else None
