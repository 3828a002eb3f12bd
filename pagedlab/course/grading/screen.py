"""What an answer may not name: pagedlab's own modules beyond what its question allows, and ways around that.

A fence that says where the line is, and no wall: isolation keeps secrets, this keeps honest answers honest.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator, Sequence
from typing import Any

FORBIDDEN_MODULES = ("importlib", "pkgutil", "runpy", "imp", "zipimport", "gc", "inspect", "ctypes", "builtins")
FORBIDDEN_NAMES = ("__import__", "__loader__", "__spec__", "__builtins__")
FORBIDDEN_ATTRIBUTES = (
    "__globals__",
    "__subclasses__",
    "__builtins__",
    "__closure__",
    "__loader__",
    "__spec__",
    "f_globals",
    "f_back",
    "tb_frame",
    "_getframe",
)
HELPERS = ("check", "hint")
MASTERS = re.compile(r"(^|[/\\])solutions([/\\]|$)|course[./\\]questions|tests[./\\]answers")


def objections(source: str, allowed: Sequence[str]) -> Iterator[str]:
    """Why an answer is not run, one sentence each; nothing for most.

    Args:
        source: of the answer cell, which parses
        allowed: modules of pagedlab that it may import, with everything below them
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from objection_to_import(alias.name, (), allowed)
        elif isinstance(node, ast.ImportFrom):
            yield from objection_to_import(node.module or "", [alias.name for alias in node.names], allowed)
        elif isinstance(node, ast.Name) and node.id in FORBIDDEN_NAMES:
            yield f"The answer uses {node.id}: import what you need at its top."
        elif isinstance(node, ast.Attribute):
            if node.attr in FORBIDDEN_ATTRIBUTES or ast.unparse(node) == "sys.modules":
                yield f"The answer uses {node.attr}: it may work on its arguments only."
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and MASTERS.search(node.value[:200]):
            yield f"The answer names {node.value[:60]!r}, where solutions are: it may work on its arguments only."


def objection_to_import(module: str, names: Sequence[str], allowed: Sequence[str]) -> Iterator[str]:
    top = module.split(".")[0]
    if top in FORBIDDEN_MODULES:
        yield f"The answer imports {module}: it may use torch, NumPy and the standard library's other modules."
    if module == "sys" and "modules" in names:
        yield "The answer imports sys.modules: it may work on its arguments only."
    if module == "pagedlab.course" and names and all(name in HELPERS for name in names):
        return
    if top != "pagedlab":
        return
    wanted = [f"{module}.{name}" for name in names] or [module]
    for name in wanted:
        if not is_allowed(name, allowed) and not is_allowed(module, allowed):
            yield f"The answer imports {name} of pagedlab: write it yourself, that is the question."


def is_allowed(module: str, allowed: Sequence[str]) -> bool:
    return any(module == one or module.startswith(f"{one}.") for one in allowed)


def guard_imports(allowed: Sequence[str]) -> None:
    """From here on, code that is not pagedlab's own cannot `import` what is not allowed, however it spells it."""
    real_import = builtins.__import__

    def guarded(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        importer = str((globals or {}).get("__name__", ""))
        if name.split(".")[0] == "pagedlab" and importer.split(".")[0] != "pagedlab":
            for problem in objection_to_import(name, list(fromlist or ()), allowed):
                raise ImportError(problem)
        return real_import(name, globals, locals, fromlist, level)

    builtins.__import__ = guarded
