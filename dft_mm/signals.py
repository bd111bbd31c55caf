"""Signals that ask a process to stop: at once while nothing is under way, after the step while it is."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from dft_mm.errors import Stopped

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_SAME_WISH_S = 5.0


class StopRequests:
    """SIGTERM, SIGINT and SIGUSR1 of this process, while entered.

    The first raises Stopped where the process happens to be, or in `deferred` is only noted. A later one ends the
    process at once; within a moment it is the same wish: a process group and a launcher both pass one signal on.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._first_at = 0.0
        self._deferred = 0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequests":
        self._previous = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        return bool(self.received)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Signals are noted only. One that came before raises here."""
        self.check()
        self._deferred += 1
        try:
            yield
        finally:
            self._deferred -= 1

    def hold(self) -> None:
        """From here on signals are noted only."""
        self._deferred += 1

    def check(self) -> None:
        """Raise Stopped when a signal came: an exception that a handler raises can be lost in a library's callback."""
        if self.received:
            raise Stopped(f"stopped by {signal.Signals(self.received[0]).name}")

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received and time.monotonic() - self._first_at > _SAME_WISH_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        repeated = bool(self.received)
        self._first_at = self._first_at or time.monotonic()
        self.received.append(number)
        if not self._deferred and not repeated:
            self.check()
