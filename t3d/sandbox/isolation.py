"""The ways to keep a program from the rest of the machine."""

from __future__ import annotations

import os
import random
import site
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t3d.sandbox.limits import Limits

INSIDE = Path(__file__).with_name("inside")
TEMPORARY = "/tmp"
"""The one writable folder of a sandbox with a file tree of its own."""
SYSTEM_PATHS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
SYSTEM_SETTINGS = ("/etc/ld.so.cache", "/etc/alternatives")
INTERPRETER_OPTIONS = ("-s", "-S", "-P", "-B", "-X", "utf8")
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Confinement:
    """What `inside/confine.py` does to itself before the program runs.

    Attributes:
        workdir: where the program starts.
        root: arguments of its `build_root`; None keeps the file tree.
        uid: to become; None stays the same user.
        drop_capabilities: those that the process has in its user namespace.
        has_namespaces: there are namespaces of the program's own. Then the kernel's count of its user's processes is
            the program's alone, calls that lead around namespaces are refused (`inside/syscalls.py`), and nothing
            that it leaves behind outlives it; else the script has to see to that.
    """

    workdir: str
    root: dict[str, Any] | None
    uid: int | None
    drop_capabilities: bool
    has_namespaces: bool


class Isolation(ABC):
    """A way to keep a program from the rest of the machine.

    Attributes:
        name: as `find_isolation` takes it.
        description: for results, such as "bubblewrap 0.11.0".
    """

    name: str
    description: str

    def folder(self) -> AbstractContextManager[str]:
        """The program's folder while the sandbox is up; nothing of it is left after."""
        return nullcontext(TEMPORARY)

    @abstractmethod
    def command(self, limits: Limits) -> list[str]:
        """What starts `inside/confine.py`, up to and with the path of that script."""

    @abstractmethod
    def confinement(self, folder: str, limits: Limits) -> Confinement:
        """What that script is asked to do, with `folder` as the program's."""


class Bubblewrap(Isolation):
    """bwrap: namespaces of the program's own, and a file tree with system, interpreter and an empty folder only.

    Args:
        executable: bwrap.
        version: what it prints as its version.
    """

    name = "bubblewrap"

    def __init__(self, executable: str, version: str) -> None:
        self.description = version
        self._executable = executable

    def command(self, limits: Limits) -> list[str]:
        """Root keeps the two capabilities that it needs to become a nobody; others get a user namespace."""
        user = ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        if os.geteuid() != 0:
            user = ["--unshare-user", "--disable-userns"]
        folders = sorted({str(folder) for path in visible_paths() for folder in Path(path).parents})
        parents = [part for folder in folders for part in ("--dir", folder)]  # else for root's eyes only
        binds = [part for path, source in visible_paths().items() for part in ("--ro-bind", source, path)]
        links = [part for path, target in system_links().items() for part in ("--symlink", target, path)]
        scratch = ["--perms", "1777", "--size", str(limits.directory_bytes), "--tmpfs"]
        options = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", *user]
        tree = [*scratch, TEMPORARY]  # before the binds, which may lie in there
        tree += [*parents, *binds, *links, "--ro-bind", str(INSIDE), "/inside"]
        tree += ["--proc", "/proc", "--dev", "/dev", *scratch, "/dev/shm", "--remount-ro", "/dev", "--remount-ro", "/"]
        options += ["--as-pid-1", "--die-with-parent", *tree, "--"]
        return [self._executable, *options, *interpreter(), "/inside/confine.py"]

    def confinement(self, folder: str, limits: Limits) -> Confinement:
        """The file tree is there already, and in a user namespace there are no capabilities."""
        return Confinement(folder, None, own_uid(), drop_capabilities=False, has_namespaces=True)


class Unshare(Isolation):
    """unshare of util-linux: the same namespaces and the same file tree, which confine.py builds.

    Args:
        executable: unshare.
        version: what it prints as its version.
    """

    name = "unshare"

    def __init__(self, executable: str, version: str) -> None:
        self.description = version
        self._executable = executable

    def command(self, limits: Limits) -> list[str]:
        """All but root need a user namespace, and are its root until confine.py gives that up."""
        options = ["--mount", "--pid", "--net", "--ipc", "--uts", "--cgroup", "--fork", "--kill-child"]
        if os.geteuid() != 0:
            options += ["--user", "--map-root-user"]
        return [self._executable, *options, *interpreter(), str(INSIDE / "confine.py")]

    def confinement(self, folder: str, limits: Limits) -> Confinement:
        """A new root, and then no rights."""
        root = {"binds": visible_paths(), "links": system_links(), "directory_bytes": limits.directory_bytes}
        return Confinement(folder, root, own_uid(), drop_capabilities=os.geteuid() != 0, has_namespaces=True)


class LimitsOnly(Isolation):
    """No isolation: resource limits, and an end of what stays a descendant of the sandbox's process.

    A program may read and write whatever the user may, and use the network; its folder has no size limit.
    """

    name = "limits"
    description = "limits only, no isolation"

    @contextmanager
    def folder(self) -> Iterator[str]:
        """A temporary folder of the machine."""
        with tempfile.TemporaryDirectory(prefix="t3d-program-", ignore_cleanup_errors=True) as folder:
            yield folder

    def command(self, limits: Limits) -> list[str]:
        """The interpreter as it is."""
        return [*interpreter(), str(INSIDE / "confine.py")]

    def confinement(self, folder: str, limits: Limits) -> Confinement:
        """The kernel counts all of the user's processes together: the limit on them is kept by watching."""
        return Confinement(folder, None, None, drop_capabilities=False, has_namespaces=False)


def interpreter() -> list[str]:
    """This interpreter, without site packages, user folder and what else a start looks for."""
    return [os.path.realpath(sys.executable), *INTERPRETER_OPTIONS]


def environment(folder: str) -> dict[str, str]:
    """All the environment that a program gets: nothing of ours; the same order of sets in every run."""
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": folder,
        "TMPDIR": folder,
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        **dict.fromkeys(ONE_THREAD, "1"),
    }


def packages() -> list[str]:
    """Folders of installed packages, which programs may import."""
    return [folder for folder in site.getsitepackages() if os.path.isdir(folder)]


def visible_paths() -> dict[str, str]:
    """Files and folders that the interpreter needs, none below another: where they are shown -> where they are."""
    wanted = [*SYSTEM_PATHS, *SYSTEM_SETTINGS, sys.prefix, sys.base_prefix, sys.base_exec_prefix, *packages()]
    wanted += [os.path.dirname(os.path.dirname(os.path.realpath(sys.executable)))]
    there = sorted({path for path in wanted if os.path.exists(path) and path not in system_links()})
    outermost = [path for path in there if not any(Path(other) in Path(path).parents for other in there)]
    return {path: os.path.realpath(path) for path in outermost}


def system_links() -> dict[str, str]:
    """System folders that are links, such as /lib -> usr/lib."""
    return {path: os.readlink(path) for path in SYSTEM_PATHS if os.path.islink(path)}


def own_uid() -> int | None:
    """For root: a user id that nobody else has, so that the kernel counts its processes apart; None for others."""
    if os.geteuid() != 0:
        return None
    known = max(int(line.split()[2]) for line in Path("/proc/self/uid_map").read_text().splitlines())
    low, high = (2**30, 2**31) if known > 2**31 else (known // 2, known - 2)
    return random.SystemRandom().randrange(low, high)
