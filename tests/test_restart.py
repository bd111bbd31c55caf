"""Beginning again after a failure, with a stand-in for the training process."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from dft_mm import restart
from dft_mm.errors import InputError

PROGRAM = """
import os, sys
from dft_mm import restart
sys.executable = sys.argv[1]
sys.exit(restart.attempts(["train", "recipe.yaml"], 2))
"""


def run(tmp_path, script, wait=True):
    """`attempts` with a script in place of `python -m dft_mm`; it sees DFT_MM_ATTEMPT."""
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\n" + textwrap.dedent(script))
    fake.chmod(0o755)
    environment = {**os.environ, "MASTER_PORT": "30000", "LOCAL_RANK": "0"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = subprocess.Popen([sys.executable, "-c", PROGRAM, str(fake)], env=environment, **pipes)
    if not wait:
        return started
    told, errors = started.communicate(timeout=60)
    return started.returncode, told, errors


def test_a_failed_run_begins_again_on_another_port(tmp_path):
    script = 'echo "$DFT_MM_ATTEMPT $MASTER_PORT $*"\n[ $DFT_MM_ATTEMPT = 2 ] || kill -9 $$\n'
    code, told, errors = run(tmp_path, script)
    assert code == 0
    assert told.splitlines() == [f"{n} {30000 + n} -m dft_mm train recipe.yaml" for n in range(3)]
    assert "beginning again, 2 of 2" in errors


def test_it_ends_when_no_attempt_is_left(tmp_path):
    code, told, _ = run(tmp_path, "echo once\nexit 1\n")
    assert (code, told.count("once")) == (1, 3)


@pytest.mark.parametrize(("exits", "code"), [(0, 0), (2, 2), (3, 3), (restart.EXIT_SAME_AGAIN, 1)])
def test_what_would_not_help_is_not_tried(tmp_path, exits, code):
    assert run(tmp_path, f"echo once\nexit {exits}\n")[:2] == (code, "once\n")


def test_a_signal_is_passed_on_and_ends_the_attempts(tmp_path):
    started = run(tmp_path, "trap 'exit 1' USR1\necho ready\nwhile :; do sleep 0.1; done\n", wait=False)
    assert started.stdout.readline() == "ready\n"
    time.sleep(0.1)
    started.send_signal(signal.SIGUSR1)
    assert started.wait(timeout=30) == 1
    assert started.stdout.read() == ""


def test_torchruns_own_restarts_are_not_doubled(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with pytest.raises(InputError, match="--max-restarts"):
        restart.attempts([], 1)
