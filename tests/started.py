"""Our command line in processes of their own that start at once, to be killed, signalled and limited."""

import contextlib
import multiprocessing
import os
import resource
import sys
import time

_fork = multiprocessing.get_context("forkserver")
_fork.set_forkserver_preload(["dft_mm.evaluate.run", "dft_mm.evaluate.backends.hf", "dft_mm.evaluate.backends.openai"])


def _run(arguments, environment, log, most_bytes):
    import torch

    from dft_mm.__main__ import main

    os.environ.update(environment)
    torch.set_num_threads(1)
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if most_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    sys.exit(main(arguments))


@contextlib.contextmanager
def started(arguments, log, environment=None, most_bytes=None):
    """`dft-mm` with these arguments, its output in a file; it is gone in the end."""
    child = _fork.Process(target=_run, args=([str(each) for each in arguments], environment or {}, log, most_bytes))
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
