"""Starting a program: in a bubblewrap sandbox, or, without one, as a plain child with what limits such a child has."""

import contextlib
import json
import os
import pwd
import random
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Protocol

from dft_mm.evaluate.code.program import Limits, Program
from dft_mm.evaluate.code.seccomp import filter_program
from dft_mm.evaluate.code.watch import ChildTree, SandboxTree, Tree, runs

SEARCH_PATH = "/usr/local/bin:/usr/bin:/bin"
_WORK = "/tmp/work"  # of the sandbox's own file system
_USERS = range(60001, 64001)
_OPEN_FILES = 256
_DEATH_S = 5.0
_SPARE_PROCESSES = 16  # the kernel's limit is a little above ours, so that going beyond ours is seen
# What programs of the languages read outside of /usr.
_CONFIGURATION = ("alternatives", "java*", "mono", "php", "ld.so.cache", "ld.so.conf", "ld.so.conf.d")
_PASSWD = b"user:x:1000:1000::/tmp:/bin/sh\n"


class Contained(Protocol):
    """A running program and everything that it has started."""

    process: "subprocess.Popen[bytes]"
    progress: int
    """Pipe: `s` when it was started, `c` when it is compiled."""
    tree: Tree

    def end(self) -> None:
        """Kill all of it, and return when it is gone."""


@contextlib.contextmanager
def own_user() -> Iterator[int | None]:
    """A user id that nobody has, for as long as one program runs, so that its processes count alone; None without root.

    Held by a socket's name, which the system takes back however we end.
    """
    if os.geteuid() != 0 or not _users_exist():
        yield None
        return
    taken = {entry.pw_uid for entry in pwd.getpwall()}
    # Not always the same: what is left of a program that a killed evaluation ran must not count for another one's.
    for user in random.sample(_USERS, len(_USERS)):
        if user in taken:
            continue
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as lock:
            try:
                lock.bind(f"\0dft_mm sandbox user {user}")
            except OSError:
                continue
            yield user
            return
    raise RuntimeError(f"all users {_USERS} run programs")


def _users_exist() -> bool:
    """A container without these ids cannot give them up."""
    lines = [tuple(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    return any(first <= _USERS[0] and _USERS[-1] < first + count for first, _, count in lines)


def _as_user(user: int | None) -> dict[str, object]:
    return {} if user is None else {"user": user, "group": user, "extra_groups": []}


def _limited(program: Program, progress: int, count_processes: bool, files: bool) -> list[str]:
    """The command line: limits, the compiler, then the program itself, telling the pipe `progress` where it is."""
    limits = program.limits
    wanted = {"CORE": 0, "NOFILE": _OPEN_FILES}
    if limits.address_space:
        wanted["AS"] = limits.memory_bytes
    if count_processes:
        wanted["NPROC"] = limits.processes + _SPARE_PROCESSES
    if files:
        wanted["FSIZE"] = limits.disk_bytes
    words = [f"--{name.lower()}={_at_most(name, value)}" for name, value in wanted.items()]
    compiled = f"{shlex.join(program.compile)} {progress}>&- || exit 1; " if program.compile else ""
    stages = f"printf s >&{progress}; {compiled}printf c >&{progress}; exec {progress}>&-"
    return [
        shutil.which("prlimit", path=SEARCH_PATH) or "prlimit",
        *words,
        "--",
        "/bin/bash",
        "-c",
        f"{stages}; exec {shlex.join(program.run)}",
    ]


def _at_most(name: str, wanted: int) -> int:
    """`wanted`, or the limit that we are under ourselves."""
    _, hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)


def _kernel() -> tuple[int, ...]:
    return tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])


class Bubblewrap:
    """No network, no privileges, nothing of the machine but /usr read-only, and one file system in memory."""

    def __init__(self, program: Program, user: int | None, bound: Mapping[str, str]) -> None:
        """`bound`: more folders to show, read-only: where they are → where they are seen."""
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as unless_started:
            given: list[int] = []

            def pipe() -> tuple[int, int]:
                reading, writing = os.pipe()
                ours.callback(os.close, writing)
                unless_started.callback(os.close, reading)
                given.append(writing)
                return reading, writing

            def held(content: bytes) -> str:
                file = ours.enter_context(_in_memory(content))
                given.append(file.fileno())
                return str(file.fileno())

            self.progress, progress = pipe()
            information, told = pipe()
            known = filter_program()
            words = [
                *_walls(program.limits, bound),
                "--file", held(_PASSWD), "/etc/passwd",
                *(word for name, text in program.files.items() for word in ("--file", held(text), f"{_WORK}/{name}")),
                "--remount-ro", "/", "--chdir", _WORK, "--info-fd", str(told),
                *([] if known is None else ["--seccomp", held(known)]),
            ]  # fmt: skip
            # Before Linux 5.14 the kernel adds the processes that a user has outside.
            count = user is not None or _kernel() >= (5, 14)
            self.process = subprocess.Popen(
                [shutil.which("bwrap") or "bwrap", *words, *_limited(program, progress, count, files=False)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                pass_fds=given,
                cwd="/",
                env={},  # what bubblewrap is started with stays readable in the sandbox's /proc/1/environ
                **_as_user(user),  # type: ignore[arg-type]
            )
            unless_started.pop_all()
        first = _first_process(information)
        self._first = None if first is None else _handle(first)
        self.tree = SandboxTree(first or 0)

    def end(self) -> None:
        """With the first process of a namespace all others end; its death is told when they are gone."""
        if self._first is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._first, signal.SIGKILL)
            _wait_readable(self._first)
            os.close(self._first)
            self._first = None
        self.process.kill()
        self.process.wait()
        os.close(self.progress)


def _in_memory(content: bytes) -> IO[bytes]:
    file = os.fdopen(os.memfd_create("dft_mm"), "w+b")
    file.write(content)
    file.flush()
    file.seek(0)
    return file


def _first_process(information: int) -> int | None:
    """What bubblewrap calls `child-pid`; None when it failed before."""
    with os.fdopen(information, "rb") as file:
        text = file.read()
    try:
        return json.loads(text)["child-pid"]
    except (ValueError, KeyError):
        return None


def _handle(pid: int) -> int | None:
    """None when it is gone already."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _wait_readable(descriptor: int) -> None:
    import select

    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    poll.poll()


def _walls(limits: Limits, bound: Mapping[str, str]) -> list[str]:
    """bubblewrap's options: what is shared with the machine, which is very little."""
    words = [
        "--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv",
        "--hostname", "sandbox", "--uid", "1000", "--gid", "1000", "--ro-bind", "/usr", "/usr", "--proc", "/proc",
    ]  # fmt: skip
    for folder in (Path("/bin"), Path("/sbin"), Path("/lib"), Path("/lib32"), Path("/lib64")):
        if folder.is_symlink():
            words += ["--symlink", str(folder.readlink()), str(folder)]
        elif folder.is_dir():
            words += ["--ro-bind", str(folder), str(folder)]
    for pattern in _CONFIGURATION:
        for path in sorted(Path("/etc").glob(pattern)):
            words += ["--ro-bind", str(path), str(path)]
    for device in ("null", "zero", "full", "random", "urandom"):
        words += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    for source, place in bound.items():
        words += ["--ro-bind", source, place]
    words += ["--symlink", "/proc/self/fd", "/dev/fd"]
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        words += ["--symlink", f"/proc/self/fd/{number}", f"/dev/{name}"]
    words += ["--symlink", "/tmp", "/dev/shm"]
    words += ["--size", str(limits.disk_bytes), "--tmpfs", "/tmp", "--dir", _WORK]
    for name, value in _environment("/tmp").items():
        words += ["--setenv", name, value]
    return words


def _environment(home: str) -> dict[str, str]:
    return {"PATH": SEARCH_PATH, "HOME": home, "TMPDIR": home, "LANG": "C.UTF-8"}


class Plain:
    """A child with limits of its own, in a folder of its own, and killed with all its children. No sandbox: it sees
    the machine's files and its network."""

    def __init__(self, program: Program, user: int | None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="dft_mm_program_", ignore_cleanup_errors=True)
        self._user = user
        folder = Path(self._folder.name)
        for name, text in program.files.items():
            (folder / name).write_bytes(text)
        if user is not None:
            for path in (folder, *folder.iterdir()):
                os.chown(path, user, user)
        self.progress, progress = os.pipe()
        self.process = subprocess.Popen(
            _limited(program, progress, user is not None, files=True),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            pass_fds=[progress],
            cwd=folder,
            env=_environment(str(folder)),
            start_new_session=True,
            **_as_user(user),  # type: ignore[arg-type]
        )
        os.close(progress)
        self.tree: ChildTree = ChildTree(self.process.pid)

    def end(self) -> None:
        deadline = time.monotonic() + _DEATH_S
        while (left := {*self.tree.pids(), *self._of_user()}) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            time.sleep(0.01)
        self.process.wait()
        os.close(self.progress)
        self._folder.cleanup()

    def _of_user(self) -> list[int]:
        """Of a user that nobody else is, what slipped away from the tree."""
        if self._user is None:
            return []
        found = []
        for path in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if path.name.isdecimal() and path.stat().st_uid == self._user and runs(int(path.name)):
                    found.append(int(path.name))
        return found
