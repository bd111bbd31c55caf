import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from dft_mm.data.preparing.pool import Pool


def times(setup, task):
    return setup * task


def whoami(setup, task):
    return os.getpid()


def fail(setup, task):
    raise ValueError(f"task {task}")


def die(setup, task):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("alone", [True, False])
def test_results_come_in_the_order_of_the_tasks(alone):
    with Pool(3, 2) as pool:
        assert list(pool.map(times, range(20), alone=alone)) == [3 * n for n in range(20)]


def test_work_is_done_by_other_processes_and_alone_by_this_one():
    with Pool(None, 2) as pool:
        assert set(pool.map(whoami, range(3), alone=True)) == {os.getpid()}
        assert os.getpid() not in set(pool.map(whoami, range(3)))


def test_errors_of_tasks_and_killed_processes_are_told():
    with Pool(None, 2) as pool, pytest.raises(ValueError, match="task 0"):
        list(pool.map(fail, range(3)))
    with Pool(None, 2) as pool, pytest.raises(RuntimeError, match="a worker process was killed"):
        list(pool.map(die, range(3)))


CHILD = """
import sys, time
sys.path[:0] = {paths!r}
from test_pool import whoami
from dft_mm.data.preparing.pool import Pool
if __name__ == "__main__":
    with Pool(None, 2) as pool:
        print(*set(pool.map(whoami, range(8))), flush=True)
        time.sleep(60)
"""


def test_workers_end_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(CHILD.format(paths=[os.path.dirname(__file__)]))  # noqa: PTH120
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    workers = [int(word) for word in parent.stdout.readline().split()]
    parent.kill()
    parent.wait()
    assert workers
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{pid}") for pid in workers) and time.monotonic() < deadline:  # noqa: PTH110
        time.sleep(0.05)
    assert not [pid for pid in workers if os.path.exists(f"/proc/{pid}")]  # noqa: PTH110
    assert multiprocessing.parent_process() is None
