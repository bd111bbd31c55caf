"""Starts the command line again and again, each time in a process of its own that is killed after some answers.

A JSON request on standard input: {"runs": [{"command": […], "file": …, "kill_at": lines or null}]}. The libraries are
imported once, before the processes part.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import dft_mm.evaluate.backends.hf
import dft_mm.evaluate.run  # noqa: F401
from dft_mm.__main__ import main


def lines(path):
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def run(command, file, kill_at):
    child = os.fork()
    if child == 0:
        os._exit(main(command))
    end = time.monotonic() + 120
    while kill_at is not None and lines(Path(file)) < kill_at:
        if os.waitpid(child, os.WNOHANG)[0] or time.monotonic() > end:
            sys.exit(f"ended, or hangs, with {lines(Path(file))} answers; was to be killed at {kill_at}")
        time.sleep(0.002)
    if kill_at is not None:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code != (0 if kill_at is None else -signal.SIGKILL):
        sys.exit(f"exit {code} of {command}")
    return lines(Path(file))


print(json.dumps([run(**each) for each in json.load(sys.stdin)["runs"]]))
