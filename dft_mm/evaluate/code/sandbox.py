"""Runs programs that a model wrote: contained, within limits, several at once.

What holds: no network; no file of the machine but /usr; no privileges; time, memory, processes, output and disk bounded
for all of a program's processes together; nothing left of it when `run` returns. What does not: programs share the
machine's kernel, so this is no wall against somebody who knows a hole in it.
"""

import contextlib
import os
import secrets
import selectors
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, Self, TypeVar

from dft_mm.errors import InputError
from dft_mm.evaluate.code.contained import SEARCH_PATH, Bubblewrap, Contained, Plain, own_user
from dft_mm.evaluate.code.program import Limits, Program, Result

T = TypeVar("T")
U = TypeVar("U")

_LOOK_S = 0.03
_SILENT_S = 0.003
_UNSAFE = "or let programs run as plain child processes, with your files and your network: --unsafe-exec"
INSTALL = "install bubblewrap (apt-get install bubblewrap; scripts/install_languages.sh does it)"


class Interrupted(Exception):
    """The sandbox was closed while a program ran."""


class Sandbox:
    """`with Sandbox() as sandbox:`; raises InputError where programs cannot be contained."""

    def __init__(self, unsafe: bool = False, bound: dict[str, str] | None = None) -> None:
        """`unsafe`: a plain child process with the same limits, as far as they go there."""
        self.unsafe = unsafe
        self.bound = bound or {}
        self.workers = os.cpu_count() or 1
        self._closing = threading.Event()

    def __enter__(self) -> Self:
        if not self.unsafe:
            reason = broken(self)
            if reason is not None:
                raise InputError(f"no sandbox for programs: {reason}; {_UNSAFE}")
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()

    def map(self, work: Callable[[T], U], items: Sequence[T]) -> Iterator[U]:
        """`work` on every item, several at once; results in order. Whatever stops it ends all programs, too."""
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="sandbox")
        try:
            yield from pool.map(work, items)
        except BaseException:
            self._closing.set()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def run(self, program: Program) -> Result:
        begin = time.monotonic()
        with own_user() as user:
            try:
                running: Contained = Plain(program, user) if self.unsafe else Bubblewrap(program, user, self.bound)
            except OSError as error:
                return Result(None, b"", b"", False, error=f"cannot be started: {error}")
            with running.process:
                return _follow(running, program, begin, self._closing)


def _follow(running: Contained, program: Program, begin: float, closing: threading.Event) -> Result:
    """Read what it says, stop it at its limits, and leave nothing of it."""
    said = _Said(running)
    try:
        stopped = _until_its_end(running, said, program.limits, begin, closing)
        seconds = time.monotonic() - begin
        said.read_the_rest(program.limits.output_bytes)
    finally:
        running.end()
    if stopped is None and said.size() > program.limits.output_bytes:
        stopped = "output"
    stdout, stderr = (bytes(each[: program.limits.output_bytes]) for each in (said.stdout, said.stderr))
    if b"s" not in said.progress:
        return Result(None, stdout, stderr, False, None, seconds, _last_line(stderr) or "it did not start")
    code = running.process.returncode
    status = None if stopped else (code if code >= 0 else 128 - code)
    return Result(status, stdout, stderr, b"c" in said.progress, stopped, seconds)


def _until_its_end(
    running: Contained, said: "_Said", limits: Limits, begin: float, closing: threading.Event
) -> Literal["time", "memory", "processes", "output"] | None:
    """Which limit it went beyond; None when it ended by itself."""
    look = begin
    with said.waiting() as wait:
        while True:
            ended = running.process.poll() is not None
            wait(0 if ended else _LOOK_S)
            now = time.monotonic()
            if closing.is_set():
                raise Interrupted
            if said.size() > limits.output_bytes:
                return "output"
            if ended:
                return None
            if now - begin > limits.wall_s:
                return "time"
            if now >= look:
                look = now + _LOOK_S
                if running.tree.threads() > limits.processes:
                    return "processes"
                if running.tree.memory_bytes(limits.memory_bytes) > limits.memory_bytes:
                    return "memory"


class _Said:
    """What a program has written so far."""

    def __init__(self, running: Contained) -> None:
        assert running.process.stdout is not None
        assert running.process.stderr is not None
        self.stdout, self.stderr, self.progress = bytearray(), bytearray(), bytearray()
        self._kept = {
            running.process.stdout.fileno(): self.stdout,
            running.process.stderr.fileno(): self.stderr,
            running.progress: self.progress,
        }
        for descriptor in self._kept:
            os.set_blocking(descriptor, False)

    def size(self) -> int:
        return len(self.stdout) + len(self.stderr)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[Callable[[float], None]]:
        """A function that reads what comes within so many seconds, some of it at once."""
        with selectors.DefaultSelector() as selector:
            for descriptor in self._kept:
                selector.register(descriptor, selectors.EVENT_READ)

            def wait(seconds: float) -> None:
                if not selector.get_map():  # it has closed all of them, and ends soon or goes on in silence
                    time.sleep(min(seconds, _SILENT_S))
                for key, _ in selector.select(seconds) if selector.get_map() else ():
                    if self._read(key.fd) == b"":
                        selector.unregister(key.fd)

            yield wait

    def read_the_rest(self, most: int) -> None:
        """What is in the pipes."""
        for descriptor in self._kept:
            while self.size() <= most and self._read(descriptor):
                pass

    def _read(self, descriptor: int) -> bytes | None:
        """None when there is nothing now, no bytes when there never will be."""
        try:
            chunk = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return None
        self._kept[descriptor] += chunk
        return chunk


def _last_line(text: bytes) -> str:
    lines = text.decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else ""


def broken(sandbox: Sandbox) -> str | None:
    """Why there is no sandbox here, with the way out; None when it works and hides what it should."""
    if shutil.which("bwrap") is None:
        return f"bwrap is not installed; {INSTALL}"
    for tool, package in (("prlimit", "util-linux"), ("bash", "bash")):
        if shutil.which(tool, path=SEARCH_PATH) is None:
            return f"{tool} is not installed; apt-get install {package}"
    with tempfile.NamedTemporaryFile(prefix="dft_mm_") as file, socket.create_server(("127.0.0.1", 0)) as server:
        hidden = {
            "a file of the machine can be seen": f"test -e {file.name}",
            "home folders can be seen": "test -e /home -o -e /root",
            "/usr can be written": "touch /usr/dft_mm",
            "the root can be written": "touch /dft_mm",
            "the network can be reached": f"exec 9<>/dev/tcp/127.0.0.1/{server.getsockname()[1]}",
            "it runs as root": "test $(id -u) = 0",
            "it has capabilities": "grep -E '^Cap(Prm|Eff|Bnd|Amb):.*[1-9a-f]' /proc/self/status",
            "it can gain privileges": "grep -E '^NoNewPrivs:.*0' /proc/self/status",
        }
        tests = "\n".join(f"if ({test}) &>/dev/null; then echo '{what}'; fi" for what, test in hidden.items())
        token = secrets.token_hex(8)
        result = sandbox.run(Program({"check.sh": f"{tests}\necho {token}".encode()}, ["/bin/bash", "check.sh"]))
    lines = result.stdout.decode(errors="replace").split("\n")
    if result.error or result.stopped or token not in lines:
        reason = result.error or result.stopped or _last_line(result.stderr) or f"exit status {result.status}"
        return (
            f"bubblewrap cannot make one here ({reason}). It needs bubblewrap 0.7 or later and user namespaces "
            "(sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0; in a "
            "container, one that allows them)"
        )
    leaks = [line for line in lines if line in hidden]
    return f"bubblewrap's does not hide enough here: {'; '.join(leaks)}" if leaks else None
