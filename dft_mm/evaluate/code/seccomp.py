"""A filter of system calls, for what namespaces and limits leave open: memory that belongs to no process, other
namespaces, sockets that know no network namespace, and parts of the kernel that no test program has a use for."""

import errno
import platform
import struct
from dataclasses import dataclass

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data; low half of the argument
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_CLONE_NEWUSER = 0x10000000
_FAMILIES = (1, 2, 10, 16)  # AF_UNIX, AF_INET, AF_INET6, AF_NETLINK


@dataclass(frozen=True)
class _Machine:
    audit: int
    clone: int
    socket: int
    denied: tuple[int, ...]
    """memfd_create shmget msgget semget mq_open userfaultfd bpf perf_event_open keyctl add_key request_key ptrace
    process_vm_readv process_vm_writev unshare setns mount open_by_handle_at"""


_MACHINES = {
    "x86_64": _Machine(
        0xC000003E, 56, 41, (319, 29, 68, 64, 240, 323, 321, 298, 250, 248, 249, 101, 310, 311, 272, 308, 165, 304)
    ),
    "aarch64": _Machine(
        0xC00000B7, 220, 198, (279, 194, 186, 190, 180, 282, 280, 241, 219, 217, 218, 117, 270, 271, 97, 268, 40, 265)
    ),
}
# The same on both: memfd_secret, pidfd_getfd are denied; io_uring_setup and clone3 are "not there", so that
# libraries take the older way, whose arguments a filter can read.
_DENIED_EVERYWHERE = (447, 438)
_ABSENT = (425, 435)


def filter_program(machine: str | None = None) -> bytes | None:
    """Compiled for `bwrap --seccomp`; None for a machine whose numbers are not known here."""
    known = _MACHINES.get(machine or platform.machine())
    if known is None:
        return None
    steps: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, known.audit),
        _refuse(errno.ENOSYS),  # 32-bit programs
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, 0x40000000),
        _refuse(errno.ENOSYS),  # the x32 numbers
    ]
    for numbers, error in ((known.denied + _DENIED_EVERYWHERE, errno.EPERM), (_ABSENT, errno.ENOSYS)):
        for number in numbers:
            steps += [(_EQUAL, 0, 1, number), _refuse(error)]
    steps += [
        (_EQUAL, 0, 4, known.clone),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_ANY_BIT, 0, 1, _CLONE_NEWUSER),
        _refuse(errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
        (_EQUAL, 0, len(_FAMILIES) + 2, known.socket),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        *((_EQUAL, len(_FAMILIES) - place, 0, family) for place, family in enumerate(_FAMILIES)),
        _refuse(errno.EAFNOSUPPORT),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def _refuse(error: int) -> tuple[int, int, int, int]:
    return (_RETURN, 0, 0, _ERRNO | error)
