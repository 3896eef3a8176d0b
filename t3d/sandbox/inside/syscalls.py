"""What the kernel refuses a program, by a filter of system calls (seccomp): ways around the namespaces.

Part of the script confine.py. Sockets of other families than the network namespace holds (AF_VSOCK reaches the host of
a virtual machine), keyrings, namespaces of its own with new rights, memory that belongs to no process, and io_uring,
which does what no filter sees.
"""

from __future__ import annotations

import ctypes
import errno
import os
from dataclasses import dataclass

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2  # linux/prctl.h, linux/seccomp.h
ALLOW, REFUSE = 0x7FFF0000, 0x00050000
LOAD, RETURN, IF_EQUAL, IF_BITS, IF_AT_LEAST = 0x20, 0x06, 0x15, 0x45, 0x35  # linux/bpf_common.h
NUMBER, MACHINE, ARGUMENT = 0, 4, 16
"""Offsets in struct seccomp_data; of the first argument its lower half."""
FIRST_X32_CALL = 0x40000000
CLONE_NEWUSER = 0x10000000
FAMILIES = (1, 2, 10, 16)
"""AF_UNIX, AF_INET, AF_INET6 and AF_NETLINK, which namespaces keep apart."""
ABSENT = (425, 426, 427, 435, 447)
"""io_uring_setup, _enter and _register, clone3 (the C library goes on with clone), memfd_secret: on every machine."""

Instruction = tuple[int, int, int, int]
"""Code, how many instructions to skip if true and if false, operand: struct sock_filter."""


@dataclass(frozen=True)
class Machine:
    """Numbers of a processor's system calls.

    Attributes:
        audit: AUDIT_ARCH of linux/audit.h.
        socket, clone: their first argument decides.
        refused: unshare, setns, memfd_create, add_key, request_key, keyctl.
    """

    audit: int
    socket: int
    clone: int
    refused: tuple[int, ...]


MACHINES = {
    "x86_64": Machine(0xC000003E, 41, 56, (272, 308, 319, 248, 249, 250)),
    "aarch64": Machine(0xC00000B7, 198, 220, (97, 268, 279, 217, 218, 219)),
}


def refuse_ways_around() -> None:
    """Install the filter for this process and those that it starts; it cannot be taken off.

    Raises:
        OSError: a processor whose numbers are not known, or a kernel without filters.
    """
    if os.uname().machine not in MACHINES:
        raise OSError(errno.ENOSYS, f"no filter of system calls for {os.uname().machine}")
    packed = b"".join(_packed(each) for each in instructions(MACHINES[os.uname().machine]))
    buffer = ctypes.create_string_buffer(packed, len(packed))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    program = Program(len(packed) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no filter of system calls")


def instructions(machine: Machine) -> list[Instruction]:
    """The filter, for the kernel's interpreter."""
    filter_: list[Instruction] = [(LOAD, 0, 0, MACHINE), (IF_EQUAL, 1, 0, machine.audit), _refuse(errno.ENOSYS)]
    filter_ += [(LOAD, 0, 0, NUMBER), (IF_AT_LEAST, 0, 1, FIRST_X32_CALL), _refuse(errno.ENOSYS)]
    for number in machine.refused:
        filter_ += [(IF_EQUAL, 0, 1, number), _refuse(errno.EPERM)]
    for number in ABSENT:
        filter_ += [(IF_EQUAL, 0, 1, number), _refuse(errno.ENOSYS)]
    filter_ += [(IF_EQUAL, 0, 4, machine.clone), (LOAD, 0, 0, ARGUMENT), (IF_BITS, 0, 1, CLONE_NEWUSER)]
    filter_ += [_refuse(errno.EPERM), (RETURN, 0, 0, ALLOW)]
    filter_ += [(IF_EQUAL, 1, 0, machine.socket), (RETURN, 0, 0, ALLOW), (LOAD, 0, 0, ARGUMENT)]
    for family in FAMILIES:
        filter_ += [(IF_EQUAL, 0, 1, family), (RETURN, 0, 0, ALLOW)]
    return [*filter_, _refuse(errno.EAFNOSUPPORT)]


def _refuse(error: int) -> Instruction:
    return RETURN, 0, 0, REFUSE | error


def _packed(instruction: Instruction) -> bytes:
    code, if_true, if_false, operand = instruction
    return code.to_bytes(2, "little") + bytes((if_true, if_false)) + operand.to_bytes(4, "little")
