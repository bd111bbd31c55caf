"""A process for each tracker of a run, which follows metrics.jsonl. The training starts it, looks whether it lives, and
tells it the end; nothing that goes wrong there reaches the run.

RUN/trackers/NAME.json is {"id", "step"}: the run's id in the tracker, and the last step that it was given. With it a
run that goes on gives each step once, and a tracker that was added later is given the steps before.
"""

import contextlib
import fcntl
import importlib.util
import json
import logging
import os
import secrets
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml

from dft_mm.atomic import write_atomically
from dft_mm.errors import InputError, Stopped
from dft_mm.signals import STOP_SIGNALS
from dft_mm.train.trackers import TRACKERS, End, TrackedRun

log = logging.getLogger("dft_mm")
_LOOK_EVERY_S = 1.0
_WAIT_S: dict[End, float] = {"finished": 15.0, "stopped": 5.0, "failed": 5.0}
_LIVE_ON_S = 900
"""A tracker that still sends so long after the run has ended is given up."""


def check_installed(names: Sequence[str]) -> None:
    """Raises InputError for a tracker whose library is not there."""
    missing = [name for name in names if not _is_installed(TRACKERS[name].module)]
    if missing:
        raise InputError(
            f"log.trackers: {', '.join(missing)} is not installed: `pip install 'dft_mm[track]'`, or take it out of "
            "log.trackers"
        )


def _is_installed(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None  # without one it is just a folder of that name, such as ./wandb


@contextlib.contextmanager
def tracked(names: Sequence[str], folder: Path, step: int, tell: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """The trackers of a run that goes on after `step`; yields what looks after them, now and then. `tell` is given what
    has gone wrong with one, once.
    """
    children = [child for name in dict.fromkeys(names) if (child := _Child.start(name, folder, step, tell))]

    def look() -> None:
        for child in list(children):
            if child.process.poll() is not None:
                children.remove(child)
                tell(child.fate())

    end: End = "failed"
    try:
        yield look
        end = "finished"
    except Stopped:
        end = "stopped"
        raise
    finally:
        for child in children:
            child.say(end)
        until = time.monotonic() + _WAIT_S[end]
        for child in children:
            child.await_end(until, tell)


class _Child:
    def __init__(self, name: str, process: "subprocess.Popen[bytes]", said: Path) -> None:
        self.name, self.process, self.said = name, process, said

    @classmethod
    def start(cls, name: str, folder: Path, step: int, tell: Callable[[str], None]) -> "_Child | None":
        said = folder / "trackers" / f"{name}.log"
        command = [sys.executable, "-m", __name__, name, str(folder.resolve()), str(step)]
        try:
            said.parent.mkdir(exist_ok=True)
            with said.open("wb") as out:
                # In a session of its own, a key pressed in the terminal does not end it before it has sent everything.
                process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
                )
        except OSError as error:
            tell(f"the tracker {name} cannot be started ({error}); the run goes on without it")
            return None
        return cls(name, process, said)

    def fate(self) -> str:
        """How it ended, in its own last words."""
        words = f"exit code {self.process.returncode}"
        with contextlib.suppress(OSError):
            lines = self.said.read_text(encoding="utf-8", errors="replace").splitlines()
            words = next((line for line in reversed(lines) if line.strip()), words)
        return f"the tracker {self.name} is off, the run goes on without it: {words[:300]} (see {self.said})"

    def say(self, end: End) -> None:
        with contextlib.suppress(OSError):  # it is not there any more
            self.process.stdin.write(end.encode())
            self.process.stdin.close()

    def await_end(self, until: float, tell: Callable[[str], None]) -> None:
        try:
            if self.process.wait(max(until - time.monotonic(), 0)):
                tell(self.fate())
        except subprocess.TimeoutExpired:
            log.warning(
                "the tracker %s has not sent everything yet; it goes on by itself, for %d minutes at most (see %s)",
                self.name, _LIVE_ON_S // 60, self.said,
            )  # fmt: skip


class _Lines:
    """The lines of a file that grows, each once, when it is whole."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._place = 0

    def new(self) -> Iterator[dict[str, Any]]:
        self._file.seek(self._place)
        for line in self._file:
            if not line.endswith(b"\n"):  # a line that is being written, or taken back by a full disk
                return
            self._place += len(line)
            yield json.loads(line)


def _said(seconds: float) -> End | None:
    """How the run ended, once that is known: what its process says, or that it is gone."""
    if not select.select([sys.stdin], [], [], seconds)[0]:
        return None
    word = os.read(sys.stdin.fileno(), 64).decode()
    return word if word in get_args(End) else "failed"


def follow(name: str, folder: Path, step: int, said: Callable[[float], End | None] = _said) -> None:
    """Give a tracker the lines of a run that goes on after `step`, until `said(seconds)` tells its end."""
    known = folder / "trackers" / f"{name}.json"
    state = {"id": secrets.token_hex(10), "step": 0}
    if known.is_file():
        state = json.loads(known.read_text(encoding="utf-8"))
    entry = TRACKERS[name]
    if entry.replaces:
        state["step"] = min(state["step"], step)

    def keep() -> None:
        write_atomically(known, json.dumps(state) + "\n")

    keep()
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    tracker = entry.make(TrackedRun(folder, state["id"], recipe, state["step"]))
    lines = _Lines(folder / "metrics.jsonl")
    end = None
    while end is None:
        end, before = said(_LOOK_EVERY_S), state["step"]
        try:
            for line in lines.new():
                if line["step"] > state["step"]:
                    tracker.log(line)
                    state["step"] = line["step"]
        finally:
            if state["step"] > before:
                keep()
    tracker.close(end)


def _end_in_time() -> None:
    """Waits for the run's end, and has the kernel end this process some time after it, whatever a library does until
    then, in its clean-up at the very end, too: the tracker of the next start waits for the lock.
    """
    select.select([sys.stdin], [], [])
    signal.alarm(_LIVE_ON_S)


def main(name: str, folder: Path, step: int) -> None:
    os.nice(10)  # the training comes first
    for number in STOP_SIGNALS:  # a scheduler sends them to all processes; this one waits for the training's last word
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_in_time, daemon=True).start()
    try:
        with (folder / "trackers" / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one that still sends what was before is waited for
            follow(name, folder, step)
    except BaseException as error:
        traceback.print_exc()
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", flush=True)
        os._exit(1)  # the library's own clean-up may wait for ever


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
