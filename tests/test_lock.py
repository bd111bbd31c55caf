"""A folder is one process's: what others are told, and what happens to the lock of one that is gone."""

import json
import os
import socket
import time

import pytest

from dft_mm import lock
from dft_mm.errors import InputError

WORDS = ("run", "give another name")


def held(folder):
    return lock.locked(folder, *WORDS)


def test_a_folder_is_held_by_one_at_a_time(tmp_path):
    out = tmp_path / "a/b"
    with held(out):
        told = f"{out}: another run works there now .process {os.getpid()} on {socket.gethostname()}.; .* another name"
        with pytest.raises(InputError, match=told), held(out):
            pass
        assert out.is_dir()
        (out / "file").touch()
    with held(out):
        pass
    assert [path.name for path in out.iterdir()] == ["file"]
    with pytest.raises(ZeroDivisionError), held(tmp_path / "c"):
        raise ZeroDivisionError
    assert not (tmp_path / "c").exists()
    (tmp_path / "d").touch()
    with pytest.raises(InputError, match=r"d cannot be made .*give another name"), held(tmp_path / "d"):
        pass


def test_the_lock_of_a_process_that_was_killed_is_taken_over_with_a_note(tmp_path, caplog):
    pid = os.fork()
    if not pid:
        with held(tmp_path):
            os._exit(9)
    os.waitpid(pid, 0)
    assert (tmp_path / lock.NAME).exists()
    with held(tmp_path):
        assert f"an earlier run did not end of itself (process {pid} on" in caplog.text
        assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == os.getpid()
    assert not (tmp_path / lock.NAME).exists()


def test_the_lock_of_another_host_is_waited_for_until_it_is_stale(tmp_path, monkeypatch):
    path = tmp_path / lock.NAME
    path.write_text(json.dumps({"host": "elsewhere", "pid": 7}))
    monkeypatch.setattr(lock, "STALE_S", 2.0)
    start = time.monotonic()
    with held(tmp_path):
        assert time.monotonic() - start > 1

    path.write_text(json.dumps({"host": "elsewhere", "pid": 7}))
    sleep = time.sleep

    def touching(seconds):
        path.touch()
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", touching)
    with pytest.raises(InputError, match="process 7 on elsewhere"), held(tmp_path):
        pass
