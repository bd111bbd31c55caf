"""Whole runs through the command line: DeepSpeed's launcher on two ranks with ZeRO-3, and one process alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from runs import Runs
from safetensors.torch import load_file
from started import done

from dft_mm.errors import InputError
from dft_mm.train.run import train

ENV = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
STEPS = 6
KEYS = {
    "step", "epoch", "loss", "ce", "lr", "grad_norm", "examples", "tokens", "supervised_tokens", "p_mean",
    "weight_mean", "p_hist", "eos_p", "time_s", "data_wait_s", "tokens_per_s", "memory_gib", "fill", "utilisation",
}  # fmt: skip


class LaunchedRuns(Runs):
    """Runs on one rank, in a process, or on two under DeepSpeed's launcher."""

    def __init__(self, folder, repo, free_port):
        super().__init__(
            folder, repo, free_port,
            model="gradient_checkpointing: true",
            data="heldout_fraction: 0.2\n  workers: 0",
            optim="lr: 1e-3, batch_size: 7",
            train=f"max_steps: {STEPS}, epochs: 3, micro_tokens: 256, save_every: 2, heldout_every: 3",
        )  # fmt: skip

    def command(self, name, ranks, *words):
        start = [sys.executable, "-m", "dft_mm"]
        if ranks > 1:
            port = str(self.free_port())
            deepspeed = str(Path(sys.executable).parent / "deepspeed")
            start = [deepspeed, "--num_gpus", str(ranks), "--master_port", port, "--module", "dft_mm"]
        return [*start, "train", str(self.recipe), f"name={name}", *words]

    def __call__(self, name, ranks, *words, prelude=""):
        if ranks == 1:
            return done(["train", self.recipe, f"name={name}", *words], self.folder, ENV, prelude)
        run = subprocess.run(
            self.command(name, ranks, *words), env=ENV, capture_output=True, text=True, timeout=240, check=False
        )
        return run.returncode, run.stdout + run.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory, repo, free_port):
    """Uninterrupted runs, and runs that were stopped after a step and started again."""
    runs = LaunchedRuns(tmp_path_factory.mktemp("runs"), repo, free_port)
    for ranks in (1, 2):
        code, output = runs(f"whole{ranks}", ranks)
        assert code == 0, output
    code, output = runs("stopped1", 1, "--stop-after", "3", "log.trackers=[tensorboard]")
    assert code == 3, output
    runs.stopped = runs.status("stopped1")
    code, output = runs("stopped1", 1, "log.trackers=[tensorboard]")
    assert code == 0, output
    return runs


def test_a_run_on_two_ranks_finishes_and_leaves_what_the_contract_names(runs):
    folder = runs.folder / "whole2"
    assert runs.status("whole2")["state"] == "finished"
    assert runs.status("whole2")["step"] == STEPS
    for name in ("recipe.yaml", "deepspeed.json", "environment.json", "data/manifest.json", "export/dft_mm.json"):
        assert (folder / name).is_file(), name
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-00000004", "step-00000006"]
    assert "lr: 0.001" in (folder / "recipe.yaml").read_text()


def test_every_metric_is_there_each_step_once(runs):
    for name in ("whole1", "whole2", "stopped1"):
        lines = runs.metrics(name)
        assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
        for line in lines:
            assert set(line) - {"heldout_ce", "heldout_p_hist"} == KEYS
            assert line["examples"] == 7
            assert sum(line["p_hist"]) == line["supervised_tokens"]
        assert ["heldout_ce" in line for line in lines] == [False, False, True, False, False, True]


def test_two_ranks_with_zero3_take_the_same_steps_as_one_process(runs):
    for one, two in zip(runs.metrics("whole1"), runs.metrics("whole2")):
        for exact in ("epoch", "examples", "tokens", "supervised_tokens", "lr"):
            assert one[exact] == two[exact]
        for close in ("loss", "ce", "grad_norm", "p_mean", "eos_p"):
            assert two[close] == pytest.approx(one[close], rel=2e-4), close


def test_a_stopped_run_says_so_and_ends_with_the_same_weights(runs):
    assert runs.stopped["state"] == "stopped"
    assert runs.stopped["step"] == 3
    assert runs.status("stopped1")["state"] == "finished"
    assert runs.weights("stopped1") == runs.weights("whole1")
    exact = ("loss", "ce", "grad_norm", "p_hist", "tokens", "heldout_ce")
    for stopped, whole in zip(runs.metrics("stopped1"), runs.metrics("whole1")):
        assert {key: stopped.get(key) for key in exact} == {key: whole.get(key) for key in exact}


def test_a_tracker_has_each_step_of_a_run_that_was_stopped_once(runs):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    given = runs.folder / "stopped1/trackers/tensorboard.json"
    for _ in range(1000):  # it may be behind the run
        if json.loads(given.read_text())["step"] == STEPS:
            break
        time.sleep(0.1)
    events = EventAccumulator(str(runs.folder / "stopped1/tensorboard")).Reload()
    ce = [(event.step, event.value) for event in events.Scalars("ce")]
    assert ce == [(line["step"], pytest.approx(line["ce"])) for line in runs.metrics("whole1")]


def test_sigterm_commits_a_checkpoint_and_the_run_goes_on_to_the_same_weights(runs):
    # The whole group, data workers and all, as a terminal, Slurm or a container does it; twice, as launchers do.
    process = subprocess.Popen(
        runs.command("signalled1", 1, "data.workers=1"), env=ENV, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    metrics = runs.folder / "signalled1/metrics.jsonl"
    while process.poll() is None and not (metrics.is_file() and metrics.read_text().count("\n") >= 1):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGTERM)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 3, errors
    status = runs.status("signalled1")
    assert status["state"] == "stopped"
    assert 1 <= status["step"] < STEPS
    code, output = runs("signalled1", 1)
    assert code == 0, output
    assert runs.weights("signalled1") == runs.weights("whole1")


def test_a_script_that_trains_when_a_worker_imports_it_is_told_what_to_write(monkeypatch):
    monkeypatch.setattr("dft_mm.train.run.being_imported_by_a_worker", lambda: True)
    with pytest.raises(InputError, match="call train under `if __name__ =="):
        train(None)


def test_a_finished_run_is_not_trained_again(runs):
    before = (runs.folder / "whole1/metrics.jsonl").read_bytes()
    code, output = runs("whole1", 1)
    assert code == 0
    assert "is finished" in output
    assert (runs.folder / "whole1/metrics.jsonl").read_bytes() == before


def test_the_recipe_of_a_run_cannot_change_under_its_checkpoints(runs):
    code, output = runs("whole1", 1, "optim.lr=2e-3")
    assert code == 2
    assert "optim.lr: 0.001 -> 0.002" in output
    assert runs.status("whole1")["state"] == "finished"
    code, output = runs("whole1", 1, "model.path=builtin:tiny-lm")
    assert code == 2
    assert "model.path" in output


def exported(runs, name, out, *words):
    return done(["export", runs.folder / name, "--out", out, *words], runs.folder, ENV)


def test_export_of_a_checkpoint_equals_the_runs_own(runs, tmp_path):
    for run in ("whole1", "whole2"):
        code, output = exported(runs, run, tmp_path / run)
        assert code == 0, output
        for name in ("model.safetensors", "README.md"):
            assert (tmp_path / run / name).read_bytes() == (runs.folder / run / "export" / name).read_bytes()
    card = ModelCard.load(tmp_path / "whole1/README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "image-text-to-text")
    assert f"{STEPS} steps of the loss `dft`" in card.text
    code, output = exported(runs, "whole2", tmp_path / "whole2")
    assert code == 2  # nothing is written over
    assert "there is something already" in output
    out = tmp_path / "earlier"
    code, output = exported(runs, "whole2", out, "--step", "4")
    assert code == 0, output
    assert "step 4" in output
    assert (out / "model.safetensors").read_bytes() != runs.weights("whole2")
    assert json.loads((out / "dft_mm.json").read_text())["step"] == 4
    assert set(load_file(out / "model.safetensors")) == set(load_file(runs.folder / "whole2/export/model.safetensors"))
    code, output = exported(runs, "whole2", tmp_path / "absent", "--step", "5")
    assert code == 2
    assert "step-00000004" in output


@pytest.mark.long
def test_an_adapter_in_bfloat16_on_two_ranks_is_trained_saved_and_merged(runs, tmp_path):
    lora, adapter = "model.lora={rank: 4, targets: [q_proj, up_proj]}", "adapter_model.safetensors"
    code, output = runs("lora2", 2, lora, "model.dtype=bfloat16", "train.max_steps=2", "optim.lr=1e-2")
    assert code == 0, output
    export = runs.folder / "lora2/export"
    trained = load_file(export / adapter)
    assert len(trained) == 2 * 2 * 2  # two layers, two targets, A and B
    assert all(tensor.any() for tensor in trained.values())  # B starts at zero
    assert exported(runs, "lora2", tmp_path / "adapter")[0] == 0
    assert (tmp_path / "adapter" / adapter).read_bytes() == (export / adapter).read_bytes()
    assert exported(runs, "lora2", tmp_path / "merged", "--merge")[0] == 0
    merged = load_file(tmp_path / "merged/model.safetensors")
    source = load_file(runs.folder / "whole1/export/model.safetensors")
    assert set(merged) == set(source)


LOSES = """
import os
import dft_mm.train.run as run
load = run.load_data
def lose(*arguments):
    data = load(*arguments)
    os.remove({!r})
    return data
run.load_data = lose
"""


def losing(runs, name, *words):
    """A run whose first picture vanishes after the data was prepared."""
    return runs(name, 1, *words, prelude=LOSES.format(str(runs.folder / "data/images/0.png")))


@pytest.mark.long
def test_a_picture_that_vanishes_while_training_is_counted_and_its_row_keeps_its_slot(runs):
    picture = runs.folder / "data/images/0.png"
    content = picture.read_bytes()
    try:
        code, output = losing(runs, "tolerant", "data.bad_rows=0.1", "data.heldout_fraction=0", "train.max_steps=8")
        assert code == 0, output
        assert "row-0: missing_image" in output
        lines = runs.metrics("tolerant")
        assert sum(line.get("lost_images", 0) for line in lines) >= 2  # once an epoch
        assert {line["examples"] for line in lines} == {7}

        picture.write_bytes(content)
        code, output = losing(runs, "strict", "data.bad_rows=0", "data.heldout_fraction=0", "train.max_steps=8")
        assert code == 2, output
        status = runs.status("strict")
        assert (status["state"], "step" in status["reason"]) == ("failed", True)
        assert "1 of 24 examples are gone or changed" in status["reason"]
        assert f"step-{status['step']:08}" in [path.name for path in (runs.folder / "strict/checkpoints").iterdir()]

        code, output = runs("strict", 1, "data.bad_rows=0.1", "data.heldout_fraction=0", "train.max_steps=8")
        assert code == 2, "the recipe is that of the run"
        code, output = runs("strict", 1, "data.bad_rows=0", "data.heldout_fraction=0", "train.max_steps=8")
        assert code == 2, "the index is that of the run, and the picture is still lost"
        assert "missing_image" in output
    finally:
        picture.write_bytes(content)
    code, output = runs("strict", 1, "data.bad_rows=0", "data.heldout_fraction=0", "train.max_steps=8")
    assert code == 0, output
    assert [line["step"] for line in runs.metrics("strict")] == list(range(1, 9))
