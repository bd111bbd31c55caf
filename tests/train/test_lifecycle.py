"""What is said about a run that ends, and what becomes a note."""

import errno
import json
import re
import signal

import pytest
import torch

from dft_mm.config import Recipe
from dft_mm.errors import InputError, Stopped
from dft_mm.signals import StopRequests
from dft_mm.train import lifecycle
from dft_mm.train.lifecycle import in_words, reported


@pytest.fixture
def recipe(tmp_path):
    values = {"name": "t", "model": {"path": "m"}, "data": {"train": [{"path": "x", "format": "messages"}]}}
    return Recipe.model_validate(values | {"output": str(tmp_path)})


def end(recipe, error):
    with reported(recipe, StopRequests()) as run:
        run.step, run.doing = 6, 7
        if error:
            raise error


def status(recipe):
    return json.loads((recipe.run_dir / "STATUS.json").read_text())


@pytest.mark.parametrize(
    ("error", "kind", "state", "reason"),
    [
        (Stopped("stopped after step 6"), Stopped, "stopped", "stopped after step 6"),
        (InputError("data.train: gone"), InputError, "failed", "data.train: gone"),
        (KeyError("x"), KeyError, "failed", "step 7: KeyError: 'x'"),
        (RuntimeError("counted 5 tokens, the step 4"), RuntimeError, "failed", "^step 7: RuntimeError: counted 5 tok"),
        (KeyboardInterrupt(), KeyboardInterrupt, "failed", "step 7: KeyboardInterrupt: "),
        (OSError(errno.ENOSPC, "No space left on device"), InputError, "failed", "step 7: .*No space left.*make room"),
        (torch.OutOfMemoryError("tried 2 GiB"), InputError, "failed", "step 7: out of memory: lower train.micro_toke"),
    ],
)
def test_the_status_tells_how_a_run_ended(recipe, error, kind, state, reason):
    with pytest.raises(kind):
        end(recipe, error)
    told = status(recipe)
    assert (told["state"], told["step"]) == (state, 6)
    assert re.search(reason, told["reason"])
    assert [path.name for path in recipe.run_dir.iterdir()] == ["STATUS.json"]


def test_a_run_that_ends_well_is_finished(recipe):
    end(recipe, None)
    assert status(recipe)["state"] == "finished"


def test_notes_stay_in_the_status(recipe):
    with reported(recipe, StopRequests()) as run:
        run.step = 3
        run.note("step 3: the loss jumped")
        assert status(recipe) | {"time": ""} == {
            "state": "running", "step": 3, "reason": "", "time": "", "notes": ["step 3: the loss jumped"]
        }  # fmt: skip
    assert status(recipe)["notes"] == ["step 3: the loss jumped"]


def test_a_full_disk_still_takes_the_status(recipe, monkeypatch):
    end(recipe, None)

    def full(path, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dft_mm.train.run_folder.write_atomically", full)
    with pytest.raises(KeyError):
        end(recipe, KeyError("x"))
    assert status(recipe)["state"] == "failed"


def test_out_of_memory_on_a_cpu_is_known_too(recipe):
    error = RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried 9")
    with reported(recipe, StopRequests()) as run:
        told = str(in_words(error, recipe, run))
    assert "before the first step: out of memory" in told
    assert "train.micro_tokens (now 8192; data.max_length is 4096)" in told
    assert "ds_configs/zero3.json" in told


def test_a_signal_while_a_failure_is_told_changes_nothing(recipe, monkeypatch):
    write = lifecycle.write_status

    def signalled(folder, state, *told):
        if state == "failed":
            signal.raise_signal(signal.SIGTERM)
        write(folder, state, *told)

    monkeypatch.setattr(lifecycle, "write_status", signalled)
    with pytest.raises(RuntimeError, match="lost"), StopRequests() as requests, reported(recipe, requests):
        raise RuntimeError("lost")
    assert status(recipe)["state"] == "failed"
