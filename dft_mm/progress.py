"""Progress of long work: a bar with rate and time left on a terminal, a plain line now and then elsewhere."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_PLAIN_EVERY_S = 10.0
log = logging.getLogger("dft_mm")


@contextmanager
def progress(label: str, total: int, done: int = 0, shown: bool = True) -> Iterator[Callable[..., None]]:
    """Yields `advance(n=1, note="")`. `shown=False` (another rank than 0) says nothing."""
    if not shown:
        yield lambda n=1, note="": None
    elif sys.stderr.isatty():
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(label, total=total, completed=done, note="")
            yield lambda n=1, note="": bar.update(task, advance=n, note=note)
    else:
        yield _plain(label, total, done)


def _plain(label: str, total: int, done: int) -> Callable[..., None]:
    start, start_done = time.monotonic(), done
    last = start

    def advance(n: int = 1, note: str = "") -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if now - last >= _PLAIN_EVERY_S or done >= total:
            last = now
            rate = (done - start_done) / max(now - start, 1e-9)
            left = (total - done) / rate if rate else float("inf")
            log.info("%s %d/%d  %.3g/s  %.0f s left  %s", label, done, total, rate, left, note)

    return advance
