"""Our command line in processes of their own that start at once, to be killed, signalled and limited."""

import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import resource
import sys
import tempfile
import time
import unittest.mock
from pathlib import Path

_fork = multiprocessing.get_context("forkserver")
_fork.set_forkserver_preload(
    [
        "dft_mm.evaluate.run", "dft_mm.evaluate.backends.hf", "dft_mm.evaluate.backends.openai", "dft_mm.train.run",
        "dft_mm.train.loop",
    ]
)


def _run(arguments, environment, log, most_bytes, prelude):
    import torch

    from dft_mm.__main__ import main

    os.environ.update(environment)
    sys.argv = ["dft-mm", *arguments]
    torch.set_num_threads(1)
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if most_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    exec(prelude, {})
    sys.exit(main(arguments))


@contextlib.contextmanager
def started(arguments, log, environment=None, most_bytes=None, prelude=""):
    """`dft-mm` with these arguments, its output in a file; it is gone in the end. `prelude`: Python to run before."""
    words = [str(each) for each in arguments]
    child = _fork.Process(target=_run, args=(words, environment or {}, log, most_bytes, prelude))
    with unittest.mock.patch.dict(os.environ, {"DS_ACCELERATOR": "cpu"}):  # which DeepSpeed asks when it is imported
        multiprocessing.forkserver.ensure_running()
    child.start()
    try:
        yield child
    finally:
        child.kill()
        child.join()


def ended(child, seconds=60):
    """The exit code."""
    child.join(seconds)
    assert child.exitcode is not None, "it does not end"
    return child.exitcode


def until(what, child, seconds=60):
    """Wait until something holds while the process lives."""
    end = time.monotonic() + seconds
    while not what():
        assert child.exitcode is None, f"it ended with {child.exitcode}"
        assert time.monotonic() < end
        time.sleep(0.005)


def done(arguments, folder, environment=None, prelude="", seconds=240):
    """Run to the end: (exit code, output)."""
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".log") as log:
        with started(arguments, Path(log.name), environment, prelude=prelude) as child:
            code = ended(child, seconds)
        return code, Path(log.name).read_text(errors="replace")
