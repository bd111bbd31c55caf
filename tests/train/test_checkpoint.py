"""Checkpoints that are whole or not there, with a stand-in for the engine that writes two shards."""

import errno
import os
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from deepspeed.runtime.zero.config import ZeroStageEnum
from torch import nn

from dft_mm.errors import InputError
from dft_mm.train import checkpoint, shards, verify
from dft_mm.train.checkpoint import Checkpoints, SaveError, load
from dft_mm.train.shards import ShardFiles, load_shard
from dft_mm.train.verify import newest_whole, verify_run

IDENTITY = {"model": "a", "data": "b", "zero_stage": 3}


class Shards:
    """Writes and reads as DeepSpeed does: through its checkpoint engine, into a folder named by the tag."""

    checkpoint_engine = None

    def __init__(self, value=1.0):
        self.value, self.module = value, nn.Linear(4, 4)

    def save_checkpoint(self, folder, tag, save_latest, exclude_frozen_parameters):
        assert not save_latest
        assert not exclude_frozen_parameters
        self.checkpoint_engine.makedirs(str(Path(folder) / tag), exist_ok=True)
        for shard in range(2):
            state = {"weights": torch.full((64,), self.value + shard), "step": 3}
            self.checkpoint_engine.save(state, str(Path(folder) / tag / f"shard{shard}.pt"))

    def load_checkpoint(self, folder, tag, load_module_strict):
        assert load_module_strict
        self.value = float(self.checkpoint_engine.load(str(Path(folder) / tag / "shard0.pt"))["weights"][0])
        return folder, {}


def save(folder, step, keep=2, **changes):
    saver = Checkpoints(Shards(float(step)), folder, IDENTITY, keep, **changes)
    saver.save(step)
    return saver.commit()


@pytest.fixture
def folder(tmp_path):
    for step in (10, 20):
        save(tmp_path, step)
    return tmp_path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_saved_checkpoint_is_whole_and_comes_back(folder):
    newest = newest_whole(folder)
    assert newest.name == "step-00000020"
    engine = Shards()
    assert load(engine, newest, IDENTITY) == 20
    assert engine.value == 20.0


def test_only_the_newest_are_kept_and_nothing_temporary_stays(folder):
    save(folder, 30)
    assert names(folder) == ["step-00000020", "step-00000030"]


def test_a_checkpoint_counts_only_when_it_is_on_the_disk(folder, monkeypatch):
    reached, go_on = threading.Event(), threading.Event()
    sync = os.fsync

    def slow(descriptor):
        reached.set()
        assert go_on.wait(10)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    saver = Checkpoints(Shards(30.0), folder, IDENTITY, 2)
    saver.save(30)  # does not wait for the disk
    assert reached.wait(10)
    assert (saver.pending, saver.on_disk) == (True, False)
    assert newest_whole(folder).name == "step-00000020"
    go_on.set()
    saver.commit()
    assert (saver.pending, saver.on_disk) == (False, True)
    assert newest_whole(folder).name == "step-00000030"


def _files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_one_changed_bit_anywhere_is_noticed_and_the_older_one_is_used(folder):
    newest, noticed = folder / "step-00000020", 0
    for path in _files(newest):
        good = path.read_bytes()
        for at in {0, len(good) // 4, len(good) // 2, 3 * len(good) // 4, len(good) - 2}:
            path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
            assert newest_whole(folder).name == "step-00000010", (path, at)
            noticed += 1
        path.write_bytes(good)
    assert noticed >= 20
    assert newest_whole(folder) == newest


def test_a_missing_cut_or_foreign_file_is_noticed(folder):
    newest = folder / "step-00000020"
    for path in _files(newest):
        good = path.read_bytes()
        for damage in (lambda p, g: p.unlink(), lambda p, g: p.write_bytes(g[: len(g) // 2])):
            damage(path, good)
            assert newest_whole(folder).name == "step-00000010"
            path.write_bytes(good)
    assert verify.verify(newest) is None
    shutil.copy(newest / "engine/shard0.pt", newest / "engine/shard7.pt")
    assert verify.verify(newest) == "engine/shard7.pt is not in its manifest"


def test_the_checkpoints_of_a_run_are_told_one_by_one(folder, tmp_path):
    (folder / "step-00000010/engine/shard1.pt").unlink()
    assert [(path.name, problem) for path, problem in verify_run(folder)] == [
        ("step-00000010", "engine/shard1.pt is missing"),
        ("step-00000020", None),
    ]
    with pytest.raises(InputError, match="no checkpoints"):
        verify_run(tmp_path / "nothing")


def test_a_manifest_may_not_point_outside(folder):
    newest = folder / "step-00000020"
    manifest = verify.read_manifest(newest)
    for name in ("../step-00000010/engine/shard0.pt", "/etc/hostname", "engine/../../step-00000010/engine/shard0.pt"):
        manifest["files"][0]["name"] = name
        verify.write_manifest(newest, manifest)
        assert "outside" in verify.verify(newest)
    shard = newest / "engine/shard0.pt"
    manifest["files"][0]["name"] = "engine/shard0.pt"
    verify.write_manifest(newest, manifest)
    assert verify.verify(newest) is None
    shard.rename(folder / "elsewhere.pt")
    shard.symlink_to(folder / "elsewhere.pt")
    assert "outside" in verify.verify(newest)


def crash_at(number, work):
    """Do `work` in a process that is gone at its `number`-th touch of the file system; whether it got that far."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    count = 0

    def touched(event, arguments):
        nonlocal count
        if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.listdir", "os.scandir"):
            count += 1
            if count == number:
                os._exit(9)

    sys.addaudithook(touched)
    work()
    os._exit(0)


def test_a_crash_at_any_stage_of_a_save_leaves_only_whole_checkpoints(folder):
    stages = 0
    for number in range(1, 200):
        if not crash_at(number, lambda: save(folder, 30)):
            break
        stages += 1
        newest = newest_whole(folder)
        engine = Shards()
        step = load(engine, newest, IDENTITY)
        assert engine.value == step
        assert step in (20, 30)
        shutil.rmtree(folder / "step-00000030", ignore_errors=True)
        save(folder, 20)
    assert stages >= 25
    save(folder, 30)  # what was left behind is no obstacle
    assert names(folder) == ["step-00000020", "step-00000030"]


def test_a_crash_in_the_middle_of_a_shard_leaves_the_old_ones(folder, monkeypatch):
    written = checkpoint.ShardFiles.save

    def cut(self, state, path):
        written(self, state, path)
        os.truncate(path, 40)
        os._exit(9)

    monkeypatch.setattr(checkpoint.ShardFiles, "save", cut)
    pid = os.fork()
    if not pid:
        save(folder, 30)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert newest_whole(folder).name == "step-00000020"


def test_a_full_disk_is_told_and_the_old_ones_stay(folder, monkeypatch):
    real = os.fsync

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    saver = Checkpoints(Shards(30.0), folder, IDENTITY, 2)
    saver.save(30)
    with pytest.raises(SaveError, match=r"step 30 could not be written \(rank 0: .*No space left"):
        saver.commit()
    monkeypatch.setattr(os, "fsync", real)
    assert names(folder) == ["step-00000010", "step-00000020"]
    assert not saver.pending
    saver.save(30)
    saver.commit()
    assert newest_whole(folder).name == "step-00000030"


def test_a_shard_that_could_not_be_written_leaves_no_checkpoint(folder, monkeypatch):
    def full(file, part):
        file.error = OSError(errno.ENOSPC, "No space left on device")
        raise file.error

    monkeypatch.setattr(shards._Hashed, "write", full)
    with pytest.raises(SaveError, match=r"step 30 could not be written \(rank 0: .*No space left"):
        save(folder, 30)
    assert names(folder) == ["step-00000010", "step-00000020"]


def test_space_is_looked_at_before_anything_is_written(folder, monkeypatch):
    needed = verify.size_of(folder / "step-00000020")
    free = shutil.disk_usage(folder)._replace(free=needed - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(SaveError, match=r"a checkpoint takes about .* are free"):
        save(folder, 30)
    assert names(folder) == ["step-00000010", "step-00000020"]


def test_what_must_be_on_the_disk_before_comes_before(folder):
    def metrics():
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    with pytest.raises(SaveError, match="quota"):
        save(folder, 30, before_commit=metrics)
    assert newest_whole(folder).name == "step-00000020"


def test_a_damaged_newer_checkpoint_does_not_push_a_whole_one_out(folder):
    save(folder, 30)  # now 20 and 30
    (folder / "step-00000030/engine/shard0.pt").unlink()
    save(folder, 25)
    assert newest_whole(folder).name == "step-00000025"
    assert "step-00000020" in names(folder)
    save(folder, 30)
    assert newest_whole(folder).name == "step-00000030"
    assert names(folder) == ["step-00000025", "step-00000030"]


def test_a_checkpoint_of_another_model_is_refused(folder):
    with pytest.raises(InputError, match="another model"):
        load(Shards(), newest_whole(folder), IDENTITY | {"model": "z"})


class Bomb:
    def __reduce__(self):
        return (os.system, ("touch exploded",))


def test_a_shard_is_data_and_not_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"weights": Bomb()}, tmp_path / "shard.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        load_shard(tmp_path / "shard.pt")
    assert not (tmp_path / "exploded").exists()


def test_the_stage_comes_back_where_python_writes_enumerations_by_getattr(tmp_path, monkeypatch):
    before_3_11_4 = lambda stage, protocol: (getattr, (type(stage), stage.name))  # noqa: E731
    monkeypatch.setattr(ZeroStageEnum, "__reduce_ex__", before_3_11_4)
    ShardFiles(tmp_path).save({"zero_stage": ZeroStageEnum.weights}, str(tmp_path / "a.pt"))
    assert load_shard(tmp_path / "a.pt")["zero_stage"] is ZeroStageEnum.weights


def test_the_hash_is_of_what_was_handed_over(tmp_path):
    writer = ShardFiles(tmp_path)
    writer.save({"weights": torch.arange(5)}, str(tmp_path / "a.pt"))
    writer.sync()
    (entry,) = writer.written
    assert entry == checkpoint._describe(tmp_path / "a.pt", tmp_path)
    assert load_shard(tmp_path / "a.pt")["weights"].tolist() == [0, 1, 2, 3, 4]


def test_random_states_come_back(tmp_path):
    import random

    torch.manual_seed(1)
    np.random.seed(2)
    random.seed(3)
    saved = save(tmp_path, 1)
    first = (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random())
    load(Shards(), saved, IDENTITY)
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()) == first
