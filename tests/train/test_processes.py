"""Processes of this host."""

import psutil

from dft_mm.train.processes import launchers, lives


def test_a_number_that_is_anothers_now_is_not_the_process():
    own = psutil.Process()
    assert lives(own.pid, own.create_time())
    assert not lives(own.pid, own.create_time() - 100)


def test_a_shell_is_no_launcher():
    assert all("pytest" not in " ".join(parent.cmdline()) for parent in launchers(psutil.Process()))
