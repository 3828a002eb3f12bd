"""What every benchmark says of itself: device, versions, date, and the spread over its rounds."""

from __future__ import annotations

import datetime
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import torch

from pagedlab.errors import ConfigError


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """The machine and the software that a number was measured on."""
    device = torch.device(device)
    packages = {}
    for name in ("torch", "triton", "transformers", "numpy"):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = "absent"
    on_gpu = device.type == "cuda"
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if on_gpu else f"CPU {torch.backends.cpu.get_cpu_capability()}",
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "packages": packages,
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and most of the rounds."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def ratios(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Spread of ours / theirs, round by round, so that a drift of the machine's speed cancels out."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def show(values: dict[str, float], digits: int = 2) -> str:
    """`median (min-max)`."""
    return f"{values['median']:.{digits}f} ({values['min']:.{digits}f}-{values['max']:.{digits}f})"


def check_writable(*paths: Path | None) -> None:
    """Can these files be written? Asked before minutes of measuring, not after. Creates their folders.

    Raises:
        ConfigError: one cannot.
    """
    for path in paths:
        if path is None:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            writable = not path.is_dir() and os.access(path if path.exists() else path.parent, os.W_OK)
        except OSError:
            writable = False
        if not writable:
            raise ConfigError(f"{path} cannot be written: name a file in a folder that you may write to.")


def write_json(path: str | Path, result: dict[str, Any]) -> Path:
    """Write a result, creating folders. Who is ended while writing leaves the file as it was, not half of a new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=2) + "\n"
    if path.exists() and not path.is_file():  # /dev/stdout
        path.write_text(text)
        return path
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)
    return path
