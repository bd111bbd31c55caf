"""Training and scoring as commands of their own: shown live, kept in a log file, stopped when this process is."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TextIO

from dft_mm.dist import log
from dft_mm.errors import InputError, Stopped
from dft_mm.train.run_folder import state_of

CPU_ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
# What the launcher and libraries say besides, and tables that come again; the log file has it all.
_NOISE = re.compile(r"^\[|^[WE]\d{4} |Warning: |^\s|^$|^#|^\||DeepSpeed deepspeed\.ops")
_EXIT_INPUT = 2
_PATIENCE_S = 60.0
_LOOK_EVERY_S = 0.2


def accelerators() -> int:
    """Of this machine; 1 where it has none."""
    import torch

    return max(1, torch.cuda.device_count())


def machine_environment() -> dict[str, str]:
    """On a machine without a GPU one thread a process; what the user has set stays."""
    import torch

    return {} if torch.cuda.is_available() else {**CPU_ENVIRONMENT, **os.environ}


def rank_command(ranks: int, *words: str, module: str = "dft_mm") -> list[str]:
    """A Python module as one process, or as several under the launcher, on this machine's accelerators or its CPU, and
    on a port that is free now."""
    if ranks == 1:
        return [sys.executable, "-m", module, *words]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    where = ["--num_gpus", str(ranks), "--master_port", str(port)]
    return ["deepspeed", *where, "--module", module, *words]


def run_command(command: Sequence[str], folder: Path, log_file: Path, environment: Mapping[str, str]) -> None:
    """Run a command in `folder`, with these variables beside this process's.

    Raises Stopped when a signal came, InputError when the command says so, RuntimeError with the last lines when it
    fails otherwise.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = os.environ | environment | {"PATH": path}
    log.info("$ %s", " ".join(command))
    last: deque[str] = deque(maxlen=20)
    with log_file.open("a", encoding="utf-8") as kept, log_file.open(encoding="utf-8", errors="replace") as written:
        kept.write(f"$ {' '.join(command)}\n")
        kept.flush()
        written.seek(0, os.SEEK_END)
        # It writes to the file itself, not to a pipe, which a rank that outlives the launcher would keep open.
        # In a session of its own: a terminal's Ctrl-C reaches it once, from here, and its group is all that it started.
        child = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=kept, stderr=kept,
            start_new_session=True,
        )  # fmt: skip
        with _passing_signals_on(child):
            while child.poll() is None:
                last.extend(_show_lines(written))
                time.sleep(_LOOK_EVERY_S)
        last.extend(_show_lines(written))
    if child.returncode == _EXIT_INPUT:
        raise InputError(f"{' '.join(command)}: {last[-1].strip() if last else 'the input is wrong'}")
    if child.returncode:
        shown = "".join(last)
        raise RuntimeError(
            f"{' '.join(command)}: exit code {child.returncode}; all is in {log_file}, the end:\n{shown}"
        )


def run_verb(log_file: Path, *words: str) -> None:
    """`run_command` for a verb of dft-mm in one process, here and on what this machine has."""
    run_command([sys.executable, "-m", "dft_mm", *words], Path.cwd(), log_file, machine_environment())


def train_run(run: Path, command: Sequence[str], folder: Path, log_file: Path, environment: Mapping[str, str]) -> None:
    """`run_command` for a training, whose launcher's exit code says little: `run`/STATUS.json tells how it ended.

    Raises Stopped when it was stopped, RuntimeError when it did not finish.
    """
    run_command(command, folder, log_file, environment)
    state = state_of(run)
    if state == "stopped":
        raise Stopped(f"training {run.name} was stopped; the same command goes on from there")
    if state != "finished":
        raise RuntimeError(f"training {run.name} ended as {state}; {log_file} tells more")


def _show_lines(file: TextIO) -> list[str]:
    """Log the whole lines that came since the last call, without noise; return them all."""
    lines = []
    while True:
        start, line = file.tell(), file.readline()
        if not line.endswith("\n"):
            file.seek(start)
            return lines
        lines.append(line)
        if not _NOISE.search(line):
            log.info("  %s", line.rstrip())


@contextlib.contextmanager
def _passing_signals_on(child: "subprocess.Popen[bytes]") -> Iterator[None]:
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        # Of one node, DeepSpeed's runner passes nothing on, and its launcher answers SIGINT or SIGTERM with a second
        # signal to the ranks, which then cannot save. SIGUSR1 ends both, and asks the ranks to save and stop.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGUSR1)

    handled = (signal.SIGTERM, signal.SIGINT)
    previous = {number: signal.signal(number, pass_on) for number in handled}
    try:
        yield
    finally:
        _end_group(child.pid)
        for number, handler in previous.items():
            signal.signal(number, handler)
    if received:
        raise Stopped("stopped; the same command goes on from the last checkpoint")


def _end_group(group: int) -> None:
    """A launcher may be gone before its ranks: give them time to save, then make sure that none is left."""
    end = time.monotonic() + _PATIENCE_S
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < end:
            os.killpg(group, 0)
            time.sleep(_LOOK_EVERY_S)
        os.killpg(group, signal.SIGKILL)
