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
from typing import Self, TypeVar

from dft_mm.errors import InputError
from dft_mm.evaluate.code.contained import SEARCH_PATH, Bubblewrap, Contained, Plain, own_user
from dft_mm.evaluate.code.program import Program, Result

T = TypeVar("T")
U = TypeVar("U")

_LOOK_S = 0.03
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
    """Read what it says and stop it at its limits."""
    limits = program.limits
    assert running.process.stdout is not None
    assert running.process.stderr is not None
    pipes = {running.process.stdout.fileno(): bytearray(), running.process.stderr.fileno(): bytearray()}
    stages = bytearray()
    stopped = None
    ended = False
    try:
        with selectors.DefaultSelector() as selector:
            for descriptor in (*pipes, running.progress):
                os.set_blocking(descriptor, False)
                selector.register(descriptor, selectors.EVENT_READ)
            look = begin
            while not ended and stopped is None:
                ready = [key.fd for key, _ in selector.select(_LOOK_S)]
                for descriptor in ready:
                    if not _read(descriptor, pipes.get(descriptor, stages)):
                        selector.unregister(descriptor)
                now = time.monotonic()
                if closing.is_set():
                    raise Interrupted
                ended = running.process.poll() is not None
                if _size(pipes) > limits.output_bytes:
                    stopped = "output"
                elif not ended and now - begin > limits.wall_s:
                    stopped = "time"
                elif not ended and now >= look:
                    look = now + _LOOK_S
                    if running.tree.threads() > limits.processes:
                        stopped = "processes"
                    elif running.tree.memory_bytes(limits.memory_bytes) > limits.memory_bytes:
                        stopped = "memory"
                if not selector.get_map() and not ended:
                    closing.wait(_LOOK_S / 10)  # it has closed its output and goes on
        seconds = time.monotonic() - begin
    finally:
        leave = contextlib.ExitStack()
        with leave:
            leave.callback(running.end)
            if ended:
                # Its last words are in the pipes, and in the hands of nobody else once all is dead.
                for descriptor, kept in (*pipes.items(), (running.progress, stages)):
                    while _size(pipes) <= limits.output_bytes and _read(descriptor, kept):
                        pass
    if stopped is None and _size(pipes) > limits.output_bytes:
        stopped = "output"
    stdout, stderr = (bytes(each[: limits.output_bytes]) for each in pipes.values())
    if b"s" not in stages and stopped is None:
        return Result(None, stdout, stderr, False, None, seconds, _last_line(stderr) or "it did not start")
    code = running.process.returncode
    status = None if stopped else (code if code >= 0 else 128 - code)
    return Result(status, stdout, stderr, b"c" in stages, stopped, seconds)


def _size(pipes: dict[int, bytearray]) -> int:
    return sum(map(len, pipes.values()))


def _read(descriptor: int, kept: bytearray) -> bool:
    """Whether there may be more."""
    try:
        chunk = os.read(descriptor, 1 << 16)
    except BlockingIOError:
        return False
    kept += chunk
    return bool(chunk)


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
