"""The server that trials are forked from: torch and a chapter's drivers are loaded, its questions are not.

It is told on one socket; with each request comes a connection of its own, on which a supervisor (a fork) receives the
job, watches the trial (a fork of the fork) and reports. When the grader goes away, for whatever reason, all of it ends.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import shutil
import signal
import socket
import sys
import time
from base64 import b64encode
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import psutil
import torch

import pagedlab.course
from pagedlab.course.grading import isolation, limits, syscalls, trial, wire

PACKAGE = Path(pagedlab.course.__file__).resolve().parents[1]
WORKSPACE_MEGABYTES = 64
POLL = 0.02
"""Seconds between looks at a trial."""
LOOK = 0.5
"""Seconds between looks at what all of its processes hold."""
MAX_FILES = 10_000
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "USER": "reader",
    "MPLBACKEND": "Agg",
    "TRITON_INTERPRET": "1",
}


def main() -> NoReturn:
    """Serve until the grader is gone. Arguments: the control socket's number, and what to do, as JSON."""
    isolation.die_with_parent(signal.SIGKILL)
    control = socket.socket(fileno=int(sys.argv[1]))
    plan = json.loads(sys.argv[2])
    torch.set_num_threads(1)
    workspace = Path(plan["workspace"])
    try:
        load(plan["drivers"])
        # What the drivers need of pagedlab is loaded. The rest could give an answer away: every oracle is in it.
        hidden = [Path(path) for path in (*plan["hidden"], PACKAGE)]
        shell = isolation.shut_off(hidden, needed_paths(), workspace, plan["use_namespaces"])
    except Exception as error:  # said to the grader, which says it to the user
        wire.send(control, {"failed": f"{type(error).__name__}: {error}"})
        os._exit(1)
    os.environ.clear()
    os.environ.update(ENVIRONMENT, HOME=str(workspace), TMPDIR=str(workspace))
    wire.send(control, {"missing": shell.missing})
    serve(control, workspace, shell)
    os._exit(0)


def load(drivers: list[str]) -> None:
    """Import drivers and let them prepare. What a reader's notebook imports from the course does nothing here."""
    for name in pagedlab.course.__all__:
        setattr(pagedlab.course, name, lambda *arguments, **options: None)
    for name in drivers:
        prepare = getattr(importlib.import_module(name), "prepare", None)
        if prepare is not None:
            prepare()
    known = [name for name in sys.modules if name.startswith("pagedlab.course.questions")]
    if known:
        raise ImportError(f"the drivers import {known[0]}, which knows what is expected")


def needed_paths() -> list[Path]:
    """Directories that Python itself reads, as they are called and as what they lead to."""
    paths = [Path(path) for path in (sys.prefix, sys.base_prefix, *sys.path) if path]
    wanted = {found for path in paths if path.is_dir() for found in (path.absolute(), path.resolve())}
    root = PACKAGE.parent  # an editable install puts the whole repository on the path
    return sorted(wanted - {root} if (root / "pyproject.toml").is_file() else wanted)


def serve(control: socket.socket, workspace: Path, shell: isolation.Shell) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for supervisors
    while True:
        message, descriptors, _flags, _address = socket.recv_fds(control, 1, 1)
        if not message:
            return
        connection = socket.socket(fileno=descriptors[0])
        with connection, contextlib.suppress(OSError):  # no process left: this job fails, the next may not
            if os.fork() == 0:
                control.close()
                with contextlib.suppress(BaseException):
                    supervise(connection, workspace, shell)
                os._exit(0)


def supervise(connection: socket.socket, workspace: Path, shell: isolation.Shell) -> None:
    """Receive one job, run its trial, report: {"ended", "raw", "seconds"}. Only this talks to the grader."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    isolation.die_with_parent(signal.SIGKILL)
    job = wire.receive(connection)
    bounds = limits.Limits(**job.pop("limits"))
    own = workspace
    if shell.has_namespaces:
        isolation.own_processes()
    else:
        own = workspace / f"trial-{os.getpid()}"
        own.mkdir(parents=True)
        own.chmod(0o1777)
        isolation.become_reaper()
    inherited = own_memory(psutil.Process())
    reading, writing = os.pipe()
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(reading)
        enter(job, own, bounds, writing, shell)
    os.close(writing)
    ended, raw = watch(child, reading, connection, bounds, inherited, None if shell.has_namespaces else own)
    if not shell.has_namespaces:
        end_descendants()
        shutil.rmtree(own, ignore_errors=True)
    seconds = time.monotonic() - start
    wire.send(connection, {"ended": ended, "raw": b64encode(raw).decode(), "seconds": seconds})


def enter(
    job: dict[str, Any], workspace: Path, bounds: limits.Limits, writing: int, shell: isolation.Shell
) -> NoReturn:
    """Become the trial: first all bounds, then the answer."""
    try:
        os.setsid()
        isolation.be_ended_first()
        mapped = limits.address_space()
        if shell.has_namespaces:
            isolation.own_workspace(workspace, WORKSPACE_MEGABYTES)
        os.chdir(workspace)
        channel = 3
        nothing = os.open(os.devnull, os.O_RDWR)
        kept = os.dup(writing)
        for standard in (0, 1, 2):
            os.dup2(nothing, standard)
        os.dup2(kept, channel)
        os.closerange(channel + 1, 65_536)
        os.environ.update(HOME=str(workspace), TMPDIR=str(workspace))
        isolation.drop_privileges(shell.may_change_user)
        isolation.die_with_parent(signal.SIGKILL)
        limits.apply(bounds, mapped)
        if shell.has_filter:
            syscalls.restrict(only_itself=0 if shell.has_namespaces else os.getpid())
    except BaseException:
        os._exit(FAILED_TO_ENTER)
    try:
        trial.run(job, channel)
    finally:
        os._exit(0)


FAILED_TO_ENTER = 97
"""Exit status of a trial whose bounds could not be set; the answer did not run."""


def watch(
    child: int, reading: int, connection: socket.socket, bounds: limits.Limits, inherited: int, folder: Path | None
) -> tuple[str, bytes]:
    """Collect what a trial writes until it ends or must end. Returns how it ended, in words, and the bytes.

    Args:
        inherited: bytes of memory that each of its processes had to begin with
        folder: where it writes files that nothing else bounds in sum
    """
    parts: list[bytes] = []
    size = 0
    start = time.monotonic()
    next_look = start + LOOK
    ended = ""
    is_open = True
    while not ended:
        sources: list[Any] = [connection, *([reading] if is_open else [])]
        ready, _, _ = select.select(sources, [], [], POLL)
        if reading in ready:
            part = os.read(reading, 1 << 16)
            is_open = bool(part)
            parts.append(part)
            size += len(part)
        elif (status := finished(child)) is not None:
            return words_of(status), b"".join(parts)
        if connection in ready:
            ended = "the grader is gone"
        elif size > bounds.result_bytes:
            ended = f"it sent back more than {bounds.result_bytes >> 20} MiB"
        elif time.monotonic() > start + bounds.wall_seconds:
            ended = f"stopped after {bounds.wall_seconds:g} s"
        elif time.monotonic() > next_look:
            ended = excess(bounds, inherited, folder)
            next_look = time.monotonic() + LOOK
    kill(child)
    return ended, b"".join(parts)


def excess(bounds: limits.Limits, inherited: int, folder: Path | None) -> str:
    """What its processes together have too much of, in words, or "". Each one alone is bounded already."""
    with contextlib.suppress(psutil.Error):
        processes = processes_of_trial()
        held = sum(max(0, own_memory(process) - inherited) for process in processes)
        if len(processes) > 1 and held > 2 * bounds.memory:
            return f"its {len(processes)} processes held more than {2 * bounds.memory >> 30} GiB"
    if folder is None:
        return ""
    with contextlib.suppress(OSError):
        sizes = [path.lstat().st_size for path in islice(folder.rglob("*"), MAX_FILES)]
        if len(sizes) == MAX_FILES or sum(sizes) > WORKSPACE_MEGABYTES << 20:
            return f"its files held more than {WORKSPACE_MEGABYTES} MiB, or were more than {MAX_FILES:,}"
    return ""


def processes_of_trial() -> list[psutil.Process]:
    """Its /proc replaces this process's own, which is not listed there: then all that is listed is the trial's."""
    if not Path("/proc/self").exists() and sys.platform.startswith("linux"):
        return list(psutil.process_iter())
    return psutil.Process().children(recursive=True)


def own_memory(process: psutil.Process) -> int:
    """Bytes that stand in no file. What it shares with the process that it was forked from is among them."""
    try:
        memory = process.memory_info()
    except psutil.Error:  # it has ended
        return 0
    return int(memory.rss - getattr(memory, "shared", 0))


def finished(child: int) -> int | None:
    """The status of a child that has ended, or None."""
    pid, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if pid else None


def words_of(code: int) -> str:
    if code == 0:
        return "done"
    if code == FAILED_TO_ENTER:
        return "the grader could not set its limits"
    if code > 0:
        return f"it ended the process with status {code}"
    if -code in (signal.SIGKILL, signal.SIGXCPU):
        return "it used up its processor time, or all memory"
    return f"the process was ended by {signal.Signals(-code).name}"


def kill(child: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, 0)


# ---- without namespaces ----------------------------------------------------------------------------------------------


def end_descendants() -> None:
    for _ in range(20):
        left = psutil.Process().children(recursive=True)
        if not left:
            return
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=0.1)


if __name__ == "__main__":
    main()
