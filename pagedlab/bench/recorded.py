"""Measurements that come with the package, found by what was measured and where; each says its device and its date."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib import resources
from typing import Any

from pagedlab.errors import PagedlabError

NAME = re.compile(r"(?P<kind>[a-z0-9-]+?)-(?P<place>h100|h200|cpu-[a-z0-9]+)-(?P<date>\d{4}-\d\d-\d\d)\.json")
"""offline-h100-2026-11-24.json: what, where, when."""


@dataclass(frozen=True)
class Recorded:
    """One file of pagedlab/bench/results.

    Attributes:
        kind: decode, kernels, offline, chunked-prefill
        place: h100, h200, cpu-float32 ...
        data: as the benchmark wrote it
    """

    kind: str
    place: str
    file: str
    data: dict[str, Any]

    @property
    def about(self) -> dict[str, Any]:
        """Device, date and versions, under one name each whatever benchmark wrote them."""
        about = self.data.get("environment") or self.data["about"]
        return {**about.get("packages", about), "device": about["device"], "date": about["date"][:10]}

    @property
    def caption(self) -> str:
        """For a picture's title: "NVIDIA H100 80GB HBM3, 2026-11-24"."""
        return f"{self.about['device']}, {self.about['date']}"


def everything() -> list[Recorded]:
    """Every recorded measurement, by kind, place and date."""
    found = []
    for entry in sorted((resources.files("pagedlab.bench") / "results").iterdir(), key=lambda entry: entry.name):
        name = NAME.fullmatch(entry.name)
        if name:
            data = json.loads(entry.read_text(encoding="utf-8"))
            found.append(Recorded(name["kind"], name["place"], entry.name, data))
    return found


def recorded(kind: str, place: str) -> Recorded:
    """The newest measurement of this kind on this device.

    Raises:
        PagedlabError: none is recorded.
    """
    found = [one for one in everything() if (one.kind, one.place) == (kind, place)]
    if not found:
        known = ", ".join(sorted({f"{one.kind} on {one.place}" for one in everything()})) or "nothing"
        raise PagedlabError(f"No measurement of {kind!r} on {place!r} is recorded yet; recorded are: {known}.")
    return found[-1]
