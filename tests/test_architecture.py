"""The shape of the package: imports point one way, and public names load lazily."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pagedlab

PACKAGE = Path(pagedlab.__file__).parent
SHARED = {"config", "errors", "sampling_params", "trace"}
"""Modules at the top that every layer may use; they use none."""

MAY_IMPORT = {
    "basics": set(),
    "runtime": {"basics"},
    "model_authoring": {"runtime", "basics"},
    "interfaces": {"model_authoring", "runtime", "basics"},
    "simulate": {"model_authoring", "runtime", "basics"},
    "visualize": {"simulate", "interfaces", "model_authoring", "runtime", "basics"},
    "course": {"visualize", "simulate", "interfaces", "model_authoring", "runtime", "basics"},
    "bench": {"visualize", "simulate", "interfaces", "model_authoring", "runtime", "basics"},
}
COMMAND_LINE = {"cli.py"}
"""The one file of a layer that may reach up, to what its subcommands run."""


def imported_parts(path: Path) -> set[str]:
    """First name below `pagedlab` of everything that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names = [node.module or ""]
            if node.module == "pagedlab":
                names = [f"pagedlab.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("pagedlab.")}
    return found


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE)


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_imports_point_one_way(path: Path) -> None:
    layer = path.relative_to(PACKAGE).parts[0]
    allowed = MAY_IMPORT[layer] | {layer} | SHARED
    if path.name in COMMAND_LINE:
        allowed |= {"bench", "course", "__version__"}
    above = imported_parts(path) - allowed
    assert not above, f"{layer} imports {', '.join(sorted(above))}, which stand above it"


@pytest.mark.parametrize("name", sorted(SHARED))
def test_shared_modules_stand_below_every_layer(name: str) -> None:
    assert imported_parts(PACKAGE / f"{name}.py") <= SHARED


def test_every_public_name_loads() -> None:
    for name in pagedlab.__all__:
        assert getattr(pagedlab, name).__name__ == name


def test_importing_the_package_and_asking_for_help_load_no_torch() -> None:
    code = (
        "import sys, pagedlab, pagedlab.interfaces.cli as cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_no_file_reads_pickles_or_runs_remote_code() -> None:
    """safetensors only: a pickle in a checkpoint could run anything. Readers' answers run in one place, isolated."""
    for path in PACKAGE.rglob("*.py"):
        calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
        allowed = {"eval"} if path.relative_to(PACKAGE) == Path("course/grading/trial.py") else set()
        assert not calls & {"torch.load", "pickle.load", "pickle.loads", "eval", "exec"} - allowed, path
        assert "trust_remote_code=True" not in path.read_text(), path
