"""Who holds up a run: every rank tells where it is, and the one that died, failed or stands still is named.

Each rank has a thread that writes its place into the store that the ranks met in, over a connection of its own, once a
second. Rank 0 reads all of them and gives a verdict; the others read the verdict and whether rank 0 is there. A rank
that hears of no verdict, because rank 0 hangs too, ends by a timer that needs neither Python nor the network.
"""

import faulthandler
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Any

import psutil
from torch.distributed import PrefixStore, TCPStore

from dft_mm import dist, lock
from dft_mm.dist import log
from dft_mm.errors import Stopped
from dft_mm.train.processes import launchers, lives, runs

_EVERY_S = 1.0
_PATIENCE_S = 5.0
"""So long a rank waits for others' news, and after a verdict for its own main thread to end by itself."""
_FINISHED, _STOPPED, _LOST = _NOT_TO_BLAME = ("finished", "stopped", "lost contact")
"""Ends of a rank that say nothing against it."""
_LOST_CONTACT = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "socket")


class RankFailedError(RuntimeError):
    """Another rank died, failed or stands still; the message names it, and the step."""


class Watch:
    """Begun on every rank when the ranks have met; `close` on every rank in the end.

    Args:
        folder: the run's; stacks of a run that stands still go into `stacks/` in it.
        hang_s: a rank that is silent, or at one place, for so long holds the run up.
        on_verdict: called with what is to be said, on rank 0, or on others where that is gone; in the watching thread,
            or in that which asks for the `cause` of its error. It may be called by both.
    """

    def __init__(self, folder: Path, hang_s: float, on_verdict: Callable[[str], None]) -> None:
        self._rank, self._world, self._hang_s, self._on_verdict = dist.rank(), dist.world_size(), hang_s, on_verdict
        self._place: dict[str, Any] = {"host": socket.gethostname(), "pid": os.getpid(), "marks": 0}
        self._place |= {"born": psutil.Process().create_time(), "step": 0, "doing": "the start", "end": None}
        self._moved: float | None = None
        self._heard: dict[int, tuple[str, float]] = {}
        self._launchers = launchers(psutil.Process())
        self._closing = Event()
        self._held_up_by: list[tuple[int, float]] = []
        self._peer_stopped = False
        self.verdict: str | None = None
        self._lock = folder / lock.NAME
        path = folder / "stacks" / f"rank-{self._rank:05d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stacks = path.open("w", encoding="utf-8")
        self._store = _own_connection() if self._world > 1 else None
        self._tell()
        dist.barrier()
        self._thread = Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def at(self, step: int, doing: str) -> None:
        """The main thread has come here. From the first call on it may not stay anywhere for `hang_s`."""
        self._place |= {"step": step, "doing": doing, "marks": self._place["marks"] + 1}
        self.alive()

    def alive(self) -> None:
        """The main thread goes on where it is."""
        self._moved = time.monotonic()
        faulthandler.dump_traceback_later(self._hang_s * 1.25 + 2 * _PATIENCE_S, exit=True, file=self._stacks)

    def rest(self) -> None:
        """The main thread is done with what is watched."""
        self._moved = None
        faulthandler.cancel_dump_traceback_later()

    def cause(self, error: BaseException) -> BaseException:
        """The error to report for one of this rank: another rank's, where this one is only its consequence."""
        if isinstance(error, Stopped):
            self._place["end"] = _STOPPED
        elif not _is_lost_contact(error):
            self._place["end"] = f"{type(error).__name__}: {error}"
        else:
            return self._cause_elsewhere() or error
        self._tell()
        return error

    def _cause_elsewhere(self) -> BaseException | None:
        self._place["end"] = _LOST
        end = time.monotonic() + _PATIENCE_S
        while not self.verdict and not self._peer_stopped and time.monotonic() < end:
            self.verdict = self._judge()
            time.sleep(_EVERY_S / 5)
        if self.verdict:
            self._pass_on(self.verdict)  # this process may end before its watching thread has a look
            return RankFailedError(self.verdict)
        return Stopped("another rank was asked to stop") if self._peer_stopped else None

    def close(self) -> None:
        """This rank ends, of itself: nobody is to miss it."""
        self.rest()
        self._place["end"] = self._place["end"] or _FINISHED
        self._closing.set()
        self._tell()
        if self._rank == 0 and self._world > 1 and self._place["end"] != _FINISHED:
            time.sleep(1.5 * _EVERY_S)  # the store goes with this process; the others are to read of its end there
        self._thread.join(_PATIENCE_S)
        self._stacks.close()
        stacks = Path(self._stacks.name)
        with suppress(OSError):  # another rank's are there, or are just removed
            if not stacks.stat().st_size:
                stacks.unlink()
            stacks.parent.rmdir()

    def _run(self) -> None:
        asked = False
        while not self._closing.wait(_EVERY_S):
            if not asked and any(not runs(process) for process in self._launchers):
                log.warning("the launcher of this run is gone: stopping after the step")
                os.kill(os.getpid(), signal.SIGTERM)
                asked = True
            self._tell()
            if self._rank == 0:
                with suppress(OSError):  # other hosts see by it that the run's folder is in use
                    os.utime(self._lock)
            self.verdict = self.verdict or self._judge()
            if self.verdict:
                self._end()

    def _tell(self) -> None:
        if self._store is not None:
            with suppress(RuntimeError):  # the next look says who is gone
                self._store.set(f"rank-{self._rank}", json.dumps(self._own_place() | {"now": time.time()}))

    def _own_place(self) -> dict[str, Any]:
        return self._place | {"still_s": None if self._moved is None else time.monotonic() - self._moved}

    def _judge(self) -> str | None:
        """Who holds the run up, as this rank sees it: rank 0 looks at all, others at rank 0 and its verdict."""
        if self._store is None:
            return self._judge_places({0: self._own_place()}, frozenset())
        wanted = range(self._world) if self._rank == 0 else [0]
        gone = self._gone()
        try:
            if self._rank and self._store.check(["verdict"]):
                return self._store.get("verdict").decode()
            told = self._store.multi_get([f"rank-{rank}" for rank in wanted])
        except RuntimeError as error:
            return None if self._closing.is_set() else self._rank_0_is_gone(error)
        places = {}
        for rank, text in zip(wanted, told):
            if self._heard.get(rank, ("", 0.0))[0] != text:
                self._heard[rank] = (text, time.monotonic())
            places[rank] = json.loads(text)
        return self._judge_places(places, gone)

    def _gone(self) -> frozenset[int]:
        """Ranks of this host whose processes are gone; what is read of them afterwards is their last word."""
        heard = {rank: json.loads(text) for rank, (text, _) in self._heard.items() if rank != self._rank}
        return frozenset(
            rank
            for rank, place in heard.items()
            if place["host"] == self._place["host"] and not lives(place["pid"], place["born"])
        )

    def _rank_0_is_gone(self, error: RuntimeError) -> str | None:
        """The store went with it, or does not answer because it does not."""
        if 0 not in self._heard:
            return f"rank 0 cannot be reached: {str(error).splitlines()[0]}"
        text, heard = self._heard[0]
        place = json.loads(text)
        if place["end"] in _NOT_TO_BLAME:
            return None
        where = f"at step {place['step']}, in {place['doing']}"
        if place["host"] == self._place["host"] and not lives(place["pid"], place["born"]):
            return f"{_name(0, place)} died {where}"
        silent = time.monotonic() - heard
        return f"{_name(0, place)} is silent since {silent:.0f} s; last {where}" if silent > self._hang_s else None

    def _judge_places(self, places: dict[int, dict[str, Any]], gone: frozenset[int]) -> str | None:
        for rank, place in places.items():
            if rank == self._rank:
                continue
            self._peer_stopped |= place["end"] == _STOPPED
            if place["end"] in _NOT_TO_BLAME:
                continue
            if place["end"]:
                return f"rank {rank} failed at step {place['step']}: {place['end']}"
            if rank in gone:
                return f"{_name(rank, place)} died at step {place['step']}, in {place['doing']}"
            silent = time.monotonic() - self._heard[rank][1]
            if silent > self._hang_s:
                self._blame(place)
                last = f"at step {place['step']}, in {place['doing']}"
                return f"{_name(rank, place)} is silent since {silent:.0f} s; last {last}"
        still = [place["still_s"] for place in places.values() if place["still_s"] is not None]
        if not still or max(still) < self._hang_s:
            return None
        behind = min(place["marks"] for place in places.values())
        named = [_name(rank, place) for rank, place in places.items() if place["marks"] == behind]
        first = next(place for place in places.values() if place["marks"] == behind)
        if len(named) < len(places):
            self._blame(first)
        verb = "stands" if len(named) == 1 else "stand"
        where = f"in {first['doing']} of step {first['step']}"
        return f"{', '.join(named)} {verb} still since {max(still):.0f} s, {where}"

    def _blame(self, place: dict[str, Any]) -> None:
        if place["host"] == self._place["host"] and place["pid"] != self._place["pid"]:
            self._held_up_by.append((place["pid"], place["born"]))

    def _pass_on(self, verdict: str) -> None:
        """Rank 0 tells the run's folder and the other ranks; where it is gone itself, they tell the folder."""
        try:
            if self._rank == 0 or verdict.startswith("rank 0 "):
                self._on_verdict(verdict)
            if self._rank == 0 and self._store is not None:
                self._store.set("verdict", verdict)
        except RuntimeError as error:
            log.error("the verdict could not be passed on: %r", error)

    def _end(self) -> None:
        """Say the verdict, and end this process if its main thread does not within a moment."""
        self._pass_on(self.verdict)
        log.error("%s", self.verdict)
        try:
            faulthandler.dump_traceback(file=self._stacks)
            self._stacks.flush()
        except OSError as error:
            log.error("the stacks could not be written: %r", error)
        if self._closing.wait(_PATIENCE_S):
            return
        for pid, born in self._held_up_by:  # a stopped process hears of nothing
            if lives(pid, born):
                os.kill(pid, signal.SIGKILL)
        os._exit(1)


def _own_connection() -> PrefixStore:
    """To the store of the process group. Its own: the main thread may wait for an answer there for a long time."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    patience = timedelta(seconds=2 * _PATIENCE_S)
    store = TCPStore(address, port, is_master=False, timeout=patience, wait_for_workers=False)
    return PrefixStore("dft_mm.watch", store)


def _name(rank: int, place: dict[str, Any]) -> str:
    return f"rank {rank} (process {place['pid']} on {place['host']})"


def _is_lost_contact(error: BaseException) -> bool:
    text = f"{type(error).__name__} {error}".lower()
    return isinstance(error, RuntimeError) and any(word in text for word in _LOST_CONTACT)
