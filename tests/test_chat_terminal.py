"""`pagedlab chat` in a terminal: Ctrl-C, Ctrl-D, NO_COLOR, and no model: never a traceback."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_tools import make_tiny_chat_model

from pagedlab.interfaces.terminal import stop_on_interrupt

CTRL_C, CTRL_D = b"\x03", b"\x04"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_chat_model(tmp_path_factory.mktemp("model"), eos_token_id=None)  # its answers do not end


class Terminal:
    """`pagedlab chat` with a terminal of its own, as a person at its keyboard sees it."""

    def __init__(self, *arguments: str, env: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "pagedlab.interfaces.cli", "chat", *arguments]
        self.process, self.terminal = pty.fork()
        if self.process == 0:
            os.execve(sys.executable, command, {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})})
        self.shown = ""
        self.num_read = 0

    def wait_for(self, pattern: str, timeout: float = 100) -> str:
        """What is shown up to the pattern, which is looked for behind what was waited for before."""
        end = time.monotonic() + timeout
        while not (found := re.compile(pattern, re.DOTALL).search(self.shown, self.num_read)):
            assert self.read(end), f"the program ended, and showed {self.shown[-500:]!r}"
        text = self.shown[self.num_read : found.end()]
        self.num_read = found.end()
        return text

    def read(self, end: float) -> bool:
        assert time.monotonic() < end, f"nothing more came behind {self.shown[-500:]!r}"
        if select.select([self.terminal], [], [], 0.1)[0]:
            with contextlib.suppress(OSError):  # how Linux says that the other side has closed
                if part := os.read(self.terminal, 65536):
                    self.shown += part.decode(errors="replace")
                    return True
            return False
        return True

    def type(self, keys: bytes) -> None:
        os.write(self.terminal, keys)

    def end(self, key: bytes = b"", timeout: float = 100) -> int:
        """Wait for the program's exit status. A Ctrl-C between input()'s prompt and its reading is not felt before the
        next one, so `key` is pressed now and then."""
        end, pressed = time.monotonic() + timeout, 0.0
        while self.read(end):
            if key and time.monotonic() > pressed + 2:
                self.type(key)
                pressed = time.monotonic()
        process, self.process = self.process, 0
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

    def close(self) -> None:
        if self.process:
            os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
        os.close(self.terminal)


@contextlib.contextmanager
def chat(*arguments: str, env: dict[str, str] | None = None) -> Iterator[Terminal]:
    terminal = Terminal(*arguments, env=env)
    try:
        yield terminal
        assert "Traceback" not in terminal.shown
    finally:
        terminal.close()


def test_ctrl_c_stops_the_answer_and_keeps_the_chat(model: Path) -> None:
    """10,000 tokens would take far longer; then the next question is answered, and the first is still known."""
    with chat("--model", str(model), "--max-tokens", "10000", env={"NO_COLOR": "1"}) as terminal:
        terminal.wait_for(r"> \Z")
        for _ in range(2):
            terminal.type(b"hello\r")
            terminal.wait_for(r"hello\r\n.{20}")  # the answer has begun
            terminal.type(CTRL_C)
            terminal.wait_for(r"\^C.*\n> \Z")
        terminal.type(b"/exit\r")
        assert terminal.end() == 0


@pytest.mark.parametrize(("key", "status"), [(CTRL_C, 130), (CTRL_D, 0)], ids=["Ctrl-C", "Ctrl-D"])
def test_the_prompt_is_left_without_a_traceback(model: Path, key: bytes, status: int) -> None:
    with chat("--model", str(model), env={"NO_COLOR": "1"}) as terminal:
        terminal.wait_for("> ")
        assert terminal.end(key) == status
        assert "\x1b[3" not in terminal.shown and len(terminal.shown.splitlines()) == 1


def test_no_network_and_no_model_are_one_sentence(tmp_path: Path) -> None:
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "NO_COLOR": "1"}
    with chat("--model", "nobody/nothing", env=env) as terminal:
        assert terminal.end() == 1
        lines = [line for line in terminal.shown.splitlines() if line]
        assert len(lines) == 1 and lines[0].startswith("pagedlab: nobody/nothing") and "\x1b" not in lines[0]


def test_the_second_ctrl_c_is_as_ever() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stop_on_interrupt() as was_interrupted:
        assert not was_interrupted()
        signal.raise_signal(signal.SIGINT)
        assert was_interrupted()
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    with stop_on_interrupt() as was_interrupted:
        assert not was_interrupted()
    assert signal.getsignal(signal.SIGINT) is before
