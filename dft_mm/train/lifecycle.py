"""How a run ends: STATUS.json tells it, and a signal asks for it."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from dft_mm import dist
from dft_mm.errors import InputError, Stopped
from dft_mm.train.run_folder import State, write_status


@dataclass
class Status:
    """Where a run is, as far as STATUS.json tells."""

    step: int = 0
    """The last step done."""
    doing: int | None = None
    """The step under way."""


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Yields a list that the first SIGTERM, SIGINT or SIGUSR1 fills; a second one ends the process as usual."""
    received: list[int] = []
    handled = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for each in handled:
            signal.signal(each, previous[each])

    previous = {number: signal.getsignal(number) for number in handled}
    for number in handled:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number in handled:
            signal.signal(number, previous[number])


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
