"""A filter of system calls: what a trial may not ask of the kernel, with or without namespaces, as root or not.

It closes ways around the other bounds: sockets (services listen in files, which no network namespace hides), memory
that belongs to no process (memfd, System V), namespaces in which one is root again, other people's processes.
A classic BPF program (seccomp(2)) sees the numbers of a call, not what they point to; it is inherited and stays.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

SET_SECCOMP, MODE_FILTER = 22, 2
LOAD, EQUALS, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, ERROR = 0x7FFF0000, 0x00050000
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16
"""Places in what the program is given."""
X32 = 0x40000000
"""The second set of calls of x86_64 begins here."""
NEW_NAMESPACES = 0x7E020080
"""Flags of clone(2)."""

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CLONE = {"x86_64": 56, "aarch64": 220}
CLONE3 = 435
DENIED: dict[str, dict[str, int]] = {
    "x86_64": {
        "socket": 41,
        "shmget": 29,
        "semget": 64,
        "msgget": 68,
        "ptrace": 101,
        "pivot_root": 155,
        "chroot": 161,
        "mount": 165,
        "umount2": 166,
        "mq_open": 240,
        "add_key": 248,
        "request_key": 249,
        "keyctl": 250,
        "unshare": 272,
        "perf_event_open": 298,
        "setns": 308,
        "process_vm_readv": 310,
        "process_vm_writev": 311,
        "kcmp": 312,
        "memfd_create": 319,
        "bpf": 321,
        "userfaultfd": 323,
    },
    "aarch64": {
        "umount2": 39,
        "mount": 40,
        "pivot_root": 41,
        "chroot": 51,
        "unshare": 97,
        "ptrace": 117,
        "mq_open": 180,
        "msgget": 186,
        "semget": 190,
        "shmget": 194,
        "socket": 198,
        "add_key": 217,
        "request_key": 218,
        "keyctl": 219,
        "perf_event_open": 241,
        "setns": 268,
        "process_vm_readv": 270,
        "process_vm_writev": 271,
        "kcmp": 272,
        "memfd_create": 279,
        "bpf": 280,
        "userfaultfd": 282,
    },
}
DENIED_EVERYWHERE = {
    "pidfd_send_signal": 424,
    "io_uring_setup": 425,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "pidfd_open": 434,
    "pidfd_getfd": 438,
    "mount_setattr": 442,
    "memfd_secret": 447,
}
"""Calls since Linux 5 have one number on all machines."""
ON_A_PROCESS: dict[str, dict[str, int]] = {
    "x86_64": {
        "kill": 62,
        "rt_sigqueueinfo": 129,
        "tkill": 200,
        "tgkill": 234,
        "rt_tgsigqueueinfo": 297,
        "prlimit": 302,
    },
    "aarch64": {
        "kill": 129,
        "tkill": 130,
        "tgkill": 131,
        "rt_sigqueueinfo": 138,
        "rt_tgsigqueueinfo": 240,
        "prlimit": 261,
    },
}
"""Their first argument is a process; where others are in sight, only the caller itself is allowed."""


def program(machine: str, only_itself: int = 0) -> list[tuple[int, int, int, int]]:
    """The filter: (operation, to skip if true, to skip if false, operand).

    Args:
        machine: a key of ARCHITECTURES
        only_itself: the process that may signal itself and no other; 0 where it sees no other
    """
    refuse = (RETURN, 0, 0, ERROR | errno.EPERM)
    code = [
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUALS, 1, 0, ARCHITECTURES[machine]),
        refuse,
        (LOAD, 0, 0, NUMBER),
        (AT_LEAST, 0, 1, X32),
        refuse,
        # What clone3 is asked stands in memory: as if it were unknown, and libraries go back to clone.
        (EQUALS, 0, 1, CLONE3),
        (RETURN, 0, 0, ERROR | errno.ENOSYS),
    ]
    for number in (*DENIED[machine].values(), *DENIED_EVERYWHERE.values()):
        code += [(EQUALS, 0, 1, number), refuse]
    if only_itself:
        for number in ON_A_PROCESS[machine].values():
            own = [(LOAD, 0, 0, ARGUMENTS), (EQUALS, 1, 0, only_itself), (EQUALS, 0, 1, 0)]
            code += [(EQUALS, 0, 5, number), *own, (RETURN, 0, 0, ALLOW), refuse]
    code += [(EQUALS, 0, 3, CLONE[machine]), (LOAD, 0, 0, ARGUMENTS), (ANY_BIT, 0, 1, NEW_NAMESPACES), refuse]
    return [*code, (RETURN, 0, 0, ALLOW)]


def is_available() -> bool:
    """Does this kernel filter, for this machine?"""
    if not sys.platform.startswith("linux") or os.uname().machine not in ARCHITECTURES:
        return False
    library = ctypes.CDLL(None, use_errno=True)
    # A program at no address: EFAULT from a kernel that would have read it.
    return library.prctl(SET_SECCOMP, MODE_FILTER, None, 0, 0) != 0 and ctypes.get_errno() == errno.EFAULT


def restrict(only_itself: int = 0) -> None:
    """Bind this process and all that it starts. Needs "no new privileges", or root's.

    Raises:
        OSError: the kernel takes no filter.
    """
    code = b"".join(struct.pack("=HBBI", *line) for line in program(os.uname().machine, only_itself))
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))
    if ctypes.CDLL(None, use_errno=True).prctl(SET_SECCOMP, MODE_FILTER, header, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the kernel takes no filter of system calls")
