"""Which notebooks a folder of submissions holds, and whose: files, folders and zip files, as an LMS may name them.

A file is opened by nobody's name but its own (no links) and read up to a size.
"""

from __future__ import annotations

import io
import os
import re
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

from pagedlab.errors import CourseError

MAX_BYTES = 20 << 20
MAX_FILES = 5_000
"""Files and folders of one learner that are looked at."""
MAX_NOTEBOOKS = 100
"""Of one learner."""
MAX_DEPTH = 8
NOTEBOOK = re.compile(r"\.ipynb(\.txt|\.json)?$", re.IGNORECASE)
"""Some browsers save NAME.ipynb.txt or NAME.ipynb.json."""
ARCHIVE = re.compile(r"\.zip$", re.IGNORECASE)
OF_THE_COURSE = ("chapters", "solutions", "tests")
"""Folders beside exercises/ in a whole repository, as GitHub Classroom collects it: nothing there is the learner's."""
MOODLE = re.compile(r"(?P<who>.+_\d+)_assignsubmission_[a-z]+(_.*)?", re.DOTALL)
CANVAS = re.compile(r"(?P<who>[^_]+)(_LATE)?_(?P<number>\d{3,})_\d{3,}_.+\.(ipynb|zip)", re.DOTALL | re.IGNORECASE)
"""smith_12345_678901_03.ipynb, or smith_LATE_12345_678901_03-1.ipynb: a name, the person's number, the file's."""


@dataclass(frozen=True)
class Found:
    """A notebook, or a sentence about what is none.

    Attributes:
        learner: whose it is
        name: of the file, below the learner's folder
        read: its content; raises CourseError if there is none to be had
        problem: begins after the file's name
    """

    learner: str
    name: str
    read: Callable[[], bytes] | None = None
    problem: str = ""


def listed(folder: Path) -> list[Path]:
    """What stands in the folder of submissions, by name.

    Raises:
        CourseError: the folder cannot be read.
    """
    try:
        return [path for path in sorted(folder.iterdir(), key=lambda path: path.name) if path.name[:1] != "."]
    except OSError as error:
        raise CourseError(f"{folder} cannot be read ({error.strerror}): name the folder of submissions.") from None


def handed_in(path: Path) -> list[Found]:
    """What one entry of the folder holds: one learner's work, or, if an LMS named all that is in it, that of several.

    The outermost name that an LMS gave counts, so nobody can hand in for others. Empty: it is nobody's work.
    """
    own = learner_of(path.name)
    if NOTEBOOK.search(path.name):
        return [Found(own, path.name, partial(read_bytes, path))]
    if path.is_symlink():
        return [Found(own, path.name, problem="is a link: hand in the file itself.")] if path.is_dir() else []
    if path.is_dir():
        inside = list(islice(in_folder(own, path), MAX_NOTEBOOKS))
    elif ARCHIVE.search(path.name):
        inside = list(islice(in_archive(own, path, ""), MAX_NOTEBOOKS))
    else:
        return []
    tops = {one.name.split("/")[0] for one in inside}
    if len(tops) > 1 and not from_lms(path.name) and all(map(from_lms, tops)):
        return [replace(one, learner=learner_of(one.name.split("/")[0])) for one in inside]
    return without_the_courses_own(inside) or [Found(own, path.name, problem="holds no notebook.")]


def without_the_courses_own(found: list[Found]) -> list[Found]:
    """A whole repository holds solutions beside exercises: they are not what the learner wrote."""
    roots = {f"/{one.name}".split("/exercises/")[0] for one in found if "/exercises/" in f"/{one.name}"}
    own = tuple(f"{root}/{name}/" for root in roots for name in OF_THE_COURSE)
    return [one for one in found if not f"/{one.name}".startswith(own)]


def in_folder(learner: str, folder: Path) -> Iterator[Found]:
    """Notebooks, however deep, those in zip files too; and what is wrong with the rest."""
    failed: list[OSError] = []
    seen = 0
    for parent, folders, files in os.walk(folder, onerror=failed.append):
        here = Path(parent).relative_to(folder)
        seen += len(folders) + len(files)
        if seen > MAX_FILES:
            yield Found(learner, folder.name, problem=f"holds more than {MAX_FILES:,} files: hand in notebooks only.")
            return
        links = [name for name in folders if Path(parent, name).is_symlink()]
        folders[:] = sorted(name for name in folders if name[0] != "." and name not in links)
        for name in sorted(files + links + [name for name in folders if NOTEBOOK.search(name)]):
            path, shown = Path(parent, name), (here / name).as_posix()
            if name.startswith("."):
                continue
            if NOTEBOOK.search(name):
                yield Found(learner, shown, partial(read_bytes, path))
            elif name in links:
                yield Found(learner, shown, problem="is a link: hand in the file itself.")
            elif ARCHIVE.search(name):
                yield from in_archive(learner, path, f"{shown}/")
        if len(here.parts) >= MAX_DEPTH:
            folders.clear()
    for error in failed[:1]:
        name = Path(str(error.filename)).name
        yield Found(learner, name, problem=f"cannot be read ({error.strerror}).")


def in_archive(learner: str, path: Path, before: str) -> Iterator[Found]:
    """The notebooks of a zip file, by what they are called in it."""
    name = before.rstrip("/") or path.name
    try:
        archive = zipfile.ZipFile(io.BytesIO(read_bytes(path)))
    except CourseError as error:
        yield Found(learner, name, problem=str(error))
        return
    except Exception:  # zipfile raises many kinds on what is none
        yield Found(learner, name, problem="is no zip file that can be read.")
        return
    for info in sorted(archive.infolist(), key=lambda info: info.filename):
        parts = info.filename.split("/")
        if NOTEBOOK.search(parts[-1]) and not any(part.startswith((".", "__MACOSX")) for part in parts):
            yield Found(learner, before + info.filename, partial(unpacked, archive, info))


def unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """A member's content, read in memory and no further than allowed, whatever size the archive says it has."""
    try:
        with archive.open(info) as file:
            content = file.read(MAX_BYTES + 1)
    except RuntimeError:  # it needs a password
        raise CourseError("is encrypted: hand in the notebook itself.") from None
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, ValueError):
        raise CourseError("is damaged in its zip file: hand in the notebook itself.") from None
    return checked(content, info.file_size)


def read_bytes(path: Path) -> bytes:
    """A regular file's content; no link is followed, no pipe waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        if path.is_symlink():
            raise CourseError("is a link: hand in the file itself.") from None
        raise CourseError(f"cannot be read ({error.strerror}).") from None
    try:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            raise CourseError("is a folder, no notebook.")
        if not stat.S_ISREG(found.st_mode):
            raise CourseError("is no ordinary file.")
        with os.fdopen(os.dup(descriptor), "rb") as file:
            return checked(file.read(MAX_BYTES + 1), found.st_size)
    finally:
        os.close(descriptor)


def checked(content: bytes, size: int) -> bytes:
    if len(content) > MAX_BYTES:
        raise CourseError(
            f"has {max(size, len(content)) / 1e6:.0f} MB, at most {MAX_BYTES / 1e6:.0f}: clear its outputs "
            "(jupyter nbconvert --clear-output --inplace FILE)."
        )
    if not content:
        raise CourseError("is empty.")
    return content


# ---- whose it is -----------------------------------------------------------------------------------------------------


def learner_of(name: str) -> str:
    """The name and number that an LMS put before a file's name, the same for all files of a person; else its stem."""
    if found := MOODLE.fullmatch(name):
        who = found["who"]
    elif found := CANVAS.fullmatch(name):
        who = f"{found['who']}_{found['number']}"
    else:
        who = stem(name)
    return unicodedata.normalize("NFC", who)


def stem(name: str) -> str:
    return unicodedata.normalize("NFC", ARCHIVE.sub("", NOTEBOOK.sub("", name)))


def from_lms(name: str) -> bool:
    return bool(MOODLE.fullmatch(name) or CANVAS.fullmatch(name))


COPY = re.compile(r"(?P<backup>-Copy)?(?:[-_ ]?\(|[-_ ]v?|(?<=-Copy))(?P<number>\d{1,2})\)?$", re.IGNORECASE)


def copy_number(name: str) -> int:
    """Of two files of one name the later has the greater: 1 of `03-1` and `03 (1)`, -1 of JupyterLab's `03-Copy1`."""
    found = COPY.search(stem(name))
    if not found:
        return 0
    return -int(found["number"]) if found["backup"] else int(found["number"])
