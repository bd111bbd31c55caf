"""Processes of this host: whether one lives, and which are the launcher of another."""

from collections.abc import Sequence
from pathlib import Path

import psutil

_LAUNCHERS = {"deepspeed", "deepspeed.launcher.launch", "deepspeed.launcher.runner", "torchrun", "dft-mm", "dft_mm"}


def lives(pid: int, born: float) -> bool:
    try:
        process = psutil.Process(pid)
        return process.create_time() == born and runs(process)
    except psutil.NoSuchProcess:
        return False


def runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def launchers(process: psutil.Process) -> Sequence[psutil.Process]:
    """The launcher's processes above one, as far as they are known as such: a shell may go and leave a run behind."""
    found = []
    for parent in process.parents():
        try:
            words = parent.cmdline()[:4]
        except psutil.Error:
            break
        if not words or not Path(words[0]).name.startswith("python"):
            break
        if not any(word in _LAUNCHERS or Path(word).name in _LAUNCHERS for word in words[1:]):
            break
        found.append(parent)
    return found
