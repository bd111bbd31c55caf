"""How a run ends: STATUS.json tells it, and a signal asks for it."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from dft_mm import dist
from dft_mm.errors import InputError, Stopped
from dft_mm.train.run_folder import State, write_status

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_SAME_WISH_S = 5.0


@dataclass
class Status:
    """Where a run is, as far as STATUS.json tells."""

    step: int = 0
    """The last step done."""
    doing: int | None = None
    """The step under way."""


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Yields a list that SIGTERM, SIGINT and SIGUSR1 fill; one that comes later than a moment ends the process at once.

    Within the moment it is the same wish: a process group and a launcher both pass one signal on.
    """
    received: list[int] = []
    first_at = 0.0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal first_at
        if received and time.monotonic() - first_at > _SAME_WISH_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        first_at = first_at or time.monotonic()
        received.append(number)

    previous = {number: signal.signal(number, note) for number in STOP_SIGNALS}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def ignore_stop_signals(_: int = 0) -> None:
    """For helper processes: the training process decides when they end, also when a whole group is signalled."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def reported(folder: Path) -> Iterator[Status]:
    """Keeps STATUS.json true, however the block ends; rank 0 writes it."""
    status = Status()

    def write(state: State, reason: str = "") -> None:
        if dist.is_main():
            write_status(folder, state, status.step, reason)

    write("running")
    try:
        yield status
    except Stopped as stop:
        write("stopped", str(stop))
        raise
    except InputError as error:
        write("failed", str(error))
        raise
    except BaseException as error:
        at = "" if status.doing is None or status.doing == status.step else f"step {status.doing}: "
        write("failed", f"{at}{error!r}")
        raise
    write("finished")
