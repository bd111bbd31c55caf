"""How a run goes and ends, as STATUS.json tells it, and what to do about an error."""

import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch

from dft_mm import dist
from dft_mm.atomic import is_full
from dft_mm.config import Recipe
from dft_mm.dist import log
from dft_mm.errors import InputError, Stopped
from dft_mm.signals import StopRequests
from dft_mm.train.run_folder import State, read_status, write_status
from dft_mm.train.verify import steps
from dft_mm.train.watch import RankFailedError, Watch

T = TypeVar("T")
_TELL_EVERY_S = 5.0


class Run:
    """A run under way, as far as STATUS.json tells, and those who keep an eye on it."""

    def __init__(self, folder: Path, requests: StopRequests, hang_s: float) -> None:
        self.folder, self.requests = folder, requests
        self.step = max(steps(folder / "checkpoints"), default=0)
        """The last step done."""
        self.doing: int | None = None
        """The step under way."""
        self.notes: list[str] = []
        """What a person should look at, though the run goes on."""
        self._told_at = 0.0
        self.watch = Watch(folder, hang_s, self._tell_verdict)

    def at(self, doing: str) -> None:
        """The main thread is at this part of the step under way."""
        self.watch.at(self.doing or self.step, doing)

    def watched(self, things: Iterable[T], doing: str) -> Iterator[T]:
        """The things, each a sign of life."""
        for thing in things:
            self.at(doing)
            yield thing

    def note(self, text: str) -> None:
        """Tell a person; every rank may call it, rank 0 writes."""
        log.warning("%s", text)
        self.notes = [*self.notes[-9:], text]
        self.tell("running")

    def go_on(self) -> None:
        """A step is done; STATUS says so now and then."""
        if time.monotonic() - self._told_at > _TELL_EVERY_S:
            self.tell("running")

    def tell(self, state: State, reason: str = "") -> None:
        if dist.is_main():
            self._write(state, reason)

    def _tell_verdict(self, verdict: str) -> None:
        """Rank 0's verdict, or that of others about rank 0, which may have left a word of its own."""
        status = read_status(self.folder)
        if dist.is_main() or status is None or status["state"] == "running":
            self._write("failed", verdict)

    def _write(self, state: State, reason: str) -> None:
        self._told_at = time.monotonic()
        try:
            write_status(self.folder, state, self.step, reason, self.notes)
        except OSError as error:
            log.warning("%s/STATUS.json cannot be written (%s); it would say: %s %s", self.folder, error, state, reason)


@contextmanager
def reported(recipe: Recipe, requests: StopRequests) -> Iterator[Run]:
    """Keeps STATUS.json true, however the block ends, and gives errors that the user can mend their words."""
    run = Run(recipe.run_dir, requests, recipe.train.hang_minutes * 60)
    run.tell("running")
    try:
        yield run
        requests.hold()
        dist.barrier()  # no rank is missed by one that is not done yet
    except BaseException as error:
        requests.hold()
        cause = run.watch.cause(in_words(error, recipe, run))
        run.tell("stopped" if isinstance(cause, Stopped) else "failed", _reason(cause, run))
        run.watch.close()
        if cause is error:
            raise
        raise cause from error
    run.watch.close()
    run.tell("finished")


def _reason(cause: BaseException, run: Run) -> str:
    if isinstance(cause, Stopped | InputError | RankFailedError):
        return str(cause)
    at = "" if run.doing in (None, run.step) else f"step {run.doing}: "
    return f"{at}{type(cause).__name__}: {cause}"


def in_words(error: BaseException, recipe: Recipe, run: Run) -> BaseException:
    """The error, or one that says what to do about it."""
    at = f"step {run.doing}" if run.doing else "before the first step"
    if is_full(error):
        return InputError(
            f"{at}: {run.folder} cannot be written: {error.strerror}; make room or mend it. What is saved so far is "
            "whole: start the run again, and it goes on from there"
        )
    if not _is_out_of_memory(error):
        return error
    settings = [f"train.micro_tokens (now {recipe.train.micro_tokens}; data.max_length is {recipe.data.max_length})"]
    if not recipe.model.gradient_checkpointing:
        settings.append("set model.gradient_checkpointing: true")
    settings.append(f"use a DeepSpeed config that offloads the optimizer (now {recipe.deepspeed})")
    told = re.sub(r"\s+", " ", str(error))[:300]
    return InputError(f"{at}: out of memory: lower {', or '.join(settings)}, or use more ranks. ({told})")


def _is_out_of_memory(error: BaseException) -> bool:
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
