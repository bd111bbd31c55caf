"""The files of a run: what a crash leaves behind must not be believed."""

import errno
import json

import pytest
import yaml

from dft_mm.config import Recipe
from dft_mm.errors import InputError
from dft_mm.train.run_folder import MetricsFile, open_run, read_status, write_status


def recipe(**changes):
    values = {"name": "t", "model": {"path": "m"}, "data": {"train": [{"path": "x", "format": "messages"}]}}
    return Recipe.model_validate(values | changes)


def test_metrics_of_steps_that_are_done_again_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": k, "ce": k}) + "\n" for k in range(1, 8)) + '{"step": 8, "c')
    metrics = MetricsFile(path, last_step=5)
    metrics.write({"step": 6, "ce": 60})
    metrics.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        *({"step": k, "ce": k} for k in range(1, 6)),
        {"step": 6, "ce": 60},
    ]


def test_status_is_what_the_contract_says(tmp_path):
    assert read_status(tmp_path) is None
    write_status(tmp_path, "stopped", 7, "why")
    status = read_status(tmp_path)
    assert (status["state"], status["step"], status["reason"]) == ("stopped", 7, "why")
    assert status["time"].startswith("20")
    assert [path.name for path in tmp_path.iterdir()] == ["STATUS.json"]


def test_a_folder_with_checkpoints_of_another_recipe_is_refused(tmp_path):
    open_run(tmp_path, recipe(), {})
    open_run(tmp_path, recipe(optim={"lr": 1.0}), {})  # nothing was trained yet
    (tmp_path / "checkpoints/step-00000001").mkdir(parents=True)
    changes_no_step = {"train": {"keep": 5}, "log": {"trackers": ["wandb"]}}
    open_run(tmp_path, recipe(optim={"lr": 1.0}, **changes_no_step), {})
    with pytest.raises(InputError, match=r"optim\.lr: 1\.0 -> 2\.0"):
        open_run(tmp_path, recipe(optim={"lr": 2.0}), {})


def test_another_recipe_may_be_accepted_and_is_written_down(tmp_path):
    open_run(tmp_path, recipe(optim={"lr": 1.0}), {})
    (tmp_path / "checkpoints/step-00000001").mkdir(parents=True)
    open_run(tmp_path, recipe(optim={"lr": 2.0}), {}, accept_changes=True)
    (line,) = (tmp_path / "changes.jsonl").read_text().splitlines()
    assert json.loads(line)["changed"] == ["optim.lr: 1.0 -> 2.0"]
    open_run(tmp_path, recipe(optim={"lr": 2.0}), {})


def test_a_finished_run_stays_as_it_was_made(tmp_path):
    open_run(tmp_path, recipe(optim={"lr": 1.0}), {})
    write_status(tmp_path, "finished", 7)
    (tmp_path / "export").mkdir()
    made = {path.name: path.read_bytes() for path in tmp_path.glob("*.*")}
    open_run(tmp_path, recipe(optim={"lr": 1.0}, train={"keep": 5}), {"later": 1})
    with pytest.raises(InputError, match=r"is finished.*optim\.lr: 1\.0 -> 2\.0.*model\.path=.*export"):
        open_run(tmp_path, recipe(optim={"lr": 2.0}), {}, accept_changes=True)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.*")} == made


def test_a_key_that_came_after_the_run_was_begun_is_no_change(tmp_path):
    open_run(tmp_path, recipe(), {})
    (tmp_path / "checkpoints/step-00000001").mkdir(parents=True)
    known = tmp_path / "recipe.yaml"
    values = yaml.safe_load(known.read_text())
    del values["optim"]["eps"]
    known.write_text(yaml.safe_dump(values))
    open_run(tmp_path, recipe(), {})


class Full:
    """A file that takes so many bytes more."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, content):
        part = content[: self.room]
        self.room -= len(part)
        if not part:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(part)


def test_a_line_that_a_full_disk_does_not_take_waits_and_leaves_no_half(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, 0)
    assert metrics.write({"step": 1}) is None
    metrics._file = Full(metrics._file, 5)
    assert "No space left on device" in metrics.write({"step": 2})
    assert path.read_text() == '{"step": 1}\n'
    with pytest.raises(OSError, match="No space"):
        metrics.sync()
    assert "2 lines wait" in metrics.write({"step": 3})
    metrics._file.room = 1000
    metrics.sync()
    assert path.read_text() == "".join(f'{{"step": {k}}}\n' for k in (1, 2, 3))


def test_a_folder_that_cannot_be_made_is_the_users_to_mend(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="give another `output`"):
        open_run(tmp_path / "file" / "run", recipe(), {})


def test_environment_names_versions_and_no_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    words = ["log.wandb_api_key=abcdef", "--hub-token=xyz", "model.path=hf_abcdefghijkl", "http://a:b@host/v1", "train"]
    monkeypatch.setattr("sys.argv", words)
    open_run(tmp_path, recipe(), {"zero_optimization": {"stage": 3}})
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["packages"]["torch"]
    shown = ["log.wandb_api_key=***", "--hub-token=***", "model.path=hf_***", "http://a:***@host/v1", "train"]
    assert environment["command"] == shown
    assert "hf_secret" not in "".join(path.read_text() for path in tmp_path.iterdir())
