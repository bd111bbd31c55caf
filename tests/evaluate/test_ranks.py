"""Several processes that share an evaluation, under the real launcher and beside each other."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from started import ended, started, until

from dft_mm import dist
from dft_mm.errors import InputError, Stopped
from dft_mm.evaluate.ranks import Ranks
from dft_mm.lock import locked

FILES = ("manifest.json", "generations.jsonl", "scores.jsonl", "results.json", "results.md")


@pytest.fixture(scope="module")
def suite(sums, tmp_path_factory):
    path = tmp_path_factory.mktemp("suite") / "suite.yaml"
    sampling = {"temperature": 0.8, "samples": 4, "max_tokens": 70}
    path.write_text(
        json.dumps({"name": "s", "sampling": sampling, "benchmarks": [{"task": "gsm8k", "data": str(sums)}]})
    )
    return path


@pytest.fixture(scope="module")
def whole(suite, text_model, tmp_path_factory):
    """One process, uninterrupted: ten batches."""
    folder = tmp_path_factory.mktemp("whole")
    with started(_command(suite, text_model, folder / "out"), folder / "log") as child:
        assert ended(child) == 0
    return folder / "out"


def _command(suite, model, out):
    return ["eval", suite, "--model", model, "--out", out, "--batch-size", "3"]


def _same(out, whole):
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    for name in FILES:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


def _free(folder):
    """Nobody works there any more."""
    with contextlib.suppress(InputError), locked(folder, "evaluation", ""):
        return True
    return False


@pytest.mark.long
def test_two_ranks_under_the_launcher_give_the_same_bytes(suite, text_model, whole, tmp_path, free_port):
    """Once they are stopped by a signal to the launcher, which dies of it and tells them nothing."""
    out = tmp_path / "out"
    words = [str(each) for each in _command(suite, text_model, out)]
    deepspeed = Path(sys.executable).with_name("deepspeed")
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{deepspeed.parent}{os.pathsep}{environment['PATH']}"

    def launch():
        command = [deepspeed, "--num_gpus", "2", "--master_port", str(free_port()), "--module", "dft_mm", *words]
        return subprocess.Popen(
            command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    with launch() as first:
        end = time.monotonic() + 120
        while _lines(out / "generations.jsonl") < 3:
            assert time.monotonic() < end
            time.sleep(0.01)
        first.terminate()
        assert "the same command goes on" in first.communicate(timeout=120)[0]  # read until the ranks are gone, too
    assert _free(out)
    with launch() as second:
        said = second.communicate(timeout=240)[0]
        assert second.returncode == 0, said
    assert "of 28 answers were there already" in said
    assert said.count("# s:") == 1  # the table, of one rank
    _same(out, whole)


@pytest.fixture
def pair(free_port, tmp_path):
    with ExitStack() as stack:

        def start(command):
            port = free_port()
            ranks = []
            for rank in "01":
                environment = {
                    "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                }  # fmt: skip
                ranks.append(stack.enter_context(started(command, tmp_path / f"log-{rank}", environment)))
            return ranks

        yield start


def _lines(path):
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def test_killed_at_several_points_the_end_is_the_same(suite, text_model, whole, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    for enough in (0, 3, 9):
        with started(_command(suite, text_model, out), log) as child:
            until(lambda enough=enough: (out / "manifest.json").is_file() and _lines(out / FILES[1]) >= enough, child)
    with started(_command(suite, text_model, out), log) as child:
        assert ended(child) == 0
    assert "of 28 answers were there already" in log.read_text()
    _same(out, whole)


def test_two_ranks_killed_and_gone_on_with_by_one(suite, text_model, whole, tmp_path, pair):
    out = tmp_path / "out"
    ranks = pair(_command(suite, text_model, out))
    until(lambda: _lines(out / "generations.jsonl") >= 3 and _lines(out / "generations.rank-1.jsonl") >= 3, ranks[1])
    for rank in ranks:
        rank.kill()
        rank.join()
    both = [(out / f"generations{part}.jsonl").read_bytes().splitlines() for part in ("", ".rank-1")]
    assert not set(both[0]) & set(both[1])
    with started(_command(suite, text_model, out), tmp_path / "log") as child:
        assert ended(child) == 0
    assert "of 28 answers were there already" in (tmp_path / "log").read_text()
    _same(out, whole)


def test_an_error_on_one_rank_ends_both_with_its_message(suite, text_model, whole, tmp_path, pair):
    out = tmp_path / "out"
    (out / "generations.rank-1.jsonl").mkdir(parents=True)
    shutil.copy(whole / "manifest.json", out)
    ranks = pair(_command(suite, text_model, out))
    assert [ended(rank) for rank in ranks] == [2, 2]
    assert "generations.rank-1.jsonl cannot be written (Is a directory)" in (tmp_path / "log-0").read_text()


def test_the_reason_is_the_rank_that_failed_and_not_those_that_stopped_for_it(monkeypatch):
    def outcome(own, *others):
        def work():
            if own is not None:
                raise own
            return "done"

        ranks = Ranks()
        monkeypatch.setattr(dist, "gather_objects", lambda mine: [mine, *others])
        return ranks.together(work)

    stopped, full = ("Stopped", "by a signal"), ("InputError", "the disk is full")
    assert outcome(None, None, None) == "done"
    with pytest.raises(InputError, match="the disk is full"):
        outcome(Stopped("since another failed"), None, full)
    with pytest.raises(InputError, match="mine"):
        outcome(InputError("mine"), stopped, full)
    with pytest.raises(Stopped, match="by a signal"):
        outcome(None, stopped)
    with pytest.raises(RuntimeError, match=r"rank 2: KeyError: 'x'"):
        outcome(Stopped("since another failed"), stopped, ("KeyError", "'x'"))


def test_a_signal_to_the_ranks_ends_all_with_3(suite, text_model, whole, tmp_path, pair):
    out = tmp_path / "out"
    ranks = pair(_command(suite, text_model, out))
    until(lambda: _lines(out / "generations.jsonl") >= 3, ranks[0])
    os.kill(ranks[1].pid, signal.SIGTERM)
    assert [ended(rank) for rank in ranks] == [3, 3]
    log = (tmp_path / "log-0").read_text()
    told = re.search(r"stopped with (\d+) of 28 answers in .*same command goes on", log)
    assert int(told[1]) == sum(map(_lines, out.glob("generations*.jsonl")))
    with started(_command(suite, text_model, out), tmp_path / "log") as child:
        assert ended(child) == 0
    _same(out, whole)


def test_only_hf_is_shared(suite, text_model, tmp_path, pair):
    ranks = pair([*_command(suite, text_model, tmp_path / "out")[:-2], "--url", "http://127.0.0.1:9/v1"])
    assert [ended(rank) for rank in ranks] == [2, 2]
    assert "openai works in one process" in (tmp_path / "log-0").read_text()
