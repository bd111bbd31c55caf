"""The processes that share an evaluation: what one of them must tell the others, and how all end when one must."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import TypeVar

import torch.distributed as torch_dist

from dft_mm import dist
from dft_mm.errors import InputError, Stopped

T = TypeVar("T")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# A rank that is done with its share waits for the others for as long as their answers take.
_PATIENCE = timedelta(days=7)
_SAME_WISH_S = 5.0  # launchers pass a signal on a second time
_LOOK_EVERY_S = 0.2
_KINDS = {"InputError": InputError, "Stopped": Stopped}


class Ranks:
    """This process among those that a launcher started; alone without one."""

    def __init__(self) -> None:
        self.rank, self.size = dist.rank(), dist.world_size()
        self._asked: float | None = None
        self._others: torch_dist.Store | None = None
        self._looked = 0.0
        self._answers = 0
        self._started_by: list[tuple[int, int]] = []
        if self.size > 1:
            self._started_by = _starters()
            store, _, _ = next(torch_dist.rendezvous("env://"))
            self._others = torch_dist.PrefixStore("evaluation", store)
            torch_dist.init_process_group(
                "gloo", store=torch_dist.PrefixStore("group", store), rank=self.rank, world_size=self.size,
                timeout=_PATIENCE,
            )  # fmt: skip

    def together(self, work: Callable[[], T]) -> T:
        """Every rank's own result of its own work. When it fails on one, all raise that error."""
        result = error = None
        try:
            result = work()
        except Exception as caught:
            error = caught
            self.halt()
        try:
            told = dist.gather_objects(None if error is None else (type(error).__name__, str(error)))
        except RuntimeError as lost:
            raise error or RuntimeError(
                "another rank is gone; what it said last stands above. What was answered is kept, and the same command "
                "goes on"
            ) from lost
        failed = [(rank, *each) for rank, each in enumerate(told) if each is not None]
        if not failed:
            return result
        # Ranks that only stopped since another one failed are not the reason.
        rank, kind, text = next((each for each in failed if each[1] != "Stopped"), failed[0])
        if error is not None and type(error).__name__ == kind:
            raise error
        raise _KINDS[kind](text) if kind in _KINDS else RuntimeError(f"rank {rank}: {kind}: {text}") from error

    def halt(self) -> None:
        """The other ranks begin nothing more, either."""
        if self._others is not None:
            self._others.set("failed", "yes")

    def count(self, answers: int) -> int:
        """So many more are there; returns how many all ranks have told so far."""
        self._answers = self._answers + answers if self._others is None else self._others.add("answers", answers)
        return self._answers

    @contextmanager
    def halting(self) -> Iterator[Callable[[], bool]]:
        """Yields what says whether to begin nothing more: a signal came, another rank failed, or the launcher is gone,
        which may die of a signal without passing it on. A second signal ends at once what is under way."""

        def ask(number: int, frame: FrameType | None) -> None:
            now = time.monotonic()
            if self._asked is not None and now - self._asked > _SAME_WISH_S:
                raise Stopped(f"{signal.Signals(number).name} came twice; the same command goes on")
            self._asked = self._asked or now

        catches = threading.current_thread() is threading.main_thread()
        before = {number: signal.signal(number, ask) for number in _SIGNALS} if catches else {}
        try:
            yield self._halted
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _halted(self) -> bool:
        if self._asked is not None:
            return True
        if self._others is not None and time.monotonic() - self._looked > _LOOK_EVERY_S:
            self._looked = time.monotonic()
            gone = any(_parent(child) != parent for child, parent in self._started_by)
            return gone or self._others.check(["failed"])
        return False


def _starters() -> list[tuple[int, int]]:
    """This process with its parent, the launcher; and the launcher with its own, where that is the `deepspeed` command.
    A process that loses its parent gets another one."""
    own, launcher = os.getpid(), os.getppid()
    chain = [(own, launcher)]
    above = _parent(launcher)
    commands = Path(f"/proc/{above}/cmdline")
    if commands.is_file() and b"deepspeed" in commands.read_bytes():
        chain.append((launcher, above))
    return chain


def _parent(process: int) -> int | None:
    """None where it is gone, or where the system does not tell."""
    if process == os.getpid():
        return os.getppid()
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


@contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks, for as long as they work together."""
    ranks = Ranks()
    try:
        yield ranks
    finally:
        if ranks.size > 1:
            torch_dist.destroy_process_group()
