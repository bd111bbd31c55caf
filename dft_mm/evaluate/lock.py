"""One process at a time works in a result folder."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from dft_mm.dist import log
from dft_mm.errors import InputError
from dft_mm.evaluate.generations import writing

NAME = ".lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder is made and held. The system lets go of it when this process dies, however it does.

    Raises InputError when another process holds it. A folder that was made for this and is still empty goes again.
    """
    made = not folder.exists()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.closing(_Held(folder / NAME)):
            yield
    finally:
        if made:
            with contextlib.suppress(OSError):  # it holds something
                folder.rmdir()


class _Held:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = -1
        while self.descriptor < 0:
            with writing(path):
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(descriptor)
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    log.warning("%s cannot be locked (%s): start no second evaluation there", path.parent, error)
                    return
                raise InputError(
                    f"{path.parent}: another evaluation works there now; wait for it, end it, or give another --out"
                ) from error
            # The one who held it before may have removed the file in the meantime.
            try:
                same = os.path.samestat(os.fstat(descriptor), path.stat())
            except FileNotFoundError:
                same = False
            if same:
                self.descriptor = descriptor
            else:
                os.close(descriptor)

    def close(self) -> None:
        if self.descriptor >= 0:
            self.path.unlink(missing_ok=True)
            os.close(self.descriptor)
