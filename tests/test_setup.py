"""From a clone to the course: the package lists agree, make does each thing once, and fails with a sentence."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA_NAMES = {"pytorch": "torch"}
"""conda-forge's name -> the package index's name, where they differ."""


def project_requirements() -> dict[str, Requirement]:
    """Every requirement of pyproject.toml, extras included, under its normalised name."""
    lines = PROJECT["dependencies"] + [line for extra in PROJECT["optional-dependencies"].values() for line in extra]
    requirements = [Requirement(line) for line in lines]
    return {canonicalize_name(r.name): r for r in requirements if r.name != "pagedlab"}


def constraints() -> dict[str, str]:
    """Pinned package -> version."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def closure() -> dict[str, str]:
    """Every installed package that pagedlab with its extras needs, directly or through another -> version."""
    found: dict[str, str] = {}
    queue = [(requirement.name, requirement.extras) for requirement in project_requirements().values()]
    seen = set()
    while queue:
        name, extras = queue.pop()
        if (key := (canonicalize_name(name), frozenset(extras))) in seen:
            continue
        seen.add(key)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of another platform
        found[canonicalize_name(name)] = distribution.version
        for requirement in map(Requirement, distribution.requires or []):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                queue.append((requirement.name, requirement.extras))
    return found


# ---- the package lists ----------------------------------------------------------------------------------------------


def test_the_ranges_are_the_documented_ones() -> None:
    requirements = project_requirements()
    assert PROJECT["requires-python"] == ">=3.11"
    assert {name: str(requirements[name].specifier) for name in ("torch", "transformers", "triton")} == {
        "torch": ">=2.11",
        "transformers": ">=5.17",
        "triton": ">=3.6",
    }
    marker = requirements["triton"].marker
    assert marker is not None
    assert marker.evaluate({"sys_platform": "linux"}) and not marker.evaluate({"sys_platform": "darwin"})


def test_constraints_pin_every_package_that_the_tests_run_with() -> None:
    pinned = constraints()
    assert pinned["torch"] == "2.13.0"
    assert sorted(closure().keys() - pinned.keys() - nvidia_packages()) == []


def nvidia_packages() -> set[str]:
    """What a CUDA build of torch pins for itself, to the exact version."""
    return {name for name in closure() if name.startswith(("nvidia-", "cuda-"))}


def test_constraints_lie_within_the_ranges_of_pyproject() -> None:
    pinned = constraints()
    outside = [
        f"{name}=={pinned.get(name)} not in {requirement.specifier}"
        for name, requirement in project_requirements().items()
        if name not in pinned or not requirement.specifier.contains(pinned[name])
    ]
    assert outside == []


def test_constraints_are_exact_versions_that_any_index_can_have() -> None:
    for name, version in constraints().items():
        assert Version(version).local is None, f"{name}=={version}: a local version exists on one index only"


@pytest.mark.skipif(
    not list(Path(sys.prefix).glob(".installed-*")), reason="this environment was not made by make setup"
)
def test_make_setup_installed_the_pinned_versions() -> None:
    pinned = constraints()
    other = {name: version for name, version in closure().items() if Version(version).public != pinned.get(name)}
    assert other.keys() <= nvidia_packages()


def conda_requirements() -> dict[str, Requirement]:
    content = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    lines = [line for line in content if isinstance(line, str)]
    lines += [line for block in content if isinstance(block, dict) for line in block["pip"] if line != "-e ."]
    requirements = [Requirement(line) for line in lines]
    return {canonicalize_name(CONDA_NAMES.get(r.name, r.name)): r for r in requirements}


def test_environment_yml_and_pyproject_name_the_same_packages_and_versions() -> None:
    conda = {name: str(requirement.specifier) for name, requirement in conda_requirements().items()}
    assert conda.pop("python") == PROJECT["requires-python"]
    assert conda.pop("pip") == ""
    assert conda == {name: str(requirement.specifier) for name, requirement in project_requirements().items()}


def test_environment_yml_works_on_macos_where_triton_does_not_exist() -> None:
    content = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert not any(isinstance(line, str) and "triton" in line for line in content["dependencies"])
    marker = conda_requirements()["triton"].marker
    assert marker is not None and not marker.evaluate({"sys_platform": "darwin"})


def test_licences_are_there() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text() and "Version 2.0" in (ROOT / "LICENSE").read_text()
    assert "creativecommons.org/licenses/by/4.0" in (ROOT / "chapters" / "LICENSE").read_text()


# ---- make -----------------------------------------------------------------------------------------------------------

FAKE_PYTHON = """#!/bin/sh
# A Python that is new enough, makes an environment out of copies of itself, and writes down what it is asked to do.
echo "$(basename "$0") $*" >> "$LOG"
case "$*" in
  "-m venv"*)
    mkdir -p .venv/bin
    for tool in python pagedlab jupyter ruff mypy pytest; do cp "$FAKE" .venv/bin/$tool; done;;
  *"pip install"*) exit ${PIP_STATUS:-0};;
esac
exit 0
"""


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that make reads, with an interpreter that only takes notes."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    fake = tmp_path / "fakepython"
    fake.write_text(FAKE_PYTHON)
    fake.chmod(fake.stat().st_mode | stat.S_IEXEC)
    (tmp_path / "log").touch()
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    monkeypatch.setenv("FAKE", str(fake))
    monkeypatch.delenv("MAKEFLAGS", raising=False)
    monkeypatch.delenv("MAKELEVEL", raising=False)
    return tmp_path


def make(clone: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "PYTHON=./fakepython", *arguments]
    return subprocess.run(command, cwd=clone, capture_output=True, text=True)


def installs(clone: Path) -> int:
    return (clone / "log").read_text().count("pip install")


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@needs_make
def test_a_second_run_installs_nothing_and_a_changed_pin_installs_again(clone: Path) -> None:
    assert make(clone, "setup").returncode == 0
    assert make(clone, "setup").returncode == 0
    assert installs(clone) == 1
    (clone / "constraints.txt").touch()
    make(clone, "setup")
    assert installs(clone) == 1
    with (clone / "constraints.txt").open("a") as file:
        file.write("something==1\n")
    make(clone, "setup")
    assert installs(clone) == 2


@needs_make
def test_an_install_that_failed_is_tried_again(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_STATUS", "1")
    failed = make(clone, "setup")
    assert failed.returncode != 0 and "check network and disk" in failed.stdout
    monkeypatch.setenv("PIP_STATUS", "0")
    assert make(clone, "setup").returncode == 0
    assert installs(clone) == 2


@needs_make
def test_lab_sets_up_checks_shows_and_opens_in_this_order(clone: Path) -> None:
    assert make(clone, "lab", "LAB_ARGS=--no-browser", "PIP_ARGS=--proxy somewhere").returncode == 0
    notes = (clone / "log").read_text()
    steps = [
        "-m venv",
        "--proxy somewhere",
        "pagedlab models --fetch",
        "pagedlab doctor",
        "pagedlab demo --short",
        "jupyter lab",
    ]
    positions = [notes.index(step) for step in steps]
    assert positions == sorted(positions)
    assert "chapters" in notes.splitlines()[-1] and "--no-browser" in notes.splitlines()[-1]


@needs_make
def test_demo_is_lab_without_jupyter(clone: Path) -> None:
    make(clone, "lab")
    lab = (clone / "log").read_text().splitlines()
    shutil.rmtree(clone / ".venv")
    (clone / "log").write_text("")
    make(clone, "demo")
    assert (clone / "log").read_text().splitlines() == lab[:-1]


@needs_make
def test_test_runs_lint_types_tests_and_every_notebook(clone: Path) -> None:
    for folder in ("chapters", "exercises/a"):
        (clone / folder).mkdir(parents=True)
        (clone / folder / "one.ipynb").touch()
    assert make(clone, "test").returncode == 0
    notes = (clone / "log").read_text()
    for step in (
        "check .",
        "format --check .",
        "pagedlab",
        "--nbval-lax",
        "chapters/one.ipynb",
        "exercises/a/one.ipynb",
    ):
        assert step in notes


@needs_make
def test_test_succeeds_before_there_is_any_notebook(clone: Path) -> None:
    result = make(clone, "test")
    assert result.returncode == 0 and "no notebooks" in result.stdout
    assert "nbval" not in (clone / "log").read_text()


@needs_make
@pytest.mark.parametrize(
    "arguments, said",
    [
        (["PYTHON=false"], "needs Python 3.11 or newer"),
        (["NEEDED_MB=999999999"], "MB of disk"),
    ],
)
def test_what_is_missing_is_said_in_one_sentence(clone: Path, arguments: list[str], said: str) -> None:
    result = make(clone, "setup", *arguments)
    assert result.returncode != 0
    lines = [line for line in result.stdout.splitlines() if line]
    assert len(lines) == 1 and said in lines[0]
    assert installs(clone) == 0


@needs_make
def test_a_missing_venv_module_is_said(clone: Path) -> None:
    fake = clone / "fakepython"
    fake.write_text(FAKE_PYTHON.replace("case", 'case "$*" in "-m venv"*) exit 1;; esac\ncase', 1))
    result = make(clone, "setup")
    assert result.returncode != 0 and "install its venv module" in result.stdout


@needs_make
def test_bare_make_explains_the_targets(clone: Path) -> None:
    printed = make(clone).stdout
    for target in ("make lab", "make demo", "make setup", "make test", "LAB_ARGS", "PIP_ARGS"):
        assert target in printed
    assert (clone / "log").read_text() == ""


def test_the_makefile_uses_nothing_newer_than_macos_make() -> None:
    """Make 3.81 has no .ONESHELL, ::=, != assignment, grouped targets (&:) or $(file)."""
    text = (ROOT / "Makefile").read_text()
    for feature in (r"^\.ONESHELL", r"::=", r"^\w+\s*!=", r"&:", r"\$\(file", r"\$\(intcmp", r"\$\(let"):
        assert not re.search(feature, text, re.MULTILINE), feature


def test_ci_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n") and "set -euo pipefail" in text
    assert text.rstrip().endswith("make test")
