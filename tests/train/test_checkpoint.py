"""Checkpoints that are whole or not there, with a stand-in for the engine that writes two shards."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from dft_mm.errors import InputError
from dft_mm.train import checkpoint

IDENTITY = {"model": "a", "data": "b", "zero_stage": 3}


class Shards:
    """Writes and reads as DeepSpeed does: a folder named by the tag."""

    value = 1.0

    def save_checkpoint(self, folder, tag, save_latest, exclude_frozen_parameters):
        assert not save_latest
        assert not exclude_frozen_parameters
        (Path(folder) / tag).mkdir()
        for shard in range(2):
            torch.save(torch.full((64,), self.value + shard), Path(folder) / tag / f"shard{shard}.pt")

    module = None

    def load_checkpoint(self, folder, tag, load_module_strict):
        assert load_module_strict
        self.value = float(torch.load(Path(folder) / tag / "shard0.pt")[0])
        return folder, {}


@pytest.fixture
def folder(tmp_path):
    engine = Shards()
    for step in (10, 20):
        engine.value = float(step)
        checkpoint.save(engine, tmp_path, step, IDENTITY, keep=2)
    return tmp_path


def test_a_saved_checkpoint_is_whole_and_comes_back(folder):
    newest = checkpoint.newest_whole(folder)
    assert newest.name == "step-00000020"
    engine = Shards()
    assert checkpoint.load(engine, newest, IDENTITY) == 20
    assert engine.value == 20.0


def test_only_the_newest_are_kept_and_nothing_temporary_stays(folder):
    checkpoint.save(Shards(), folder, 30, IDENTITY, keep=2)
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000020", "step-00000030"]


def _files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_one_changed_bit_anywhere_is_noticed_and_the_older_one_is_used(folder):
    newest = folder / "step-00000020"
    for path in [path for path in _files(newest) if path.name != "manifest.json"]:
        good = path.read_bytes()
        for at in (0, len(good) // 2, len(good) - 1):
            path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
            assert checkpoint.newest_whole(folder).name == "step-00000010"
        path.write_bytes(good)
    assert checkpoint.newest_whole(folder) == newest


def test_a_missing_or_cut_file_or_manifest_is_noticed(folder):
    newest = folder / "step-00000020"
    for path in _files(newest):
        good = path.read_bytes()
        for damage in (lambda p, g: p.unlink(), lambda p, g: p.write_bytes(g[: len(g) // 2])):
            damage(path, good)
            assert checkpoint.newest_whole(folder).name == "step-00000010"
            path.write_bytes(good)
    assert checkpoint.verify(newest) is None


def test_a_manifest_may_not_point_outside(folder):
    newest = folder / "step-00000020"
    manifest = (newest / "manifest.json").read_text()
    (newest / "manifest.json").write_text(manifest.replace("engine/shard0.pt", "../step-00000010/engine/shard0.pt"))
    assert "outside" in checkpoint.verify(newest)


def test_a_crash_before_the_rename_leaves_the_old_ones(folder, monkeypatch):
    def crash(self, target):
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "rename", crash)
    with pytest.raises(OSError, match="no space"):
        checkpoint.save(Shards(), folder, 30, IDENTITY, keep=2)
    monkeypatch.undo()
    assert checkpoint.newest_whole(folder).name == "step-00000020"
    checkpoint.save(Shards(), folder, 30, IDENTITY, keep=2)  # what was left behind is no obstacle
    assert checkpoint.newest_whole(folder).name == "step-00000030"


def test_a_checkpoint_of_another_model_or_number_of_ranks_is_refused(folder, monkeypatch):
    newest = checkpoint.newest_whole(folder)
    with pytest.raises(InputError, match="another model"):
        checkpoint.load(Shards(), newest, IDENTITY | {"model": "z"})
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "4")
    with pytest.raises(InputError, match="made by 1 ranks"):
        checkpoint.load(Shards(), newest, IDENTITY)


def test_random_states_come_back(tmp_path):
    import random

    torch.manual_seed(1)
    np.random.seed(2)
    random.seed(3)
    saved = checkpoint.save(Shards(), tmp_path, 1, IDENTITY, keep=2)
    first = (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random())
    checkpoint.load(Shards(), saved, IDENTITY)
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()) == first
