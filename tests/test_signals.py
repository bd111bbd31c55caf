"""Asking a process to stop."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from dft_mm.errors import Stopped
from dft_mm.signals import STOP_SIGNALS, StopRequests


def _send_and_sleep(number):
    os.kill(os.getpid(), number)
    time.sleep(5)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_stops_at_once_where_nothing_is_under_way(number):
    before = signal.getsignal(number)
    with StopRequests(), pytest.raises(Stopped, match=signal.Signals(number).name):
        _send_and_sleep(number)
    assert signal.getsignal(number) == before


def test_a_signal_is_only_noted_while_a_step_is_under_way():
    with StopRequests() as requests:
        assert not requests
        with requests.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGUSR1)
        assert requests.received == [signal.SIGTERM, signal.SIGUSR1]
        with pytest.raises(Stopped):
            requests.check()
        with pytest.raises(Stopped), requests.deferred():
            pytest.fail("it was asked to stop before")


def test_a_late_second_signal_ends_the_process():
    program = """
        import os, signal, time
        import dft_mm.signals as signals
        signals._SAME_WISH_S = 0.2
        with signals.StopRequests() as requests, requests.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)
            print("alive", flush=True)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGINT, "alive\n")
