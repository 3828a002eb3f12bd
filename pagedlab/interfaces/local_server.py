"""LocalServer: `pagedlab serve` as a process of its own on this machine, started, watched and ended by a program."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pagedlab.config import EngineConfig
from pagedlab.errors import ConfigError, PagedlabError
from pagedlab.interfaces.openai_server.settings import ServerSettings

HOST = "127.0.0.1"
KEY_VARIABLE = "PAGEDLAB_API_KEY"

LEASH = """
import os, signal, sys, threading

def end_with_parent():
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=end_with_parent, daemon=True).start()
from pagedlab.interfaces.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""What the process runs: the command line, and a thread that waits for the end of standard input.

The other end of that pipe is held by whoever started the server. It closes when that process ends, in whatever way, so
no server outlives a notebook whose kernel was killed."""


class LocalServerError(PagedlabError):
    """The server did not start, or ended by itself; its last log lines are in the message."""


class LocalServer:
    """A server on a free port of this machine. Use it in a with block, or call start() and stop().

    It ends with the block, with stop(), and at the latest with the process that started it.

    Args:
        api_key: the one key that opens it. It goes through the environment: command lines are there for all to see.
        start_timeout: seconds until it must answer.
        variables: of its environment, besides this process's own.
        options: fields of ServerSettings and EngineConfig by name: LocalServer(max_num_seqs=4, log_level="debug").

    Raises:
        ConfigError: there is no such option.
    """

    def __init__(
        self,
        *,
        api_key: str | None = None,
        start_timeout: float = 180.0,
        variables: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        self.arguments = command_line({"log_format": "json", **options})
        self.start_timeout = start_timeout
        self.url = ""
        self.log_file: Path | None = None
        self._text = ""
        self._variables = dict(variables or {}) | ({KEY_VARIABLE: api_key} if api_key else {})
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it and return once it answers.

        Raises:
            LocalServerError: it ended, or was not ready in time.
        """
        if self.is_running:
            return self
        self.url = ""
        descriptor, name = tempfile.mkstemp(prefix="pagedlab-serve-", suffix=".log")
        self.log_file = Path(name)
        self._process = subprocess.Popen(
            [sys.executable, "-c", LEASH, "serve", *self.arguments],
            stdin=subprocess.PIPE,
            stdout=descriptor,
            stderr=descriptor,
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false", **self._variables},
        )
        os.close(descriptor)
        atexit.register(self.stop)
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self, timeout: float = 20.0) -> int | None:
        """End it: SIGTERM lets it finish what runs; after `timeout` seconds it is killed. Returns its exit status."""
        atexit.unregister(self.stop)
        process = self._process
        if process is None or process.stdin is None:
            return None
        process.terminate()
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
        status = process.wait()
        with contextlib.suppress(OSError):
            process.stdin.close()  # not sooner: it would be a second signal, which does not wait for running requests
        self._text = self._read_log()
        if self.log_file is not None:
            self.log_file.unlink(missing_ok=True)
            self.log_file = None
        return status

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, _, port = self.url.removeprefix("http://").partition(":")
        return host, int(port)

    def log(self) -> list[dict[str, Any]]:
        """Its log so far, an object a line; lines that are no JSON (a library's warning) are left out."""
        lines = []
        for text in self._read_log().splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(text))
        return [line for line in lines if isinstance(line, dict)]

    def _read_log(self) -> str:
        """What it wrote; after its end from memory, for the file is gone."""
        if self.log_file is None:
            return self._text
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def _wait(self) -> None:
        deadline = time.monotonic() + self.start_timeout
        while not (self.url and self._answers()):
            if not self.is_running:
                raise LocalServerError(f"The server did not start: {self._last_words()}")
            if time.monotonic() > deadline:
                raise LocalServerError(
                    f"The server was not ready after {self.start_timeout:g} s (pass a longer start_timeout=): "
                    f"{self._last_words()}"
                )
            time.sleep(0.05)
            self.url = self.url or next((found for line in self.log() if (found := serving_url(line))), "")

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def _last_words(self) -> str:
        lines = self._read_log().strip().splitlines()
        return " | ".join(lines[-3:])[-600:] or "it said nothing."


def serving_url(line: Mapping[str, Any]) -> str:
    """Where the server listens, from the line that says so; "" for any other line."""
    message = str(line.get("message", ""))
    return message.rpartition(" on ")[2] if message.startswith("serving ") else ""


def command_line(options: Mapping[str, Any]) -> list[str]:
    """Arguments of `pagedlab serve` for options by their names in ServerSettings and EngineConfig.

    Raises:
        ConfigError: `pagedlab serve` has no such option, or the address is not this machine's to choose.
    """
    import argparse

    from pagedlab.interfaces.openai_server.arguments import add_serve_options

    parser = argparse.ArgumentParser()
    add_serve_options(parser)
    known = {action.dest for action in parser._actions} - {"help", "host", "port", "api_key"}
    known &= set(ServerSettings.__dataclass_fields__) | set(EngineConfig.__dataclass_fields__)
    model = options.get("model")
    arguments = [*([] if model is None else [str(model)]), "--host", HOST, "--port", "0"]
    for name, value in options.items():
        if name not in known:
            raise ConfigError(f"LocalServer has no option {name!r}: there are {', '.join(sorted(known))}.")
        flag = "--" + name.replace("_", "-")
        if name == "model" or value is None:
            continue
        if isinstance(value, bool):
            arguments += [flag] if value else [f"--no-{flag[2:]}"]
        elif isinstance(value, list | tuple):
            arguments += [flag, *map(str, value)]
        else:
            arguments += [flag, str(value)]
    return arguments
