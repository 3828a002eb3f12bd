"""Answers and files that try to break the grader, each with the points it deserves and a part of the reason given."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from exercise_tools import small_master

from pagedlab.course import notebooks

RIGHT = "def blocks_needed(n):\n    return -(-n // 16)\n"
WRONG = "def blocks_needed(n):\n    return n // 16\n"


def inside(body: str) -> str:
    """An answer whose function does something before it returns what is right."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return f"import os, sys, time\n\n\ndef blocks_needed(n):\n{lines}\n    return -(-n // 16)\n"


def equal_to_all(base: str, value: str, result: str = "Yes({})") -> str:
    body = "    def __eq__(self, other):\n        return True\n    __hash__ = None\n"
    returned = result.format(value)
    return f"import torch\n\n\nclass Yes({base}):\n{body}\n\ndef blocks_needed(n):\n    return {returned}\n"


def patched(change: str) -> str:
    """A wrong answer that changes what is loaded already, reached in a way that names nothing forbidden."""
    return f'import sys\n\nmodules = vars(sys)["mod" + "ules"]\n{change}\n\n\n{WRONG}'


IGNORE_SIGNALS = """
import signal
for number in range(1, 32):
    try:
        signal.signal(number, signal.SIG_IGN)
    except OSError:
        pass
while True:
    pass
"""
FORKS_FOR_EVER = """
while True:
    try:
        os.fork()
    except OSError:
        pass
"""
THREADS_FOR_EVER = """
import threading
while True:
    threading.Thread(target=time.sleep, args=[9]).start()
"""
FORGED = """
frame = b'{"token": "", "case": 0, "value": "1"}'
os.write(3, len(frame).to_bytes(4, "big") + frame)
"""
KILL_EVERYBODY = """
import signal
for pid in (os.getppid(), -1):
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        pass
"""
FILE_FOR_EVER = """
with open("f", "wb") as file:
    while True:
        file.write(bytes(1 << 20))
"""
RAISES_A_LIAR = """
class Liar(Exception):
    def __str__(self):
        raise self


def blocks_needed(n):
    raise Liar()
"""

MEMORY_OF_MANY = """
for _ in range(5):
    if os.fork() == 0:
        kept = b"x" * (700 << 20)
        time.sleep(99)
time.sleep(99)
"""
STOLEN = """
import json
frame = getattr(sys, "_get" + "frame")()
while "job" not in frame.f_locals:
    frame = getattr(frame, "f_" + "back")
token = frame.f_locals["job"]["token"]
body = json.dumps({"token": token, "case": 0, **%s}).encode()
os.write(3, len(body).to_bytes(4, "big") + body)
"""
HUGE_SHAPE = '{"tensor": ["float32", [1000000000000000000000000000000], ""]}'
NO_NUMBERS = '{"tensor": ["float32", [1000000000, 0], ""]}'
REAL_IMPORT = """
guard = print.__self__.__import__
for cell in getattr(guard, "__clo" + "sure__"):
    if callable(cell.cell_contents):
        cell.cell_contents("pagedlab.simulate.kv_memory")
"""
SYSTEM_CALLS = """
import sys

c = vars(sys)["mod" + "ules"]["ctypes"].CDLL(None)
tries = {
    "user namespace": c.unshare(0x10000000),
    "clone into one": c.syscall(56, 0x10000011, 0, 0, 0, 0),
    "clone3": c.syscall(435, 0, 0),
    "shared memory": c.shmget(0, 1 << 20, 0o1600),
    "memory file": c.memfd_create(b"x", 0),
    "socket": c.socket(1, 1, 0),
    "trace": c.ptrace(0, 0, 0, 0),
    "key": c.syscall(250, 1, 0),
}
assert set(tries.values()) == {-1}, tries
"""

KNOWS_ITS_BOUND = """
import resource

assert resource.getrlimit(resource.RLIMIT_CPU) == (2, 2)
"""
"""What ends a loop on a machine with time to spare. Which of the two bounds does, depends on who else is busy."""

CHANGES_THE_WORLD = """
import torch, warnings
torch.set_default_dtype(torch.float64)
os.chdir("/")
os.environ.clear()
warnings.simplefilter("error")
vars(len.__self__).pop("print", None)
"""

FAILS: dict[str, tuple[str, str]] = {
    "loop": (inside("while True: pass"), "did not come to its end"),
    "loop at the margin": (f"while True: pass\n{RIGHT}", "did not come to its end"),
    "sleep": (inside("time.sleep(999)"), "stopped after 9 s"),
    "recursion": ("def blocks_needed(n):\n    return blocks_needed(n)", "RecursionError"),
    "recursion to the end": (inside("sys.setrecursionlimit(10**9)\nf = lambda: f()\nf()"), ""),
    "exit": (inside("sys.exit()"), "SystemExit"),
    "exit at the margin": (f"raise SystemExit(0)\n{RIGHT}", "SystemExit"),
    "_exit 3": (inside("os._exit(3)"), "ended the process with status 3"),
    "_exit 0": (inside("os._exit(0)"), "ended before it came to this case"),
    "abort": (inside("os.abort()"), "the process was ended by SIG"),
    "memory": (inside("kept = []\nwhile True: kept.append(bytes(1 << 26))"), "MemoryError"),
    "memory of torch": (inside("import torch\ntorch.ones(1 << 40)"), "RuntimeError"),
    "forks": (inside("while True: os.fork()"), ""),
    "forks that go on": (inside(FORKS_FOR_EVER), ""),
    "threads": (inside(THREADS_FOR_EVER), ""),
    "file": (inside(FILE_FOR_EVER), "OSError"),
    "long result": (inside("return list(range(1_000_001))"), "1,000,001 items: that is too many"),
    "billion rows of nothing": (
        "import torch\n\n\ndef blocks_needed(n):\n    return torch.empty(10**9, 0)",
        "too large",
    ),
    "billion rows in an array": (
        "import numpy\n\n\ndef blocks_needed(n):\n    return numpy.empty((10**9, 0))",
        "too large",
    ),
    "memory of many": (inside(MEMORY_OF_MANY), ""),
    "long number": (inside("return 1 << 10**6"), "too large"),
    "list in itself": (inside("a = []\na.append(a)\nreturn a"), "deep"),
    "signals": (inside(IGNORE_SIGNALS), "did not come to its end"),
    "no Python": ("def blocks_needed(n: return", "SyntaxError"),
    "null bytes": ("blocks_needed = '\x00'", "null bytes"),
    "nested": ("blocks_needed = " + "(" * 5000 + ")" * 5000, ""),
    "nothing": ("x = 1", "not answered yet"),
    "stub": ("blocks_needed = ...", "not answered yet"),
    "raises a liar": (RAISES_A_LIAR, "Liar:"),
}
"""No points, and why."""

FAKES: dict[str, tuple[str, str]] = {
    "a table of what check shows": (
        "def blocks_needed(n):\n    return {1: 1, 15: 1, 16: 1, 17: 2, 32: 2, 100: 7}.get(n, 0)",
        "only in 0 of 5 others of the same kind",
    ),
    "object": (equal_to_all("object", ""), "an object of type Yes"),
    "int": (equal_to_all("int", "7"), "an object of type Yes"),
    "str": (equal_to_all("str", "'7'"), "an object of type Yes"),
    "tensor": (equal_to_all("torch.Tensor", "[7]"), "an object of type Yes"),
    "list": (equal_to_all("int", "7", "[Yes({})]"), "an object of type Yes"),
    "patched torch": (f"import torch\ntorch.equal = torch.allclose = lambda *a, **k: True\n{WRONG}", "Rounded down"),
    "patched built-ins": (f"b = print.__self__\nb.all = lambda x: True\nb.abs = lambda x: 0\n{WRONG}", "Rounded down"),
    "patched codec": (patched('modules["pagedlab.course.grading.codec"].dumps = lambda v: "1"'), "Rounded down"),
    "patched course": (patched('modules["pagedlab.course"].check = lambda *a: True'), "Rounded down"),
    "no modules": (patched("modules.clear()"), ""),
    "channel": (inside("os.write(3, b'x' * 999)"), "the grader's own channel"),
    "forged frame": (inside(FORGED), "the grader's own channel"),
    "stolen token, no pair": (inside(STOLEN % {"raised": 5}), "the grader's own channel"),
    "stolen token, huge shape": (inside(STOLEN % {"value": HUGE_SHAPE}), "the grader's own channel"),
    "stolen token, no numbers": (inside(STOLEN % {"value": NO_NUMBERS}), "the grader's own channel"),
    "flooded channel": (inside("while True: os.write(3, bytes(1 << 20))"), ""),
    "closed channel": (inside("os.closerange(0, 999)"), "ended before it came to this case"),
    "questions": (f"from pagedlab.course import questions\n{RIGHT}", "imports pagedlab.course.questions of pagedlab"),
    "engine": (f"import pagedlab.basics.kv_size as k\n{RIGHT}", "imports pagedlab.basics.kv_size"),
    "importlib": (f"import importlib\n{RIGHT}", "imports importlib"),
    "frames": (inside("sys._getframe().f_back.f_globals"), "uses f_globals"),
    "closure": (inside("n.__closure__"), "uses __closure__"),
    "text too deep": (inside(STOLEN % {"value": "[" * 900 + "]" * 900}), "the grader's own channel"),
    "text of many": (
        inside(STOLEN.replace("**%s", '"value": "[" + "[]," * 2_000_000 + "0]"')),
        "the grader's own channel",
    ),
    "hidden import": (
        inside("exec('from pagedlab.course ' + 'import questions')"),
        "imports pagedlab.course.questions",
    ),
    "named master": (inside("open('/x/solutions/00_small.ipynb')"), "where solutions are"),
}
"""Not the right result, but a way to look right."""

HARMLESS: dict[str, str] = {
    "prints 64 MB": f"left = [1 << 22] * 16\n\n\n{inside('while left: print(chr(120) * left.pop())')}",
    "leaves a thread": inside("import threading\nthreading.Thread(target=time.sleep, args=[99]).start()"),
    "leaves a process": inside("if os.fork() == 0:\n    os.setsid()\n    time.sleep(99)"),
    "atexit": f"import atexit, time\natexit.register(time.sleep, 99)\n{RIGHT}",
    "help": f"from pagedlab.course import check, hint\n{RIGHT}\ncheck('ch00.q1')\nhint('ch00.q1')",
    "magics": f"%timeit 1\n!ls\n{RIGHT}",
    "await": f"import asyncio\n\n{RIGHT}\nawait asyncio.sleep(0)",
    "a % at a line's start": f"%timeit 1\n{RIGHT}\nx = (7\n     % 5)",
    "cell magic": f"%%time\n{RIGHT}",
    "asks for help": f"sum?\nfiles = !ls\n{RIGHT}",
    "Windows newlines": RIGHT.replace("\n", "\r\n"),
    "tabs and a mark": "\ufeff" + RIGHT.replace("    ", "\t"),
    "annotations": f"{RIGHT}\n\ndef f(x: int):\n    pass\n\nassert f.__annotations__ == {{'x': int}}",
    "changes the world": inside(CHANGES_THE_WORLD),
    "knows its bound": f"{KNOWS_ITS_BOUND}\n{RIGHT}",
    "a gradient": "import torch\n\n\ndef blocks_needed(n):\n    return torch.tensor(-(-n // 16.0), requires_grad=True)",
    "system calls": f"{SYSTEM_CALLS}\n{RIGHT}",
    "numpy number": "import numpy as np\n\n\ndef blocks_needed(n):\n    return np.int64(-(-n // 16))",
}
"""All points."""

OUTSIDE: dict[str, tuple[str, str]] = {
    "network": (
        "import socket\n    socket.create_connection(('127.0.0.1', {port}), timeout=2).close()",
        "Operation not permitted",
    ),
    "oracle": ("open('{package}/basics/__init__.py').close()", "FileNotFoundError"),
    "import": (REAL_IMPORT.strip().replace("\n", "\n    "), "No module named 'pagedlab.simulate'"),
    "master": ("open('{folder}/solu' + 'tions/00_small.ipynb').close()", "FileNotFoundError"),
    "questions' file": ("open('{package}/course/quest' + 'ions/ch00.py').close()", "FileNotFoundError"),
    "tests": ("import os\n    os.listdir('{repository}/te' + 'sts')", "FileNotFoundError"),
    "submissions": ("import os\n    os.listdir('{folder}/submissions')[0]", "Error"),
    "write": ("import torch\n    open(torch.__file__ + 'x', 'w').close()", "Read-only"),
    "delete": ("import os\n    os.remove('{folder}/victim')", "Error"),
    "environment": ("import os\n    os.environ['SECRET']", "KeyError"),
    "processes": ("import os\n    os.kill({pid}, 0)", "ProcessLookupError"),
}
"""Right only if the answer gets at something outside: what it does first, and what stops it."""


# ---- files -----------------------------------------------------------------------------------------------------------


def as_notebook(source: str) -> str:
    return notebooks.serialise(small_master(answer=source))


def edited(change: Callable[[Any], Any]) -> bytes:
    content = json.loads(as_notebook(RIGHT))
    change(content)
    return json.dumps(content).encode()


def answer_cell(content: Any) -> Any:
    return next(cell for cell in content["cells"] if cell["id"] == "ch00-q1-answer")


def without_id(cell: Any) -> Any:
    return {name: value for name, value in cell.items() if name != "id"}


FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty.ipynb is empty"),
    "garbage": (bytes(range(256)) * 9, "it is not JSON"),
    "text": (b"print(1)", "it is not JSON"),
    "deep": (b"[" * 100_000, "it is not JSON"),
    "number": (b"7", "no notebook of format 4"),
    "old format": (edited(lambda c: c.update(nbformat=3)), "no notebook of format 4"),
    "no cells": (edited(lambda c: c.update(cells={})), "no notebook of format 4"),
    "no ids, no check": (edited(lambda c: c.update(cells=[without_id(answer_cell(c))])), "has no answer cell"),
    "missing cell": (edited(lambda c: c["cells"].remove(answer_cell(c))), "none answers by defining blocks_needed"),
    "two cells": (
        edited(lambda c: c["cells"].append({**answer_cell(c), "source": WRONG})),
        "two cells ch00-q1-answer (numbers 4 and 8 of the notebook)",
    ),
    "two cells without ids": (
        edited(lambda c: [c["cells"].append({**answer_cell(c), "source": WRONG}), [x.pop("id") for x in c["cells"]]]),
        "two cells that define blocks_needed",
    ),
    "text cell": (edited(lambda c: answer_cell(c).update(cell_type="markdown")), "is no code cell"),
    "strange source": (edited(lambda c: answer_cell(c).update(source=[1, {}])), "is no code cell"),
    "long source": (edited(lambda c: answer_cell(c).update(source="x" * 10**6)), "1,000,000 characters"),
    "unknown chapter": (as_notebook(RIGHT).replace("ch00-q1", "ch99-q1").encode(), "is of ch99, which is not graded"),
    "other digits": (as_notebook(RIGHT).replace("ch00", "ch٠٠").encode(), "has no answer cell"),
    "UTF-16": (as_notebook(RIGHT).encode("utf-16"), "it is not JSON"),
    "strange cells": (edited(lambda c: c.update(cells=[1, None, [], {"id": 5}])), "has no answer cell"),
}

PLACES = {
    "link": "link.ipynb is a link",
    "folder": "folder.ipynb is a folder",
    "pipe": "pipe.ipynb is no ordinary file",
    "huge": "huge.ipynb has 210 MB",
    "dangling": "dangling.ipynb is a link",
    "linked folder": "linked folder is a link",
    "empty folder": "empty folder holds no notebook",
}

FORMULAS = ("=cmd|'calc'!A0", "+1", "-1", "@SUM(A1)")
"""Names that a spreadsheet would run."""


def make_places(submissions: Path) -> None:
    """What is no ordinary file, and learners with folders."""
    (submissions / "link.ipynb").symlink_to("/etc/passwd")
    (submissions / "folder.ipynb").mkdir()
    os.mkfifo(submissions / "pipe.ipynb")
    with open(submissions / "huge.ipynb", "wb") as file:
        file.truncate(200 << 20)
    (submissions / "dangling.ipynb").symlink_to("nowhere")
    (submissions / "linked folder").symlink_to("/etc")
    (submissions / "empty folder").mkdir()
    (submissions / "two of one").mkdir()
    (submissions / "two of one" / "00_any.ipynb").write_text(as_notebook(RIGHT))
    (submissions / "two of one" / "00_second.ipynb").write_text(as_notebook(WRONG))
    (submissions / "notes.txt").write_text("no notebook")
    (submissions / ".hidden.ipynb").write_text("{}")
