"""The sandbox's first process: confines itself, then starts the program and buries what it leaves behind.

A script. Standard input holds the request as JSON (`t3d.sandbox.isolation.Confinement` with a `job` for judge.py, which
lies beside this file). It is process 1 of the program's own process namespace, where there is one: its end is the end
of every process in there. Without namespaces it adopts what the program leaves behind, and kills it.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38  # linux/prctl.h
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC = 0x2, 0x4, 0x1000, 0x4000  # linux/mount.h
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 0x1, 0x2, 0x4
MNT_DETACH, AT_FDCWD, AT_RECURSIVE, SYS_MOUNT_SETATTR = 0x2, -100, 0x8000, 442
CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h
DEVICES = ("null", "zero", "random", "urandom")

libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Confine, start the program, wait for it, leave with its exit status (128 + signal if one killed it)."""
    request = json.loads(sys.stdin.buffer.read())
    modules = {name: load(name) for name in ("comparisons", "judge", "syscalls")}
    for module in modules.values():  # the program is not to find them
        del sys.modules[module.__name__]
    if request["root"] is not None:
        build_root(**request["root"])
    secure(adopt_orphans=not request["has_namespaces"])
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)  # to be killed as one
        os.chdir(request["workdir"])
        apply_limits(request["limits"], limit_processes=request["has_namespaces"])
        become_program(request["uid"], request["drop_capabilities"])
        if request["has_namespaces"]:
            modules["syscalls"].refuse_ways_around()
        modules["judge"].main(request.pop("job"), request["verdict_fd"])
        return  # the program's own threads and exit functions run as after any script
    status = wait_for(child, request["verdict_fd"])
    if not request["has_namespaces"]:
        kill_orphans(child)
    os._exit(status if status >= 0 else 128 - status)


def load(name: str) -> ModuleType:
    """A file beside this one as the module that others here import it as, while it can still be seen.

    With builtins of its own, for programs patch the interpreter's.
    """
    file = Path(__file__).with_name(f"{name}.py")
    module = ModuleType(f"t3d.sandbox.inside.{name}")
    vars(module)["__builtins__"] = dict(vars(builtins))
    sys.modules[module.__name__] = module
    exec(compile(file.read_bytes(), str(file), "exec"), vars(module))
    return module


def build_root(binds: dict[str, str], links: dict[str, str], directory_bytes: int) -> None:
    """Become the only user of a file tree that holds `binds`, read-only, and a writable /tmp; needs a mount namespace.

    The way of bubblewrap: a file system in memory takes the place of the old root, from which the binds are made before
    it is let go of.

    Args:
        binds: files and folders to show, where in the new tree -> where in the old one.
        links: symbolic links to make, path -> target.
        directory_bytes: of /tmp.
    """
    mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=1m")
    os.mkdir("/tmp/old")
    check(libc.pivot_root(b"/tmp", b"/tmp/old"), "pivot_root")
    os.chdir("/")
    for folder in ("/tmp", "/dev/shm", "/proc"):
        os.makedirs(folder)
    for folder in ("/tmp", "/dev/shm"):  # before the binds, which may lie in there
        mount("tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV, f"mode=1777,size={directory_bytes}")
    for path, source in binds.items():
        bind(source, path, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)
    for device in DEVICES:
        bind(f"/dev/{device}", f"/dev/{device}", MOUNT_ATTR_NOSUID)
    for path, target in {**links, "/dev/fd": "/proc/self/fd"}.items():
        os.symlink(target, path)
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV, "")  # while the old one is seen: the kernel insists
    check(libc.umount2(b"/old", MNT_DETACH), "umount2 of the old root")
    os.rmdir("/old")
    set_attributes("/", MOUNT_ATTR_RDONLY, recursive=False)


def bind(old_path: str, path: str, attributes: int) -> None:
    """Show a file or folder of the old root."""
    source = f"/old{old_path}"
    if os.path.isdir(source):
        os.makedirs(path, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(path).touch()
    mount(source, path, "", MS_BIND | MS_REC, "")
    set_attributes(path, attributes, recursive=True)


def mount(source: str, target: str, kind: str, flags: int, options: str) -> None:
    """mount(2)."""
    status = libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
    check(status, f"mount of {target}")


def set_attributes(path: str, attributes: int, recursive: bool) -> None:
    """mount_setattr(2): add attributes to a mount; unlike a remount it leaves those that are locked as they are."""
    fields = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
    arguments = (AT_FDCWD, path.encode(), AT_RECURSIVE if recursive else 0, ctypes.byref(fields))
    check(libc.syscall(SYS_MOUNT_SETATTR, *arguments, ctypes.c_size_t(32)), f"mount_setattr of {path}")


def secure(adopt_orphans: bool) -> None:
    """No process from here on gains rights by exec; none below looks into this one, which ends with its parent."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_DUMPABLE, 0)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if adopt_orphans:
        prctl(PR_SET_CHILD_SUBREAPER, 1)


def apply_limits(limits: dict[str, Any], limit_processes: bool) -> None:
    """Resource limits of this process and those that it starts.

    Args:
        limits: the fields of `t3d.sandbox.Limits`.
        limit_processes: whether the kernel's count of the user's processes is the program's alone.
    """
    amounts = {
        resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NOFILE: limits["open_files"],
        resource.RLIMIT_CORE: 0,
    }
    if limit_processes:
        amounts[resource.RLIMIT_NPROC] = limits["processes"]
    for name, amount in amounts.items():
        set_limit(name, amount, amount)
    set_limit(
        resource.RLIMIT_CPU, limits["cpu_seconds"], limits["cpu_seconds"] + 1
    )  # SIGXCPU, which tells, comes first


def set_limit(name: int, soft: int, hard: int) -> None:
    """setrlimit(2), where a stricter limit of the user's stays."""
    known = resource.getrlimit(name)[1]
    most = hard if known == resource.RLIM_INFINITY else min(hard, known)
    resource.setrlimit(name, (min(soft, most), most))


def become_program(uid: int | None, drop_capabilities: bool) -> None:
    """Become user `uid` (None: stay the same), without the capabilities that this process has in its namespace."""
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    if drop_capabilities:
        Path("/proc/sys/user/max_user_namespaces").write_text("0")  # of its own namespace: none within, with new rights
        header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
        check(libc.capset(ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)())), "capset")
    prctl(PR_SET_DUMPABLE, 1)  # its own /proc/self can be read
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def prctl(option: int, value: int) -> None:
    """prctl(2), which Linux alone has."""
    if sys.platform == "linux":
        check(libc.prctl(option, value, 0, 0, 0), f"prctl {option}")


def check(status: int, what: str) -> None:
    """Raise OSError where a call of the C library failed."""
    if status != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def wait_for(child: int, verdict_fd: int) -> int:
    """Wait for the program, reaping orphans; its exit code, or minus the signal that killed it.

    Holds nothing open that the program prints to, so that its end is seen outside.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2, verdict_fd):
        os.dup2(nothing, fd)
    while True:
        pid, status = os.wait()
        if pid == child:
            return os.waitstatus_to_exitcode(status)


def kill_orphans(group: int) -> None:
    """Kill a process group, then every child until none is left: the children of a killed one become ours."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    while children.exists():
        for pid in children.read_text().split():
            os.kill(int(pid), signal.SIGKILL)
        try:
            os.wait()
        except ChildProcessError:
            return


if __name__ == "__main__":
    main()
