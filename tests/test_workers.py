"""Processes that work for another."""

import contextlib
import subprocess
import sys

import psutil
import pytest

from dft_mm.signals import STOP_SIGNALS

PARENT = """
import ctypes, multiprocessing, os, sys, threading, time
from dft_mm.workers import deaf_to_stop_signals, end_with_parent

def waits_for_a_lock():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()

def holds_the_interpreter():
    ctypes.PyDLL(None).sleep(60)

def begins_too_late():
    while os.getppid() == parent:
        time.sleep(0.01)
    end_with_parent()
    waits_for_a_lock()

def work(what, told):
    global parent
    parent = os.getppid()
    if what is not begins_too_late:
        end_with_parent()
    told.send(os.getpid())
    what()

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    hears, told = context.Pipe()
    with deaf_to_stop_signals():
        worker = context.Process(target=work, args=(globals()[sys.argv[1]], told))
        worker.start()
    print(hears.recv(), flush=True)
    for order in sys.stdin:
        worker.terminate()
    worker.join()
"""


@pytest.fixture
def parent(tmp_path):
    """Starts a process whose worker does something: (process, worker)."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    started = []

    def start(what):
        process = subprocess.Popen(
            [sys.executable, str(script), what], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        started.append(psutil.Process(int(process.stdout.readline())))
        return started[-2:]

    yield start
    for process in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def gone(process, seconds=20):
    try:
        process.wait(seconds)
    except psutil.TimeoutExpired:
        return False
    return True


@pytest.mark.parametrize("what", ["waits_for_a_lock", "begins_too_late", "holds_the_interpreter"])
def test_a_worker_ends_with_its_parent_whatever_it_is_doing(parent, what):
    if what == "holds_the_interpreter" and sys.platform != "linux":
        pytest.skip("only Linux ends a process with its parent")
    process, worker = parent(what)
    process.kill()
    process.wait()
    assert gone(worker)


def test_a_worker_hears_of_no_stop_signal_but_its_parents(parent):
    process, worker = parent("waits_for_a_lock")
    for number in STOP_SIGNALS:
        worker.send_signal(number)
    assert not gone(worker, 0.5)
    process.communicate("end it\n", timeout=20)
    assert process.returncode == 0
    assert gone(worker, 0)


def test_a_script_knows_whether_a_worker_imports_it(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing\nfrom dft_mm.workers import being_imported_by_a_worker\n"
        "print(being_imported_by_a_worker(), flush=True)\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.get_context('spawn').Process(target=print).start()\n"
    )
    told = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True).stdout
    assert told.split() == ["False", "True"]
