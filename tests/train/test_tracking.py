"""Trackers by their own libraries, read back by them; and what a run does not notice of them."""

import json
import os
import signal
import struct
import subprocess
import sys
from typing import get_args

import pytest
import yaml

from dft_mm.config import LogConfig, Recipe, load_recipe
from dft_mm.errors import InputError, Stopped
from dft_mm.sections import to_yaml
from dft_mm.train import tracking
from dft_mm.train.trackers import TRACKERS, Entry
from dft_mm.train.tracking import check_installed, follow, tracked


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run folder as far as trackers know it."""
    values = {"name": "my_run", "model": {"path": "m"}, "data": {"train": [{"path": "x"}]}}
    (tmp_path / "recipe.yaml").write_text(to_yaml(Recipe.model_validate(values)))
    (tmp_path / "trackers").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(run, *steps, mode="a", ce=lambda step: step / 10):
    with (run / "metrics.jsonl").open(mode) as file:
        for step in steps:
            line = {"step": step, "ce": ce(step), "tokens": 5, "p_hist": [step, *[0] * 8, 2]}
            file.write(json.dumps(line) + "\n")


def until(*words):
    """What the training says each time that it is listened for; between two times it may do something."""
    said = iter(words)

    def listen(seconds):
        word = next(said)
        return word() if callable(word) else word

    return listen


def interrupted(run, name):
    """Five steps, of which the last two are done again by a run that goes on after step 3, to step 6."""
    write(run, 1, 2, 3, mode="w")
    follow(name, run, 0, until(None, lambda: write(run, 4, 5), "failed"))
    write(run, 1, 2, 3, 4, 5, 6, mode="w")
    follow(name, run, 3, until("finished"))


CE = [(step, pytest.approx(step / 10)) for step in range(1, 7)]


def test_tensorboard_has_each_step_once_with_histogram_and_recipe(run):
    pytest.importorskip("tensorboard", reason="the extra `track` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    interrupted(run, "tensorboard")
    events = EventAccumulator(str(run / "tensorboard"), {"tensors": 0, "scalars": 0, "histograms": 0}).Reload()
    assert [(event.step, event.value) for event in events.Scalars("ce")] == CE
    assert sorted(events.Tags()["scalars"]) == ["ce", "tokens"]
    histograms = events.Histograms("p_hist")
    assert [event.step for event in histograms] == [1, 2, 3, 4, 5, 6]
    assert histograms[3].histogram_value.bucket == [4, *[0] * 8, 2]
    assert histograms[3].histogram_value.bucket_limit == pytest.approx([edge / 10 for edge in range(1, 11)])
    (text,) = events.Tensors("recipe")[-1].tensor_proto.string_val
    assert yaml.safe_load(text.decode().strip("`").removeprefix("yaml"))["name"] == "my_run"


def test_tensorboard_shows_what_a_step_came_to_when_it_was_done_again(run):
    pytest.importorskip("tensorboard", reason="the extra `track` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(run, 1, 2, 3)
    follow("tensorboard", run, 0, until("failed"))
    write(run, 1, mode="w")
    write(run, 2, 3, ce=lambda step: 100 * step)  # another recipe, accepted
    follow("tensorboard", run, 1, until("finished"))
    events = EventAccumulator(str(run / "tensorboard")).Reload().Scalars("ce")
    assert [(event.step, event.value) for event in events] == [(1, pytest.approx(0.1)), (2, 200), (3, 300)]


def wandb_records(path):
    """The records of W&B's file: LevelDB's log format (blocks of 32 KiB, of which a record may span several)."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(whole)
            whole = b""


def test_wandb_offline_has_each_step_once_with_histogram_config_and_name_in_one_run(run, monkeypatch):
    pytest.importorskip("wandb", reason="the extra `track` is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    interrupted(run, "wandb")
    files = sorted((run / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    records = [record for file in files for record in wandb_records(file)]
    begun = [record.run for record in records if record.HasField("run")]
    assert {each.run_id for each in begun} == {json.loads((run / "trackers/wandb.json").read_text())["id"]}
    assert {(each.display_name, each.project) for each in begun} == {("my_run", "dft_mm")}
    config = {item.key: json.loads(item.value_json) for each in begun for item in each.config.update}
    assert config["optim"]["lr"] == 5e-5
    lines = [record.history for record in records if record.HasField("history")]
    values = [{".".join(item.nested_key): json.loads(item.value_json) for item in line.item} for line in lines]
    assert [(value["_step"], value["ce"]) for value in values] == CE
    assert values[3]["p_hist.values"] == [4, *[0] * 8, 2]
    assert values[3]["p_hist.bins"] == pytest.approx([edge / 10 for edge in range(11)])


def test_mlflow_has_each_step_once_with_the_recipe_as_parameters_in_one_run(run, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (run / "mlruns").as_uri())
    interrupted(run, "mlflow")
    client = mlflow.MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("dft_mm").experiment_id])
    assert (found.info.run_name, found.info.status) == ("my_run", "FINISHED")
    assert found.data.params["optim.lr"] == "5e-05"
    assert [(metric.step, metric.value) for metric in client.get_metric_history(found.info.run_id, "ce")] == CE


def test_swanlab_offline_goes_on_with_its_run(run, monkeypatch):
    pytest.importorskip("swanlab", reason="swanlab is not installed")
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    interrupted(run, "swanlab")
    known = json.loads((run / "trackers/swanlab.json").read_text())
    assert known["step"] == 6
    begun, goes_on = sorted((run / "swanlog").glob(f"run-*-{known['id']}"))
    assert "5.0e-05" in (begun / "files/config.yaml").read_text()
    logged = [b"".join(path.read_bytes() for path in folder.glob("*.swanlab")) for folder in (begun, goes_on)]
    assert all(b"tokens" in each and b"my_run" in each for each in logged)


class Noted:
    """A tracker that only notes; it breaks at a step."""

    breaks_at = None

    def __init__(self, run):
        self.run, self.steps, self.end = run, [], None
        Noted.last = self

    def log(self, line):
        if line["step"] == self.breaks_at:
            raise ConnectionError("the server is away")
        self.steps.append(line["step"])

    def close(self, end):
        self.end = end


@pytest.fixture
def noted(monkeypatch):
    monkeypatch.setitem(TRACKERS, "wandb", Entry("json", Noted))
    return Noted


def test_a_tracker_that_is_added_later_is_given_the_steps_before(run, noted):
    write(run, 1, 2, 3, 4)
    follow("wandb", run, 3, until("stopped"))
    assert noted.last.steps == [1, 2, 3, 4]
    assert noted.last.end == "stopped"


def test_a_step_that_a_tracker_missed_is_made_up_for_when_the_run_goes_on(run, noted, monkeypatch):
    monkeypatch.setattr(noted, "breaks_at", 3)
    write(run, 1, 2, 3, 4)
    with pytest.raises(ConnectionError):
        follow("wandb", run, 0, until("finished"))
    first = noted.last
    monkeypatch.setattr(noted, "breaks_at", None)
    write(run, 5)
    follow("wandb", run, 4, until("finished"))
    assert first.steps + noted.last.steps == [1, 2, 3, 4, 5]
    assert noted.last.run.id == first.run.id


def test_a_run_whose_first_step_never_arrived_goes_on_in_the_same_tracker_run(run, noted, monkeypatch):
    monkeypatch.setattr(noted, "breaks_at", 1)
    write(run, 1)
    with pytest.raises(ConnectionError):
        follow("wandb", run, 0, until("finished"))
    first = noted.last.run.id
    monkeypatch.setattr(noted, "breaks_at", None)
    follow("wandb", run, 0, until("finished"))
    assert noted.last.run.id == first


def test_a_line_is_read_when_it_is_whole(run, noted):
    def half():
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"step": 3, "ce"')

    def taken_back():
        with (run / "metrics.jsonl").open("r+") as file:
            file.truncate(size)
        write(run, 3)

    write(run, 1, 2)
    size = (run / "metrics.jsonl").stat().st_size
    follow("wandb", run, 0, until(None, half, taken_back, "finished"))
    assert noted.last.steps == [1, 2, 3]


def test_a_library_that_is_not_there_is_named_with_the_extra(run, monkeypatch):
    monkeypatch.setitem(TRACKERS, "wandb", Entry("no_such_library", Noted))
    monkeypatch.setitem(TRACKERS, "mlflow", Entry("a_folder", Noted))
    (run / "a_folder").mkdir()
    monkeypatch.syspath_prepend(str(run))
    with pytest.raises(InputError, match=r"wandb, mlflow is not installed: `pip install 'dft_mm\[track\]'`, or take"):
        check_installed(["wandb", "mlflow"])
    check_installed([])


def test_the_recipe_knows_the_trackers_and_names_them(run):
    assert set(get_args(get_args(LogConfig.model_fields["trackers"].annotation)[0])) == set(TRACKERS)
    with pytest.raises(InputError, match=r"'log\.trackers\.0': .*'tensorboard', 'wandb', 'swanlab' or 'mlflow'"):
        load_recipe(run / "recipe.yaml", ["log.trackers=[wanbd]"])


def log_of(run):
    return (run / "trackers/tensorboard.log").read_text()


def test_a_tracker_that_fails_is_told_once_and_the_run_goes_on(run):
    (run / "recipe.yaml").unlink()
    told = []
    with tracked(["tensorboard"], run, 0, told.append) as look:
        while not told:
            look()
        look()
        write(run, 1)
    (words,) = told
    assert "the tracker tensorboard is off, the run goes on without it: FileNotFoundError" in words
    assert "Traceback" in log_of(run)


def test_a_tracker_that_cannot_be_started_is_told(run):
    (run / "trackers").rmdir()
    (run / "trackers").write_text("no folder")
    told = []
    with tracked(["tensorboard"], run, 0, told.append) as look:
        look()
    assert "cannot be started" in told[0]


def test_a_tracker_that_hangs_does_not_keep_the_run(run, monkeypatch, caplog):
    monkeypatch.setitem(tracking._WAIT_S, "finished", 0.1)
    children = []
    start = tracking._Child.start

    def stopped(*arguments):
        children.append(start(*arguments))
        os.kill(children[0].process.pid, signal.SIGSTOP)
        return children[0]

    monkeypatch.setattr(tracking._Child, "start", stopped)
    try:
        with tracked(["tensorboard"], run, 0, pytest.fail) as look:
            look()
        assert "has not sent everything yet" in caplog.text
    finally:
        children[0].process.kill()
        children[0].process.wait()


HANGS = """
import sys, threading
from pathlib import Path
from dft_mm.train import tracking
from dft_mm.train.trackers import TRACKERS, Entry

class Hangs:
    def __init__(self, run):
        self.at("make")
    def log(self, line):
        self.at("log")
    def close(self, end):
        self.at("close")
    def at(self, place):
        if place == sys.argv[2]:
            print("hangs", flush=True)
            threading.Event().wait()

tracking._LIVE_ON_S = 1
TRACKERS["wandb"] = Entry("json", Hangs)
tracking.main("wandb", Path(sys.argv[1]), 0)
"""


@pytest.mark.parametrize("place", ["make", "log", "close"])
def test_a_tracker_ends_soon_after_its_run_wherever_it_hangs(run, place):
    write(run, 1)
    command = [sys.executable, "-c", HANGS, str(run), place]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        try:
            if place != "close":
                assert child.stdout.readline() == b"hangs\n"  # before the run has ended
            child.stdin.close()
            assert child.wait(60) == -signal.SIGALRM
        finally:
            child.kill()


@pytest.mark.parametrize(("error", "end"), [(None, "finished"), (Stopped("stop"), "stopped"), (KeyError(), "failed")])
def test_a_tracker_is_told_how_the_run_ended(run, monkeypatch, error, end):
    said = []
    monkeypatch.setattr(tracking._Child, "start", lambda *_: Child())

    class Child:
        process = type("Process", (), {"poll": lambda self: None})()
        say = said.append

        def await_end(self, until, tell):
            said.append("waited")

    def work():
        with tracked(["wandb"], run, 0, pytest.fail) as look:
            look()
            if error:
                raise error

    if error:
        with pytest.raises(type(error)):
            work()
    else:
        work()
    assert said == [end, "waited"]


def test_a_tracker_sends_everything_though_the_training_is_killed(run):
    pytest.importorskip("tensorboard", reason="the extra `track` is not installed")
    write(run, 1, 2, 3)
    child = tracking._Child.start("tensorboard", run, 0, pytest.fail)
    for number in (signal.SIGTERM, signal.SIGINT):
        while not (run / "trackers/tensorboard.json").is_file():
            assert child.process.poll() is None, log_of(run)
        child.process.send_signal(number)
    child.process.stdin.close()
    assert child.process.wait(240) == 0, log_of(run)
    assert json.loads((run / "trackers/tensorboard.json").read_text())["step"] == 3
