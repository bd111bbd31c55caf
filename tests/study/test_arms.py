"""Studies: what becomes an arm, what is trained, what is gone on with; trainings and scorings are stand-ins."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from dft_mm.errors import InputError, Stopped
from dft_mm.study import arms, launch
from dft_mm.study.arms import Arm, arms_of, carry_out, study_of, study_of_arms


@pytest.mark.parametrize(
    ("vary", "names"),
    [
        (["loss.name=sft,dft"], ["sft", "dft"]),
        (["optim.lr=1e-5,5e-5"], ["1e-5", "5e-5"]),
        (["optim.betas=[0.9,0.95],[0.9,0.99]"], ["0.9-0.95", "0.9-0.99"]),
        (
            ["loss.name=sft,dft", "optim.lr=1e-5,2e-5"],
            ["name-sft_lr-1e-5", "name-sft_lr-2e-5", "name-dft_lr-1e-5", "name-dft_lr-2e-5"],
        ),
    ],
)
def test_combinations_of_values_are_arms(vary, names):
    assert [arm.name for arm in arms_of(vary)] == names


@pytest.mark.parametrize("vary", [["loss.name=dft"], ["loss.name"], ["loss.name=dft,dft"]])
def test_one_arm_is_no_study(vary):
    with pytest.raises(InputError, match=r"--vary"):
        arms_of(vary)


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("name: base\nmodel: {path: m}\ndata: {train: [{path: x.jsonl, format: messages}]}\n")
    (tmp_path / "suite.yaml").write_text("name: s\nbenchmarks: [{task: digits, data: d.jsonl}]\n")
    return path


@pytest.fixture
def commands(monkeypatch):
    """Commands that were given; each does what it would, in a moment: dft answers 9 of 10 questions, sft 6."""
    given = []

    def run(command, folder, log_file, environment):
        given.append(command)
        if "train" in command:
            path = Path(command[command.index("train") + 1])
            told = yaml.safe_load(path.read_text())
            run = Path(told["output"])
            (run / "export").mkdir(parents=True)
            (run / "data").mkdir()
            (run / "data/manifest.json").write_text(json.dumps({"fingerprint": f"of {told['data']['max_length']}"}))
            (run / "metrics.jsonl").write_text('{"step": 1, "supervised_tokens": 5}\n')
            (run / "STATUS.json").write_text('{"state": "finished", "step": 1, "reason": ""}')
            return
        out = Path(command[command.index("--out") + 1])
        out.mkdir(parents=True)
        if "export" in command:
            return
        generator = np.random.default_rng(len(given))
        chance = 0.9 if "/dft-s" in str(out) else 0.6
        lines = [
            {"benchmark": "digits", "id": str(k), "sample": 0, "gold": "1"}
            | {"status": "correct" if generator.random() < chance else "wrong"}
            for k in range(200)
        ]
        (out / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        entry = {"metrics": {}, "status": {}, "samples": 1, "judge": "rule"}
        (out / "results.json").write_text(json.dumps({"suite": "s", "model": "m", "benchmarks": {"digits": entry}}))

    monkeypatch.setattr(launch, "run_command", run)
    monkeypatch.setattr(arms, "write_report", lambda *_: None)
    return given


def study(recipe, seeds=(0, 1, 2), vary=("loss.name=sft,dft",), out="study"):
    return study_of(recipe, [], str(recipe.parent / "suite.yaml"), vary, seeds, recipe.parent / out)


def test_every_arm_is_trained_and_scored_with_every_seed_and_a_difference_found(recipe, commands):
    comparison = carry_out(study(recipe), ranks=1)
    assert len(commands) == 12
    (row,) = comparison["comparisons"]
    assert (row["a"], row["b"], row["seeds"], row["n"], row["verdict"]) == ("sft", "dft", 3, 200, "b_better")
    assert -0.4 < row["difference"] < -0.2
    told = yaml.safe_load((recipe.parent / "study/recipes/dft-s2.yaml").read_text())
    assert (told["seed"], told["loss"]["name"], told["name"]) == (2, "dft", "dft-s2")
    assert "| sft | dft | digits |" in (recipe.parent / "study/compare.md").read_text()
    assert comparison["notes"] == []


def test_adapters_are_scored_as_part_of_their_model(recipe, commands):
    study = study_of(
        recipe, ["model.lora={rank: 8}"], str(recipe.parent / "suite.yaml"), ["loss.name=sft,dft"], [0],
        recipe.parent / "study",
    )  # fmt: skip
    carry_out(study, ranks=1)
    run = recipe.parent / "study/runs/sft-s0"
    _, merging, scoring = commands[:3]
    assert merging[3:] == ["export", str(run), "--merge", "--out", str(run / "merged")]
    assert scoring[scoring.index("--model") + 1] == str(run / "merged")
    assert len(commands) == 6


def test_a_study_goes_on_where_it_was_stopped_and_takes_further_seeds(recipe, commands, monkeypatch):
    real, left = launch.run_command, [5]

    def stopped(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise Stopped("stopped")
        real(*arguments)

    monkeypatch.setattr(launch, "run_command", stopped)
    with pytest.raises(Stopped):
        carry_out(study(recipe), ranks=1)
    monkeypatch.setattr(launch, "run_command", real)
    carry_out(study(recipe), ranks=1)
    assert len(commands) == 12
    carry_out(study(recipe, seeds=(0, 1, 2, 3)), ranks=2)
    assert len(commands) == 16
    assert [command[0] == "deepspeed" for command in commands[-4:]] == [True, False, True, False]


def test_a_folder_holds_one_study(recipe, commands):
    study(recipe)
    with pytest.raises(InputError, match="made otherwise"):
        study(recipe, vary=("loss.name=sft,eaft",))
    (recipe.parent / "full").mkdir()
    (recipe.parent / "full/file").touch()
    with pytest.raises(InputError, match="is not empty"):
        study(recipe, out="full")


def test_a_study_goes_on_after_its_recipe_and_suite_have_got_new_keys(recipe, commands):
    study(recipe)
    claimed = recipe.parent / "study/study.json"
    told = json.loads(claimed.read_text())
    del told["recipe"]["optim"]["eps"], told["suite"]["sampling"]["top_p"]
    claimed.write_text(json.dumps(told))
    study(recipe)
    told["recipe"]["optim"]["lr"] = 1.0
    claimed.write_text(json.dumps(told))
    with pytest.raises(InputError, match="made otherwise"):
        study(recipe)


def test_a_wrong_value_is_told_before_anything_is_trained(recipe, commands):
    with pytest.raises(InputError, match=r"loss\.name.*got 'dftt'"):
        study(recipe, vary=("loss.name=sft,dftt",))
    assert commands == []


def test_arms_that_see_other_examples_are_marked(recipe, commands):
    comparison = carry_out(study(recipe, (0,), ("data.max_length=512,1024",)), ranks=1)
    assert "1024 did not see the same examples" in comparison["notes"][0]


def test_arms_of_their_own_names_are_compared_in_the_pairs_that_are_wanted(recipe, commands):
    lengths = {"short": 512, "long": 1024, "longer": 2048}
    named = tuple(Arm(name, (f"data.max_length={length}", "loss.name=sft")) for name, length in lengths.items())
    arms_ = (*named, Arm("dft", ("data.max_length=512", "loss.name=dft")))
    pairs = (("dft", "short"), ("long", "short"))
    suite = str(recipe.parent / "suite.yaml")
    comparison = carry_out(study_of_arms(recipe, [], suite, arms_, (0,), recipe.parent / "study", pairs), ranks=1)
    rows = comparison["comparisons"]
    assert [(row["a"], row["b"], row["verdict"]) for row in rows] == [
        ("dft", "short", "a_better"),
        ("long", "short", "no_difference"),
    ]
    # Of two p-values the smaller one counts twice (Holm 1979).
    assert rows[0]["p_adjusted"] == pytest.approx(2 * rows[0]["p"])
    (note,) = comparison["notes"]
    assert "long did not see the same examples in the same steps as short" in note
    assert len(commands) == 8


def test_runs_are_queued_once_and_compared_when_they_are_done(recipe, commands, tmp_path):
    queue = tmp_path / "queue"
    queue.write_text(f"#!/bin/sh\necho $1 >> {tmp_path}/jobs\necho Submitted batch job 7\n")
    queue.chmod(0o755)
    for _ in range(2):
        assert carry_out(study(recipe, (0,)), ranks=1, submit=str(queue)) is None
    jobs = (tmp_path / "jobs").read_text().split()
    assert [Path(job).name for job in jobs] == ["sft-s0.yaml", "dft-s0.yaml"]
    for job in jobs:
        launch.run_command(["train", job], None, None, None)
    assert carry_out(study(recipe, (0,)), ranks=1, submit=str(queue))["comparisons"]
