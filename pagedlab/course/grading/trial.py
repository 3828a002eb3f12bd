"""One answer, tried in a process of its own: run the cells, call the driver on each case, send back what came out."""

from __future__ import annotations

import ast
import asyncio
import builtins
import contextlib
import importlib
import inspect
import json
import linecache
import os
import random
import sys
import types
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from IPython.core.inputtransformer2 import TransformerManager

from pagedlab.course.grading import codec, screen
from pagedlab.course.grading.wire import write_frame

MAX_TEXT = 2_000
"""Characters of an exception that are sent."""
ALL = -1
"""In place of a case's number: what holds for all of them."""


def run(job: dict[str, Any], descriptor: int) -> None:
    """Try an answer.

    Args:
        job: "cells" [(name, source)], the last of them the answer; "answer", its name; "drive" (module, function);
            "arguments" of each case, or None if the value that the answer is shall be sent; "given", such a value, to
            be tried in place of cells; "allowed" modules; "token", which marks the frames as ours
        descriptor: of the pipe to write frames to: {"token", "case", and "value" or "raised" or "refused"}
    """
    token = job["token"]
    # Bound now: what an answer puts into modules afterwards does not change what is called here.
    write, dumps, loads = write_frame, codec.dumps, codec.loads

    def tell(case: int, **content: Any) -> None:
        write(descriptor, {"token": token, "case": case, **content})

    drive = getattr(importlib.import_module(job["drive"][0]), job["drive"][1])
    try:
        namespace = prepared(job) if job["given"] is None else {job["answer"]: loads(job["given"])}
    except Refused as refusal:
        return tell(ALL, refused=str(refusal))
    except BaseException as error:  # the answer may raise anything, SystemExit too
        return tell(ALL, raised=described(error))
    if job["answer"] not in namespace:
        return tell(ALL, missing=True)
    if job["arguments"] is None:
        return tell(ALL, **value_of(namespace[job["answer"]], dumps))
    for number, text in enumerate(job["arguments"]):
        try:
            # A stub of a value is `...`; it is looked up each time, as check does.
            if namespace[job["answer"]] is ...:
                tell(number, missing=True)
                continue
            tell(number, value=dumps(drive(namespace[job["answer"]], *loads(text))))
        except codec.CodecError as error:
            tell(number, refused=str(error))
        except BaseException as error:
            tell(number, raised=described(error))


def value_of(answer: Any, dumps: Callable[[Any], str]) -> dict[str, Any]:
    """A frame with the value that an answer is; of a dictionary, the entries that are plain."""
    if answer is ...:
        return {"missing": True}
    plain = {}
    try:
        if type(answer) not in codec.DICTIONARIES:
            return {"value": dumps(answer)}
        for key, entry in answer.items():
            with contextlib.suppress(codec.CodecError):
                entry = list(islice(entry, codec.MAX_ITEMS)) if isinstance(entry, Iterator) else entry
                dumps([key, entry])
                plain[key] = entry
        return {"value": dumps(plain)}
    except codec.CodecError as error:
        return {"refused": str(error)}
    except BaseException as error:
        return {"raised": described(error)}


class Refused(Exception):
    """The answer is not run; the message says why."""


def prepared(job: dict[str, Any]) -> dict[str, Any]:
    """What the cells define, run one by one as in a notebook."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    namespace: dict[str, Any] = {"__name__": "__main__", "__builtins__": builtins, "get_ipython": NoMagic}
    module = type(sys)("__main__")
    module.__dict__.update(namespace)
    sys.modules["__main__"] = module
    for name, source in job["cells"]:
        if name == "answer":
            source = without_magics(source)
            for objection in screen.objections(source, job["allowed"]):
                raise Refused(objection)
            screen.guard_imports(job["allowed"])
        # inspect.getsource finds it here; Triton's decorator needs that.
        linecache.cache[f"<{name}>"] = (len(source), None, source.splitlines(keepends=True), f"<{name}>")
        run_cell(compile(source, f"<{name}>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, True), module.__dict__)
    return module.__dict__


def run_cell(code: types.CodeType, namespace: dict[str, Any]) -> None:
    """As a notebook does it: a cell may await."""
    waits = eval(code, namespace)
    if code.co_flags & inspect.CO_COROUTINE:
        asyncio.run(waits)


class NoMagic:
    """In place of IPython's shell: what magics call is there, and does nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **options: None


def without_magics(source: str) -> str:
    """An answer that is no Python because of `%timeit`, `!ls` or `torch.topk?`, made Python as IPython does it."""
    source = source.removeprefix("\ufeff")
    with contextlib.suppress(SyntaxError, ValueError):
        ast.parse(source)
        return source
    lines = source.strip().splitlines()
    while lines and (not lines[0].strip() or lines[0].startswith("%%")):  # %%time: its cell is run all the same
        del lines[0]
    try:
        return TransformerManager().transform_cell("\n".join(lines))
    except SyntaxError:  # in which compile() will say what is wrong
        return source


def described(error: BaseException) -> list[str]:
    """[type, message] of an exception, whose own code may fail in its turn."""
    try:
        message = str(error)[:MAX_TEXT]
    except BaseException:
        message = ""
    return [str(type(error).__name__)[:100], json.loads(json.dumps(message))]


def finish() -> None:
    """End at once: no atexit, no threads waited for, no buffers."""
    os._exit(0)
