"""Processes that work for another: it alone decides when they end, and they end with it, whatever they are doing."""

import atexit
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess

from dft_mm.signals import STOP_SIGNALS

_PR_SET_PDEATHSIG = 1


@contextmanager
def deaf_to_stop_signals() -> Iterator[None]:
    """What is spawned in the block hears of no stop signal, which whole process groups are sent."""
    resource_tracker.ensure_running()  # its start would open the signals again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def being_imported_by_a_worker() -> bool:
    """Whether this is a process that is spawned just now and imports its parent's script, which should only define."""
    return getattr(multiprocessing.current_process(), "_inheriting", False)


def begin_data_worker(_: int) -> None:
    """The start of a worker of a DataLoader, as its `worker_init_fn`."""
    end_with_parent()
    # It leaves without taking Python down: its thread that sends batches may free one just then, which aborts it
    # (the thread is ended inside a destructor of torch 2.13 that waits for Python's lock).
    atexit.register(os._exit, 0)


def end_with_parent() -> None:
    """Called in a worker, by its main thread: a killed parent closes no queue, and its workers would wait for ever.

    On Linux also where it is stuck in a library or on a file system, if the main thread of its parent started it. One
    that is deaf to stop signals hears its parent's SIGTERM nevertheless: who leaves a program waits for its workers.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()  # it may have ended before
    if signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ()) and hasattr(signal, "sigwaitinfo"):
        threading.Thread(target=_obey, args=(parent,), daemon=True).start()


def _follow(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _obey(parent: BaseProcess) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        pass
    os._exit(0)
