import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from dft_mm.study.launch import CPU_ENVIRONMENT, rank_command, run_command


def test_output_is_shown_without_noise_and_kept_whole(tmp_path, caplog):
    caplog.set_level("INFO", logger="dft_mm")
    code = "import os; print('[2026-01-01] noise'); print('step 1', os.environ['DS_ACCELERATOR'], os.getcwd())"
    run_command([sys.executable, "-c", code], tmp_path, tmp_path / "log", CPU_ENVIRONMENT)
    shown = [record.getMessage() for record in caplog.records]
    assert f"  step 1 cpu {tmp_path}" in shown
    assert not any("noise" in line and not line.startswith("$") for line in shown)
    assert "[2026-01-01] noise\nstep 1 cpu" in (tmp_path / "log").read_text()


def test_a_failing_command_is_told_with_its_last_lines(tmp_path):
    with pytest.raises(RuntimeError, match=r"exit code 5.*\n.*because"):
        run_command([sys.executable, "-c", "print('because'); raise SystemExit(5)"], tmp_path, tmp_path / "log", {})


def test_a_signal_ends_the_command_and_all_that_it_started(tmp_path):
    # It is deaf to the request to stop, so that only the last resort ends it.
    deaf = "import signal, time, pathlib; signal.signal(signal.SIGUSR1, signal.SIG_IGN)"
    grandchild = f"{deaf}; pathlib.Path({str(tmp_path / 'up')!r}).touch(); time.sleep(60)"
    child = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {grandchild!r}]); time.sleep(60)"
    code = f"""
        import sys
        from pathlib import Path
        from dft_mm.errors import Stopped
        from dft_mm.study import launch
        launch._PATIENCE_S = 1.0
        folder = Path({str(tmp_path)!r})
        try:
            launch.run_command([sys.executable, "-c", {child!r}], folder, folder / "log", {{}})
        except Stopped as stop:
            print(stop)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not (tmp_path / "up").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert "the same command goes on" in said
    assert process.returncode == 0
    assert not _running(grandchild)


def _running(code):
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().split(b"\0")
        except OSError:  # it ended meanwhile
            continue
        if code.encode() in words:
            return True
    return False


def test_each_launch_takes_a_port_of_its_own():
    command = rank_command(2, "train", "r.yaml")
    assert command[:3] == ["deepspeed", "--num_gpus", "2"]
    assert command[-4:] == ["--module", "dft_mm", "train", "r.yaml"]
    assert 1024 < int(command[command.index("--master_port") + 1]) < 65536


def test_another_module_and_a_rank_alone():
    assert rank_command(1, "train", "r.yaml") == [sys.executable, "-m", "dft_mm", "train", "r.yaml"]
    assert rank_command(2, "dpo", module="a.b")[-3:] == ["--module", "a.b", "dpo"]
