"""A rank that begins again when its run has failed: the launcher's process stays, the training process is a new one.

Each rank does so by itself. That they begin together follows from a run ending on all ranks when it ends on one, and
from the ranks waiting for each other when they meet. Nothing here imports torch.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from types import FrameType

from dft_mm.errors import InputError
from dft_mm.signals import STOP_SIGNALS

ATTEMPT = "DFT_MM_ATTEMPT"
EXIT_SAME_AGAIN = 4
"""Of a training process that would fail in the same step again; the launcher is told 1."""
_ENDS = (0, 2, 3)


def is_attempt() -> bool:
    """Whether this process was started by `attempts`."""
    return ATTEMPT in os.environ


def attempts(arguments: Sequence[str], restarts: int) -> int:
    """Run `dft-mm` with these arguments in a process, up to `restarts` times again; returns the exit code.

    It does not begin again after a success, an error in the input, a stop that was asked for, or a step that would fail
    again. Signals are passed on.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise InputError("train.restarts: torchrun restarts ranks by itself (--max-restarts); set train.restarts: 0")
    code = 1
    for attempt in range(restarts + 1):
        environment = os.environ | {ATTEMPT: str(attempt)}
        if "MASTER_PORT" in environment:  # the last one's may still be taken
            environment["MASTER_PORT"] = str(int(environment["MASTER_PORT"]) + attempt)
        child = subprocess.Popen([sys.executable, "-m", "dft_mm", *arguments], env=environment)
        with _passing_on(child) as passed:
            code = child.wait()
        if code in _ENDS or passed:
            return code
        if code == EXIT_SAME_AGAIN:
            return 1
        if os.environ.get("LOCAL_RANK", "0") == "0" and attempt < restarts:
            print(f"dft-mm: the run failed; beginning again, {attempt + 1} of {restarts}", file=sys.stderr)
    return code if code > 0 else 1


@contextlib.contextmanager
def _passing_on(child: "subprocess.Popen[bytes]") -> Iterator[list[int]]:
    passed: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        passed.append(number)
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(number)

    previous = {number: signal.signal(number, pass_on) for number in STOP_SIGNALS}
    try:
        yield passed
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
