"""Show the package's own code in a notebook: always the installed lines, never a pasted copy."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from IPython.display import display

import pagedlab
from pagedlab.errors import CourseError

ROOT = Path(pagedlab.__file__).parent


def show_source(obj: Any, only: Sequence[str] | None = None) -> None:
    """Display the source of a function, class, method or module of pagedlab, with its file and lines.

    Args:
        obj: the object; or a list of them, shown one after another.
        only: for a class: the names of the methods to show, in this order; the rest is left out.

    Raises:
        CourseError: obj is not code of pagedlab, or a name in `only` is not a method of it.
    """
    if isinstance(obj, (list, tuple)):
        for one in obj:
            show_source(one, only)
        return
    if only is None:
        file, start, lines = locate(obj)
        code, where = textwrap.dedent("".join(lines)).rstrip(), f"lines {start}–{start + len(lines) - 1}"
    else:
        file, code, where = selected_methods(obj, [only] if isinstance(only, str) else only)
    caption = f"{file}, {where}"
    display({"text/plain": f"# {caption}\n{code}", "text/markdown": f"`{caption}`\n\n```python\n{code}\n```"}, raw=True)


def locate(obj: Any) -> tuple[str, int, list[str]]:
    """File relative to the package, first line, and the lines as they stand."""
    code = unwrapped(obj)
    try:
        path = Path(inspect.getsourcefile(code) or "").resolve()
        lines, start = inspect.getsourcelines(code)
    except (TypeError, OSError):
        raise CourseError(f"There is no source for {obj!r}: pass a function, class, method or module.") from None
    if not path.is_relative_to(ROOT.resolve()):
        raise CourseError(
            f"{getattr(obj, '__name__', obj)!r} is not code of pagedlab, which is what show_source shows."
        )
    return f"pagedlab/{path.relative_to(ROOT.resolve()).as_posix()}", max(start, 1), lines


def unwrapped(obj: Any) -> Any:
    """The function inside a property, a cached property, a decorator such as torch.inference_mode, a Triton kernel."""
    if isinstance(obj, property):
        return obj.fget
    if isinstance(obj, cached_property):
        return obj.func
    inner = getattr(obj, "fn", None)
    return inner if inspect.isfunction(inner) else inspect.unwrap(obj) if inspect.isfunction(obj) else obj


def selected_methods(cls: Any, names: Sequence[str]) -> tuple[str, str, str]:
    """File, the class's first line with only these methods, and their line numbers in words."""
    if not inspect.isclass(cls):
        raise CourseError("only=[...] chooses methods of a class: pass the class, or leave `only` out.")
    file, start, lines = locate(cls)
    heading = next(index for index, line in enumerate(lines) if line.lstrip().startswith("class "))
    pieces, places = [lines[heading].rstrip()], [str(start + heading)]
    for name in names:
        if name not in vars(cls):
            raise CourseError(f"{cls.__name__} defines no method {name!r}: see dir({cls.__name__}).")
        method = vars(cls)[name]
        _, first, body = locate(method.__func__ if isinstance(method, (staticmethod, classmethod)) else method)
        pieces.append("    ...\n\n" + "".join(body).rstrip())
        places.append(f"{first}–{first + len(body) - 1}")
    return file, "\n".join(pieces), f"lines {', '.join(places)}"
