"""What the reader has solved so far: a small JSON file under PAGEDLAB_HOME (default ~/.cache/pagedlab).

It is written only with a reader in front, so that running the notebooks in tests changes nothing. A file that cannot be
read is set aside, never overwritten.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from pagedlab.course.questions import Question
from pagedlab.model_authoring.models.provision import pagedlab_home
from pagedlab.visualize.widgets import has_frontend

FILE = "progress.json"
BAR_WIDTH = 20

session: dict[str, int] = {}
"""Best points of this kernel, by question id."""


def progress_path() -> Path:
    return pagedlab_home() / FILE


def record(question: Question, points: int) -> dict[str, int]:
    """Note a result, keeping the best of each question. Returns the best points so far by question id.

    A disk that refuses costs the memory of it, not the lesson.
    """
    session[question.id] = max(points, session.get(question.id, 0))
    if not has_frontend():
        return dict(session)
    path = progress_path()
    try:
        best = load(path)
        for identifier, known in session.items():
            best[identifier] = max(known, best.get(identifier, 0))
        save(path, best)
    except OSError:
        return dict(session)
    return best


def load(path: Path) -> dict[str, int]:
    """Points by question id. A file with anything else in it is renamed to progress.json.unreadable-1, -2 ..."""
    if not path.exists():
        return {}
    try:
        best = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(best, dict) and all(type(points) is int for points in best.values()):
            return best
    except ValueError:  # no JSON, no UTF-8
        pass
    number = 1
    while (aside := path.with_name(f"{FILE}.unreadable-{number}")).exists():
        number += 1
    path.rename(aside)
    return {}


def save(path: Path, best: dict[str, int]) -> None:
    """Replace the file by one rename: an interrupted write leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{FILE}.{os.getpid()}.tmp")
    try:
        draft.write_text(json.dumps(best, indent=1, sort_keys=True), encoding="utf-8")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def bar(questions: list[Question], best: dict[str, int]) -> str:
    """'ch00 ██████████░░░░░░░░░░ 1 of 2 points, best so far'."""
    total = sum(question.points for question in questions)
    earned = sum(min(best.get(question.id, 0), question.points) for question in questions)
    filled = round(BAR_WIDTH * earned / total)
    chapter = questions[0].id.split(".")[0]
    return f"{chapter} {'█' * filled}{'░' * (BAR_WIDTH - filled)} {earned} of {total} points, best so far"
