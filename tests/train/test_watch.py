"""Who is blamed for a run that does not go on."""

import json
import os
import socket
import time

import psutil
import pytest

from dft_mm.errors import Stopped
from dft_mm.train.watch import RankFailedError, Watch


@pytest.fixture
def watch(tmp_path):
    watch = Watch(tmp_path, hang_s=60, on_verdict=lambda verdict: None)
    yield watch
    watch.close()


def place(**changes):
    own = {"host": "far", "pid": 1, "born": 0.0, "marks": 5, "step": 3, "doing": "micro-batch 1", "end": None}
    return own | {"still_s": 1.0} | changes


def judge(watch, *others, silent=()):
    places = {0: watch._place | {"still_s": 1.0, "marks": 5}} | dict(enumerate(others, start=1))
    now = time.monotonic()
    watch._heard = {rank: (json.dumps(place), now - (100 if rank in silent else 0)) for rank, place in places.items()}
    return watch._judge_places(places, watch._gone())


def test_nobody_is_blamed_while_all_go_on(watch):
    assert judge(watch, place(), place(marks=9)) is None


def zombie(**changes):
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return place(host=socket.gethostname(), pid=pid, born=psutil.Process(pid).create_time(), **changes)


def test_a_process_of_this_host_that_is_gone_is_dead(watch):
    gone = zombie(step=7)
    pid = gone["pid"]
    told = f"rank 2 (process {pid} on {socket.gethostname()}) died at step 7, in micro-batch 1"
    assert judge(watch, place(), gone) == told  # a zombie is dead, too
    os.waitpid(pid, 0)
    assert judge(watch, place(), gone) == told


class Store:
    """Of which the other rank's word is read; `stops` makes it end well, between two looks."""

    def __init__(self, word):
        self.word = word

    def set(self, key, text):
        pass

    def multi_get(self, keys):
        return [json.dumps(place(pid=0)).encode(), json.dumps(self.word).encode()]

    def stops(self, pid, born):
        self.word["end"] = "stopped"
        return False


def test_a_rank_that_ends_well_between_two_looks_did_not_die(watch, monkeypatch):
    store = Store(place(host=socket.gethostname(), pid=7))
    monkeypatch.setattr(watch, "_store", store)
    monkeypatch.setattr(watch, "_world", 2)
    monkeypatch.setattr("dft_mm.train.watch.lives", store.stops)
    assert watch._judge() is None
    assert watch._judge() is None
    assert watch._peer_stopped


def test_a_silent_rank_is_blamed(watch):
    assert judge(watch, place(), place(pid=9), silent=[2]).startswith("rank 2 (process 9 on far) is silent since 100 s")


def test_of_ranks_that_stand_still_the_one_behind_is_blamed(watch):
    told = judge(watch, place(still_s=70.0, marks=4, doing="waiting for data"), place(still_s=70.0))
    assert told == "rank 1 (process 1 on far) stands still since 70 s, in waiting for data of step 3"


def test_a_rank_that_failed_by_itself_is_quoted_and_one_that_stopped_is_not(watch):
    assert judge(watch, place(end="ValueError: no"), place()) == "rank 1 failed at step 3: ValueError: no"
    assert judge(watch, place(end="stopped"), place(end="lost contact"), silent=[1, 2]) is None
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234")
    assert isinstance(watch.cause(lost), Stopped)


class StoreThatWentWithRank0:
    def set(self, key, text):
        raise RuntimeError("Broken pipe")

    def check(self, keys):
        raise RuntimeError("Broken pipe")


def test_a_rank_whose_error_comes_of_the_end_of_rank_0_tells_the_folder_of_it_and_ends(tmp_path, monkeypatch):
    """Before its watching thread has a look: there is none here."""
    told = []
    watch = Watch(tmp_path, hang_s=60, on_verdict=told.append)
    watch.close()
    gone = zombie()
    for name, value in {"_rank": 1, "_world": 2, "_store": StoreThatWentWithRank0()}.items():
        monkeypatch.setattr(watch, name, value)
    watch._closing.clear()
    watch._heard = {0: (json.dumps(gone), time.monotonic())}
    cause = watch.cause(RuntimeError("[gloo/transport/tcp/pair.cc:537] Connection reset by peer"))
    os.waitpid(gone["pid"], 0)
    assert isinstance(cause, RankFailedError)
    assert told == [f"rank 0 (process {gone['pid']} on {socket.gethostname()}) died at step 3, in micro-batch 1"]
    assert str(cause) == told[0]


def test_an_error_of_its_own_stays_what_it_is(watch):
    error = ValueError("no")
    assert watch.cause(error) is error


def test_the_stacks_of_a_run_that_does_not_stand_still_leave_no_file(tmp_path):
    watch = Watch(tmp_path, 60, lambda verdict: None)
    watch.at(1, "the update")
    watch.close()
    assert list(tmp_path.iterdir()) == []
