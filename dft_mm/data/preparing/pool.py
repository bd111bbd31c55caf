"""Work on all cores: worker processes that are set up once, and end when the process that started them ends."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from dft_mm.workers import end_with_parent

T = TypeVar("T")
R = TypeVar("R")
_MOST = 32
_setup: Any = None


def cores() -> int:
    """Processes that are worth starting here."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MOST, allowed)


class Pool:
    """Calls `function(setup, task)` for many tasks.

    `setup` is pickled once for each process. They are spawned, not forked: the caller may hold threads and devices.
    """

    def __init__(self, setup: Any, processes: int) -> None:
        self._setup, self._processes = setup, processes
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *error: object) -> None:
        if self._executor:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def map(self, function: Callable[[Any, T], R], tasks: Iterable[T], alone: bool = False) -> Iterator[R]:
        """Results in the order of the tasks, of which only a few are taken ahead; `alone`: by this process.

        Raises what `function` raised, and RuntimeError when a process was killed, as the system does when memory ends.
        """
        if alone or self._processes == 1:
            yield from (function(self._setup, task) for task in tasks)
            return
        if self._executor is None:
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(self._processes, context, _begin, (self._setup,))
        waiting: deque[Any] = deque()
        try:
            for task in tasks:
                waiting.append(self._executor.submit(_call, function, task))
                if len(waiting) > 2 * self._processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a worker process was killed, as happens when memory runs out; the same command goes on from there"
            ) from error


def _begin(setup: Any) -> None:
    global _setup
    _setup = setup
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    end_with_parent()


def _call(function: Callable[[Any, T], R], task: T) -> R:
    return function(_setup, task)
