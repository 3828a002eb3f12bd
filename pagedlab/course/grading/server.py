"""The grader's end of a server: start it, hand it jobs from several threads, and be sure that it ends."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pagedlab
from pagedlab.course.grading import codec, wire
from pagedlab.course.grading.isolation import hide_memory
from pagedlab.course.grading.limits import Limits
from pagedlab.course.questions import Question
from pagedlab.errors import CourseError

DRIVERS = "pagedlab.course.drivers"
START = "import sys; sys.path.append(sys.argv.pop(1)); from pagedlab.course.grading.zygote import main; main()"
KEPT = ("HOME", "PATH", "PAGEDLAB_HOME", "HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME")
"""What a server may need to find the default model; a trial sees none of it."""
SILENCE = 60.0
"""Seconds beyond a trial's time that its supervisor may be silent."""
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


@dataclass(frozen=True)
class Outcome:
    """What a trial sent back.

    Attributes:
        ended: "done", or how it came to its end
        frames: what it sent, in its order
        seconds: that it took
    """

    ended: str
    frames: list[dict[str, Any]]
    seconds: float


class Server:
    """A process that trials are forked from. Use it as a context: on the way out, everything that it started ends.

    Args:
        questions: of one chapter, whose drivers it loads
        hidden: directories that no trial may read
        use_namespaces: False leaves limits only, as on a system that has nothing else

    Attributes:
        missing: what of isolation this machine refuses
    """

    def __init__(self, questions: Sequence[Question], hidden: Sequence[Path] = (), use_namespaces: bool = True) -> None:
        self.questions = questions
        self.use_namespaces = use_namespaces
        self.hidden = [*hidden, *places_of_answers()]
        self.missing: list[str] = []
        self.starting = threading.Lock()
        self.is_closed = False

    def __enter__(self) -> Server:
        self.start()
        return self

    def start(self) -> None:
        drivers = sorted({drive_of(question)[0] for question in self.questions})
        self.folder = Path(tempfile.mkdtemp(prefix="pagedlab-grade-"))
        (self.folder / "work").mkdir()
        self.folder.chmod(0o711)
        self.control, theirs = socket.socketpair()
        plan = {
            "drivers": drivers,
            "hidden": [str(path.absolute()) for path in self.hidden],
            "workspace": str(self.folder / "work"),
            "use_namespaces": self.use_namespaces,
        }
        environment = {name: os.environ[name] for name in KEPT if name in os.environ}
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-c", START, str(package().parent), str(theirs.fileno()), json.dumps(plan)],
                env={**environment, **ONE_THREAD, "TRITON_INTERPRET": "1", "TOKENIZERS_PARALLELISM": "false"},
                pass_fds=[theirs.fileno()],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C reaches the grader, which ends it in order
            )
        try:
            hello = wire.receive(self.control)
        except EOFError:
            said = self.process.stderr.read().decode(errors="replace").strip() if self.process.stderr else ""
            self.end()
            raise CourseError(f"The server of trials did not start: {said.splitlines()[-1] if said else '?'}") from None
        except BaseException:
            self.end()
            raise
        if "failed" in hello:
            self.end()
            raise CourseError(f"The server of trials did not start: {hello['failed']}")
        self.missing = hello["missing"]
        if self.missing:
            hide_memory()  # what is expected is in this process

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the server; its supervisors and trials die with it, and nothing starts any more."""
        with self.starting:
            self.is_closed = True
            self.end()

    def end(self) -> None:
        self.control.close()
        self.process.kill()
        self.process.wait()
        if self.process.stderr:
            self.process.stderr.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def try_answer(self, question: Question, cells: Sequence[tuple[str, str]], arguments: Sequence[str]) -> Outcome:
        """Run one answer. May be called from several threads at once.

        Args:
            question: says which driver, limits and imports
            cells: (name, source), the last one named "answer"
            arguments: of each case, as codec.dumps wrote them
        """
        if not question.is_value:
            return self.try_once(question, cells, arguments)
        first = self.try_once(question, cells, None)
        values = [frame["value"] for frame in first.frames if "value" in frame]
        if not values or first.ended != "done":
            return replace(first, frames=[frame for frame in first.frames if "value" not in frame])
        return self.try_once(question, [], arguments, given=codec.dumps(values[0]))

    def try_once(
        self,
        question: Question,
        cells: Sequence[tuple[str, str]],
        arguments: Sequence[str] | None,
        given: str | None = None,
    ) -> Outcome:
        """One process: for all cases, or for the value that the answer is (no arguments), or on a value (given)."""
        token = secrets.token_hex(16)
        job = {
            "token": token,
            "cells": list(cells),
            "given": given,
            "answer": question.answer,
            "drive": drive_of(question),
            "arguments": None if arguments is None else list(arguments),
            "allowed": list(question.allowed),
            "limits": asdict(Limits(seconds=question.seconds)),
        }
        # Where processes are not kept apart, somebody else's answer may have ended the first try.
        report = self.reported(job) or self.reported(job)
        if report is None:
            return Outcome("its supervisor was ended", [], 0.0)
        try:
            found = wire.frames(b64decode(report["raw"]), was_cut=report["ended"] != "done")
            frames = [checked(frame, token, len(arguments or ())) for frame in found]
        except ValueError:
            return Outcome("it wrote to the grader's own channel", [], report["seconds"])
        return Outcome(report["ended"], frames, report["seconds"])

    def reported(self, job: dict[str, Any]) -> dict[str, Any] | None:
        """What the supervisor of a job reports; None if it was ended, or is silent for a minute too long."""
        with self.starting:
            if self.is_closed:
                return None
            if self.process.poll() is not None:
                self.end()
                self.start()
            control = self.control
        ours, theirs = socket.socketpair()
        with ours, contextlib.suppress(EOFError, OSError):
            ours.settimeout(Limits(**job["limits"]).wall_seconds + SILENCE)
            with theirs:
                socket.send_fds(control, [b"j"], [theirs.fileno()])
            wire.send(ours, job)
            return dict(wire.receive(ours))
        return None


def checked(frame: dict[str, Any], token: str, num_cases: int) -> dict[str, Any]:
    """A frame that the trial's own code wrote, as far as that can be told; else ValueError."""
    case = frame.get("case")
    if frame.get("token") != token or type(case) is not int or not -1 <= case < num_cases:
        raise ValueError("not ours")
    if "value" in frame:
        try:
            frame["value"] = codec.loads(frame["value"])
        except (codec.CodecError, TypeError):
            raise ValueError("not ours") from None
    if "raised" in frame:
        match frame["raised"]:
            case [str(kind), str(message)]:
                frame["raised"] = (kind[:100], message[:2_000])
            case _:
                raise ValueError("not ours")
    return frame


def drive_of(question: Question) -> tuple[str, str]:
    module, name = question.drive.__module__, question.drive.__qualname__
    if module.split(".")[:3] != DRIVERS.split(".") or "." in name or "<" in name:
        raise CourseError(f"{question.id}: `drive` must be a function at the top of a module in {DRIVERS}, not {name}.")
    return module, name


def package() -> Path:
    return Path(pagedlab.__file__).resolve().parent


def places_of_answers() -> list[Path]:
    """Directories where right answers or secrets stand: the repository but for the package, questions, HOME, /tmp."""
    root = package().parent
    places = [package() / "course" / "questions"]
    if (root / "pyproject.toml").is_file():
        places.append(root)
    with contextlib.suppress(RuntimeError):
        places.append(Path.home())
    return [*places, Path("/tmp"), Path(tempfile.gettempdir())]
