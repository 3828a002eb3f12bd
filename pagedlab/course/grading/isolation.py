"""Namespaces: no network, nobody else's processes, a file system that is read-only and without what is to be hidden.

Linux only, and only where the kernel lets this user: each step that is refused is named, and the others still hold.
The server shuts itself off once, with `shut_off`; every trial then has processes and a workspace of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pagedlab.course.grading import syscalls

NEW_MOUNTS, NEW_UTS, NEW_IPC, NEW_USER, NEW_PIDS, NEW_NET = (
    0x00020000,
    0x04000000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
READ_ONLY, NO_SUID, NO_DEVICES, NO_EXEC, BIND, RECURSIVE, PRIVATE = 1, 2, 4, 8, 4096, 16384, 1 << 18
DETACH = 2
AT_FDCWD, AT_RECURSIVE, SYS_MOUNT_SETATTR = -100, 0x8000, 442
SET_DEATH_SIGNAL, SET_DUMPABLE, DROP_FROM_BOUNDING_SET, SET_CHILD_SUBREAPER, SET_NO_NEW_PRIVILEGES = 1, 4, 24, 36, 38
SYS_CAPSET = {"x86_64": 126, "aarch64": 91}
CAPABILITY_VERSION = 0x20080522
FIRST_TRIAL_USER, TRIAL_USERS = 60_000, 5_000
"""Users that exist nowhere: a trial of root's runs as one of them."""


def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def call(function: str, *arguments: object) -> None:
    """A C function that says 0 if all is well; else OSError."""
    if getattr(libc(), function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")


def mount(source: str, target: Path | str, kind: str = "", flags: int = 0, options: str = "") -> None:
    strings = [text.encode() or None for text in (source, str(target), kind)]
    call("mount", *strings, ctypes.c_ulong(flags), options.encode() or None)


# ---- the server, once ------------------------------------------------------------------------------------------------


@dataclass
class Shell:
    """What a server has around it.

    Attributes:
        has_namespaces: trials can have processes and mounts of their own
        may_change_user: a trial of root's may run as nobody, and still read Python's files
        has_filter: the kernel filters a trial's system calls
        missing: what could not be done, in a few words each
    """

    has_namespaces: bool = False
    may_change_user: bool = False
    has_filter: bool = False
    missing: list[str] = field(default_factory=list)


def shut_off(hidden: Sequence[Path], needed: Sequence[Path], workspace: Path, use_namespaces: bool = True) -> Shell:
    """Take namespaces, hide directories, make the rest read-only.

    Args:
        hidden: directories that become empty
        needed: directories, perhaps inside hidden ones, that stay
        workspace: where a trial gets memory to write to (`own_workspace`)
    """
    if not sys.platform.startswith("linux"):
        return Shell(missing=["network", "other processes", "files"])
    shell = Shell(has_filter=syscalls.is_available())
    if not shell.has_filter:
        shell.missing.append("system calls (the kernel takes no filter)")
    refused = take_namespaces() if use_namespaces else "not asked for"
    if refused:
        lost = "files, sight of other processes" if shell.has_filter else "network, other processes, files"
        shell.missing.append(f"{lost} ({refused})")
        hide_memory()
    else:
        shell.has_namespaces = True
        try:
            shell.missing += cover([*hidden, workspace], needed, workspace)
        except OSError as error:
            shell.missing.append(f"files ({error.strerror})")
    if os.geteuid() == 0:
        shell.may_change_user = all(readable_by_all(path) for path in needed)
        if not shell.may_change_user:
            shell.missing.append("number of processes (root owns Python's files: grade as an ordinary user)")
    return shell


def cover(hidden: Sequence[Path], needed: Sequence[Path], workspace: Path) -> list[str]:
    mount("none", "/", flags=RECURSIVE | PRIVATE)
    missing = [] if make_read_only(Path("/"), recursive=True) else ["files that this user may write"]
    covered = []
    for directory, kept in veils(hidden, needed):
        veil(directory, kept)
        covered.append(directory)
    workspace.mkdir(parents=True, exist_ok=True)
    for directory in covered:
        make_read_only(directory)
    return missing


def readable_by_all(path: Path) -> bool:
    return all(place.stat().st_mode & 0o001 for place in (path, *path.parents)) and bool(path.stat().st_mode & 0o004)


def take_namespaces() -> str:
    """ "" or why the kernel refuses. Root needs no user namespace; where root has lost its power, one may help."""
    spaces = NEW_MOUNTS | NEW_NET | NEW_IPC | NEW_UTS
    user, group = os.geteuid(), os.getegid()
    reason = ""
    for flags in [spaces] * (user == 0) + [spaces | NEW_USER]:
        try:
            call("unshare", flags)
            if flags & NEW_USER:
                with contextlib.suppress(OSError):
                    Path("/proc/self/setgroups").write_text("deny")
                Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
                Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
            return ""
        except OSError as error:
            reason = error.strerror or str(error)
    return reason


def make_read_only(path: Path, recursive: bool = False) -> bool:
    attributes = struct.pack("=QQQQ", READ_ONLY | NO_SUID, 0, 0, 0)
    flags = AT_RECURSIVE if recursive else 0
    result = libc().syscall(
        ctypes.c_long(SYS_MOUNT_SETATTR),
        ctypes.c_int(AT_FDCWD),
        str(path).encode(),
        ctypes.c_uint(flags),
        attributes,
        ctypes.c_size_t(len(attributes)),
    )
    return result == 0


def veils(hidden: Iterable[Path], needed: Sequence[Path]) -> Iterator[tuple[Path, list[Path]]]:
    """Which directories to cover, outermost first, and what to keep of each: none lies in one that is covered whole."""
    covered: list[tuple[Path, list[Path]]] = []
    for directory in sorted({path.resolve() for path in hidden if path.is_dir()}, key=lambda path: len(path.parts)):
        around = [kept for outer, kept in covered if directory.is_relative_to(outer)]
        if around and not any(directory.is_relative_to(path) for path in around[-1]):
            continue  # gone already
        inside = [path for path in needed if path.is_relative_to(directory)]
        kept = [path for path in inside if not any(path != other and path.is_relative_to(other) for other in inside)]
        if directory in kept or directory == Path("/"):
            continue  # cannot be hidden: everything in it is needed
        covered.append((directory, kept))
        yield directory, kept


def veil(directory: Path, kept: Sequence[Path]) -> None:
    """Cover a directory with an empty one that holds nothing but what is kept of it."""
    doors = [(path, os.open(path, os.O_PATH | os.O_DIRECTORY)) for path in kept]
    mount("tmpfs", directory, "tmpfs", NO_SUID | NO_DEVICES, "mode=755,size=1m")
    try:
        for path, door in doors:
            path.mkdir(parents=True, exist_ok=True)
            mount(f"/proc/self/fd/{door}", path, flags=BIND | RECURSIVE)
    except OSError:
        call("umount2", str(directory).encode(), DETACH)
        raise
    finally:
        for _path, door in doors:
            os.close(door)


# ---- each trial ------------------------------------------------------------------------------------------------------


def own_processes() -> None:
    """The next child of this process sees itself and its own children, and all of them end with it."""
    call("unshare", NEW_PIDS | NEW_MOUNTS | NEW_IPC)


def own_workspace(workspace: Path, megabytes: int) -> None:
    """Memory to write to, gone with the trial; and /proc without anybody else's processes."""
    mount("tmpfs", workspace, "tmpfs", NO_SUID | NO_DEVICES, f"mode=1777,size={megabytes}m,nr_inodes=10k")
    try:
        mount("proc", "/proc", "proc", NO_SUID | NO_DEVICES | NO_EXEC)
    except OSError:  # refused where /proc is partly covered, as in some containers: then there is none
        mount("tmpfs", "/proc", "tmpfs", NO_SUID | NO_DEVICES | READ_ONLY, "mode=555,size=4k")


def drop_privileges(change_user: bool) -> None:
    """Never more rights than now, none of root's; with `change_user`, as a user who owns nothing."""
    if not sys.platform.startswith("linux"):
        return
    if change_user:
        user = FIRST_TRIAL_USER + int.from_bytes(os.urandom(4), "big") % TRIAL_USERS
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    for capability in range(64):
        libc().prctl(DROP_FROM_BOUNDING_SET, capability, 0, 0, 0)
    number = SYS_CAPSET.get(os.uname().machine)
    if number is not None:
        header, nothing = struct.pack("=II", CAPABILITY_VERSION, 0), bytes(24)
        libc().syscall(ctypes.c_long(number), header, nothing)
    libc().prctl(SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0)


def hide_memory() -> None:
    """Other processes of this user may not look into this one, nor write there. Its children inherit that."""
    if sys.platform.startswith("linux"):
        libc().prctl(SET_DUMPABLE, 0, 0, 0, 0)


def be_ended_first() -> None:
    """When the machine has no memory left, the kernel ends this process before others."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def become_reaper() -> None:
    """What a child leaves running becomes this process's child, so that it is found and ended."""
    if sys.platform.startswith("linux"):
        libc().prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent(signal_number: int) -> None:
    if sys.platform.startswith("linux"):
        libc().prctl(SET_DEATH_SIGNAL, signal_number, 0, 0, 0)
