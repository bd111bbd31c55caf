"""One process at a time works in a folder."""

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from dft_mm.errors import InputError

log = logging.getLogger("dft_mm")
NAME = ".lock"
STALE_S = 90.0
"""A lock of another host whose file was not touched for so long is that of a run that is gone."""


@contextlib.contextmanager
def locked(folder: Path, work: str, way_out: str) -> Iterator[Path]:
    """The folder is made and held; yields the lock's file, which names the process and its host.

    The system lets go of it when this process dies, however it does. A folder that was made for this and is still empty
    goes again.

    Args:
        work: what is done there, "evaluation".
        way_out: what the user can do besides waiting or ending the other, "give another --out".

    Raises InputError when another process holds it, or the folder cannot be written.
    """
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made ({error.strerror or error}); {way_out}") from error
    try:
        with contextlib.closing(_Held(folder / NAME, work, way_out)) as held:
            yield held.path
    finally:
        if made:
            with contextlib.suppress(OSError):  # it holds something
                folder.rmdir()


class _Held:
    def __init__(self, path: Path, work: str, way_out: str) -> None:
        self.path = path
        self.descriptor = -1
        while self.descriptor < 0:
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                raise InputError(f"{path} cannot be written ({error.strerror}); mend it, or {way_out}") from error
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = _holder(descriptor)
                os.close(descriptor)
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    log.warning("%s cannot be locked (%s): start no second %s there", path.parent, error, work)
                    return
                raise InputError(_taken(path, work, holder, way_out)) from error
            # The one who held it before may have removed the file in the meantime.
            try:
                same = os.path.samestat(os.fstat(descriptor), path.stat())
            except FileNotFoundError:
                same = False
            if same:
                self.descriptor = descriptor
            else:
                os.close(descriptor)
        self._take_over(work, way_out)

    def _take_over(self, work: str, way_out: str) -> None:
        """The lock is ours. What a holder that did not let go of it has written there tells who that was."""
        holder = _holder(self.descriptor)
        if holder and holder["host"] != socket.gethostname():
            self._wait_until_stale(holder, work, way_out)
        if holder:
            said = "%s: an earlier %s did not end of itself%s: taking over"
            log.warning(said, self.path.parent, work, _named(holder))
        with contextlib.suppress(OSError):  # a full disk: it is held all the same
            os.ftruncate(self.descriptor, 0)
            os.pwrite(self.descriptor, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode(), 0)

    def _wait_until_stale(self, holder: dict[str, object], work: str, way_out: str) -> None:
        """Not every shared file system tells hosts of each other's locks, but all tell when a file was touched."""
        touched = self.path.stat().st_mtime_ns
        end = time.monotonic() + STALE_S - (time.time() - touched / 1e9)
        if time.monotonic() < end:
            log.warning("%s: waiting to see whether the %s%s is gone", self.path.parent, work, _named(holder))
        while time.monotonic() < end:
            time.sleep(1.0)
            if self.path.stat().st_mtime_ns != touched:
                os.close(self.descriptor)
                self.descriptor = -1
                raise InputError(_taken(self.path, work, holder, way_out))

    def close(self) -> None:
        if self.descriptor >= 0:
            self.path.unlink(missing_ok=True)
            os.close(self.descriptor)


def _taken(path: Path, work: str, holder: dict[str, object] | None, way_out: str) -> str:
    return f"{path.parent}: another {work} works there now{_named(holder)}; wait for it, end it, or {way_out}"


def _holder(descriptor: int) -> dict[str, object] | None:
    try:
        told = json.loads(os.pread(descriptor, 4096, 0))
        return {"host": str(told["host"]), "pid": int(told["pid"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _named(holder: dict[str, object] | None) -> str:
    return f" (process {holder['pid']} on {holder['host']})" if holder else ""
