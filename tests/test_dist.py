"""Ranks: alone, and two of them under gloo."""

import logging
import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as torch_dist
import torch.multiprocessing as multiprocessing

from dft_mm import dist
from dft_mm.errors import InputError


def test_alone_everything_is_itself(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    values = torch.tensor([1.0, 2.0])
    total = dist.sum_over_ranks(values)
    assert (dist.rank(), dist.world_size(), dist.is_main()) == (0, 1, True)
    assert total.equal(values)
    assert total.data_ptr() != values.data_ptr()
    assert dist.gather_objects("a") == ["a"]
    assert dist.on_main(lambda: 3) == 3
    dist.agree(None, "reading")
    with pytest.raises(KeyError):
        dist.agree(KeyError("x"), "reading")
    with pytest.raises(ZeroDivisionError):
        dist.on_main(lambda: 1 / 0)


@pytest.mark.parametrize(("rank", "level"), [("0", logging.INFO), ("1", logging.WARNING)])
def test_other_ranks_speak_only_when_something_is_wrong(monkeypatch, rank, level):
    monkeypatch.setenv("RANK", rank)
    before = dist.log.handlers[:], dist.log.propagate, dist.log.level
    try:
        dist.setup_logging()
        dist.setup_logging()
        assert dist.log.level == level
        assert len(dist.log.handlers) == 1
    finally:
        dist.log.handlers[:], dist.log.propagate = before[:2]
        dist.log.setLevel(before[2])


def fail(error: Exception) -> None:
    raise error


def caught(work) -> str:
    """What a call raised, as `Type: message`."""
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def two_ranks(rank: int, port: int, results) -> None:
    torch_dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    dist.log.disabled = True
    values = torch.tensor([1.0 + rank])
    seen = {
        "identity": (dist.rank(), dist.world_size(), dist.is_main()),
        "sum": float(dist.sum_over_ranks(values)),
        "argument": float(values),
        "gathered": dist.gather_objects(f"r{rank}"),
        "on_main": dist.on_main(lambda: f"by {dist.rank()}"),
        "input_error": caught(lambda: dist.on_main(lambda: fail(InputError("row 3 is wrong")))),
        "bug": caught(lambda: dist.on_main(lambda: fail(KeyError("x")))),
        "agreed": caught(lambda: dist.agree(None, "reading")),
        "disagreed": caught(lambda: dist.agree(OSError("disk full") if rank == 1 else None, "saving")),
    }
    dist.barrier()
    results.put((rank, seen))
    torch_dist.destroy_process_group()


def test_two_ranks_agree_on_values_and_on_errors():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(two_ranks, (port, results), nprocs=2)
    seen = dict(results.get() for _ in range(2))
    for rank in (0, 1):
        assert seen[rank]["identity"] == (rank, 2, rank == 0)
        assert seen[rank]["sum"] == 3.0
        assert seen[rank]["argument"] == 1.0 + rank
        assert seen[rank]["gathered"] == ["r0", "r1"]
        assert seen[rank]["on_main"] == "by 0"
        assert seen[rank]["input_error"] == "InputError: row 3 is wrong"
        assert seen[rank]["bug"] == "RuntimeError: rank 0: KeyError('x')"
        assert seen[rank]["agreed"] == "nothing"
    assert seen[0]["disagreed"] == "RuntimeError: saving failed on rank 1: OSError('disk full')"
    assert seen[1]["disagreed"] == "OSError: disk full"


def test_a_lock_that_a_killed_build_left_is_removed_and_one_that_is_held_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    left, held = tmp_path / "py_cpu/shm/lock", tmp_path / "adam/lock"
    for lock in (left, held):
        lock.parent.mkdir(parents=True)
        lock.touch()
    with held.open():
        dist.free_build_locks()
        assert (left.exists(), held.exists()) == (False, True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    dist.free_build_locks()
    assert held.exists(), "one rank of a host does it"
    monkeypatch.delenv("LOCAL_RANK")
    dist.free_build_locks()
    assert not held.exists()


def test_builds_are_kept_apart_by_host_unless_the_user_says_where(monkeypatch):
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    dist.free_build_locks()
    assert os.environ["TORCH_EXTENSIONS_DIR"].startswith(str(Path.home() / ".cache/dft_mm"))
    assert socket.gethostname() in os.environ["TORCH_EXTENSIONS_DIR"]
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/elsewhere")
    dist.free_build_locks()
    assert os.environ["TORCH_EXTENSIONS_DIR"] == "/elsewhere"
