"""Prompt diversity: what arms learn from, what is compared, what the table says; trainings and scorings are stand-ins
but for the long test."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from dft_mm.config import load_recipe
from dft_mm.errors import InputError
from dft_mm.evaluate.suite import load_suite
from dft_mm.study import arms, launch
from scripts.paper import prompt_diversity
from scripts.paper.experiment import script

GAMES = pytest.mark.parametrize("game", ["general_points", "sokoban"])
SHIFTS = {
    "general_points": [
        "points", "points_face_cards", "points_five_cards", "points_unseen_wording", "points_face_cards_unseen_wording",
    ],
    "sokoban": ["sokoban", "sokoban_larger_board", "sokoban_more_boxes", "sokoban_unseen_wording"],
}  # fmt: skip
LABELS = [
    f"{style}, {prompts} wording, {loss}"
    for style in ("answer only", "CoT")
    for prompts in ("fixed", "diverse")
    for loss in ("SFT", "DFT")
]


def wanted(tmp_path, *words):
    return prompt_diversity.options(["--tiny", "--ranks", "1", "--out", str(tmp_path / "out"), *words])


def made(tmp_path, game):
    """Arm → recipe and rows to learn from."""
    asked = wanted(tmp_path)
    study = prompt_diversity.study_of_game(game, asked)
    prompt_diversity.write_data(asked.common.out, game, asked.demonstrations)
    found = {}
    for arm in study.arms:
        recipe = load_recipe(study.recipe_file, [*study.overrides, *arm.changes])
        (source,) = recipe.data.train
        found[arm.name] = recipe, [json.loads(line) for line in Path(source.path).read_text().splitlines()]
    return found


def _wording(row):
    """A row's problem without what its state says."""
    shown = row["state"]["board"] if row["task"] == "sokoban" else ", ".join(row["cards"])
    assert row["problem"].count(shown) == 1
    return row["problem"].replace(shown, "")


@GAMES
def test_arms_learn_from_what_they_are_called(game, tmp_path):
    found = made(tmp_path, game)
    assert len(found) == 8
    states = [row["state"] for row in found["cot-fixed-sft"][1]]
    for name, (recipe, rows) in found.items():
        style, prompts, loss = name.split("-")
        assert recipe.loss.name == loss
        assert [row["state"] for row in rows] == states
        wordings = {_wording(row) for row in rows}
        assert (len(wordings) == 1) == (prompts == "fixed")
        assert len(wordings) > 3 or prompts == "fixed"
        alone = [re.fullmatch(r"Answer: [^\n]+", row["solution"]) is not None for row in rows]
        assert set(alone) == {style == "answer_only"}
        assert all(re.search(r"(^|\n)Answer: [^\n]+$", row["solution"]) for row in rows)
        assert all("answer" not in row for row in rows)


def test_all_arms_begin_where_it_is_said(commands, tmp_path):
    commands.questions = 3
    words = ["--tiny", "--games", "sokoban", "--model", "some/model", "--out", str(tmp_path / "out")]
    text = prompt_diversity.work(words)
    assert "some/model, untrained" in text
    assert "random" not in text
    assert commands[0][commands[0].index("--model") + 1] == "some/model"
    recipes = [yaml.safe_load(file.read_text()) for file in (tmp_path / "out/sokoban/recipes").iterdir()]
    assert [recipe["model"]["path"] for recipe in recipes] == ["some/model"] * 8


@GAMES
def test_sft_and_dft_of_one_cell_differ_in_the_loss_alone(game, tmp_path):
    found = made(tmp_path, game)
    for name, (recipe, _) in found.items():
        if name.endswith("-sft"):
            other = found[name.removesuffix("sft") + "dft"][0]
            assert recipe.model_copy(update={"loss": other.loss}) == other != recipe


def test_one_factor_is_compared_at_a_time():
    pairs = prompt_diversity.PAIRS
    assert len({frozenset(pair) for pair in pairs}) == len(pairs) == 12
    for a, b in pairs:
        (change,) = [(x, y) for x, y in zip(a, b) if x != y]
        assert change in [("dft", "sft"), ("cot", "answer_only"), ("diverse", "fixed")]


@GAMES
def test_a_game_is_asked_its_own_benchmarks_and_all_of_them(game, tmp_path):
    whole = load_suite("games")
    suite = load_suite(prompt_diversity.write_suite(tmp_path, game, tiny=False))
    assert [bench.key for bench in suite.benchmarks] == SHIFTS[game]
    assert suite.benchmarks == [bench for bench in whole.benchmarks if bench.task == game]
    assert suite.sampling == whole.sampling
    tiny = load_suite(prompt_diversity.write_suite(tmp_path, game, tiny=True))
    assert [(bench.key, bench.limit) for bench in tiny.benchmarks] == [(name, 2) for name in SHIFTS[game]]


def test_demonstrations_are_written_once_and_other_ones_refused(tmp_path):
    prompt_diversity.write_data(tmp_path, "sokoban", 4)
    files = sorted(tmp_path.rglob("train.jsonl"))
    before = [file.stat().st_mtime_ns for file in files]
    prompt_diversity.write_data(tmp_path, "sokoban", 4)
    assert [file.stat().st_mtime_ns for file in files] == before
    assert len(files) == 4
    with pytest.raises(InputError, match="n: 4 -> 5"):
        prompt_diversity.write_data(tmp_path, "sokoban", 5)


def test_intervals_are_wilsons_for_one_seed_and_cover_seeds_for_more():
    right = np.array([1.0] * 30 + [0.0] * 70)
    value, interval = prompt_diversity.accuracy(right[None])
    assert value == pytest.approx(0.3)
    assert interval == pytest.approx(tuple(stats.binomtest(30, 100).proportion_ci(method="wilson")))
    # Of seeds that all answer alike only the questions are left to be unsure of.
    value, interval = prompt_diversity.accuracy(np.stack([right, right, right]))
    assert value == pytest.approx(0.3)
    assert interval == pytest.approx(stats.t.interval(0.95, 99, loc=0.3, scale=right.std(ddof=1) / 10))
    generator = np.random.default_rng(0)
    apart = np.stack([generator.random(100) < chance for chance in (0.1, 0.5, 0.9)]).astype(float)
    low, high = prompt_diversity.accuracy(apart)[1]
    assert high - low > 0.8
    assert prompt_diversity.accuracy(np.zeros((3, 50)))[1][1] > 0


class Commands(list):
    questions = 200
    """That each benchmark asks."""


@pytest.fixture
def commands(monkeypatch):
    """Commands that were given; each does what it would, in a moment. Chains of thought answer 8 of 10 questions, else
    5, but 2 in unseen wordings where prompts were fixed; the loss changes nothing."""
    given = Commands()

    def run(command, folder, log_file, environment):
        given.append(command)
        if "train" in command:
            told = yaml.safe_load(Path(command[command.index("train") + 1]).read_text())
            output = Path(told["output"])
            (output / "export").mkdir(parents=True)
            (output / "data").mkdir()
            (output / "data/manifest.json").write_text(json.dumps({"fingerprint": told["data"]["train"][0]["path"]}))
            (output / "metrics.jsonl").write_text('{"step": 1, "supervised_tokens": 5}\n')
            (output / "STATUS.json").write_text('{"state": "finished", "step": 1, "reason": ""}')
            return
        out = Path(command[command.index("--out") + 1])
        out.mkdir(parents=True)
        suite = load_suite(command[command.index("eval") + 1])
        run_name = out.parents[1].name
        generator = np.random.default_rng(len(given))
        lines = []
        for bench in suite.benchmarks:
            chance = 0.8 if run_name.startswith("cot") else 0.5
            if "unseen" in bench.key and "-fixed-" in run_name:
                chance = 0.2
            for number in range(given.questions):
                status = "correct" if generator.random() < chance else ("wrong", "truncated")[number % 50 == 0]
                lines.append({"benchmark": bench.key, "id": str(number), "sample": 0, "gold": "1", "status": status})
        (out / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        entry = {"metrics": {}, "status": {}, "samples": 1, "judge": "rule"}
        benchmarks = {bench.key: entry for bench in suite.benchmarks}
        (out / "results.json").write_text(json.dumps({"suite": suite.name, "model": "m", "benchmarks": benchmarks}))

    monkeypatch.setattr(launch, "run_command", run)
    monkeypatch.setattr(arms, "write_report", lambda *_: None)
    return given


def _section(text, game):
    """What the page says of a game: its table's rows, and those of each comparison."""
    part = text.split(f"## {game}\n")[1].split("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line[:1] == "|"]


def test_the_table_has_every_arm_and_shift_and_says_what_was_planted(commands, tmp_path):
    words = ["--tiny", "--ranks", "1", "--data", "/nowhere", "--out", str(tmp_path / "out")]
    text = prompt_diversity.work(words)
    assert (tmp_path / "out/table.md").read_text() == text
    assert "figures mean nothing" in text
    assert len(commands) == 2 * (8 * 2 + 1)
    for game, shifts in SHIFTS.items():
        table = _section(text, game)
        assert table[0] == ["arm", *shifts]
        assert [row[0] for row in table[2:11]] == ["builtin:tiny-lm, untrained", *LABELS]
        assert all(re.fullmatch(r"\d+\.\d \(\d+\.\d to \d+\.\d\)", cell) for row in table[2:11] for cell in row[1:])
        words_of = {(row[0], row[1], re.split("[;:]", row[5])[0]) for row in table[11:] if len(row) == 6}
        assert ("CoT, fixed wording", shifts[0], "no difference is shown") in words_of
        assert ("fixed wording, SFT", shifts[0], "CoT is better") in words_of
        assert ("CoT, DFT", shifts[-1], "diverse wording is better") in words_of
    told = json.loads((tmp_path / "out/table.json").read_text())
    assert len(told["rows"]) == 18
    assert len(told["differences"]) == 12 * 9
    row = next(row for row in told["rows"] if (row["style"], row["prompts"], row["loss"]) == ("cot", "diverse", "dft"))
    score = row["scores"]["points"]
    assert score["ci95"][0] < score["value"] < score["ci95"][1]
    assert 0.7 < score["value"] < 0.9
    assert score["n"] == 200
    folder = tmp_path / "out/general_points/runs/cot-diverse-dft-s0/eval/games_general_points"
    lines = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    status = [line["status"] for line in lines if line["benchmark"] == "points"]
    assert score["value"] == pytest.approx(status.count("correct") / 200)
    assert score["truncated"] == status.count("truncated") > 0
    assert f"; CoT, diverse wording, DFT: {score['truncated']} of points, " in text


def test_seeds_are_one_row(commands, tmp_path):
    commands.questions = 20
    words = ["--tiny", "--ranks", "1", "--games", "sokoban", "--seeds", "3,5", "--out", str(tmp_path / "out")]
    table = _section(prompt_diversity.work(words), "sokoban")
    assert [row[0] for row in table[3:11]] == LABELS
    told = json.loads((tmp_path / "out/table.json").read_text())
    score = told["rows"][1]["scores"]["sokoban"]
    found = [
        json.loads(line)["status"]
        for file in (tmp_path / "out/sokoban/runs").glob("answer_only-fixed-sft-s?/eval/*/scores.jsonl")
        for line in file.read_text().splitlines()
        if json.loads(line)["benchmark"] == "sokoban"
    ]
    assert len(found) == 40
    assert score["value"] == pytest.approx(found.count("correct") / 40)
    assert {row["seeds"] for row in told["differences"]} == {2}


def test_the_same_command_does_nothing_anew(commands, tmp_path):
    commands.questions = 20
    words = ["--tiny", "--ranks", "1", "--games", "sokoban", "--out", str(tmp_path / "out")]
    first = prompt_diversity.work(words)
    done = len(commands)
    assert prompt_diversity.work(words) == first
    assert len(commands) == done == 17
    prompt_diversity.work([*words, "--seeds", "0,1"])
    assert len(commands) == done + 16


def test_wrong_words_end_with_one_line(commands, tmp_path, capsys):
    assert script(lambda: prompt_diversity.work(["--games", "chess"])) == 2
    assert "chess" in capsys.readouterr().err
    out = ["--tiny", "--games", "sokoban", "--out", str(tmp_path / "out")]
    assert script(lambda: prompt_diversity.work([*out, "optim.lrr=1"])) == 2
    assert "optim.lrr" in capsys.readouterr().err
    assert commands == []


@pytest.mark.long
def test_the_whole_script_runs_and_goes_on(repo, tmp_path):
    command = [sys.executable, "-m", "scripts.paper.prompt_diversity", "--tiny", "--ranks", "1", "--games", "sokoban"]
    command += ["--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    text = (tmp_path / "out/table.md").read_text()
    assert text.strip() in done.stdout
    table = _section(text, "sokoban")
    assert table[0] == ["arm", *SHIFTS["sokoban"]]
    assert [row[0] for row in table[3:11]] == LABELS
    runs = tmp_path / "out/sokoban/runs"
    manifests = {run.name: json.loads((run / "data/manifest.json").read_text()) for run in runs.iterdir()}
    assert len(manifests) == 8
    for name, manifest in manifests.items():
        assert manifest["fingerprint"] == manifests[name.replace("dft", "sft")]["fingerprint"]
        assert manifest["examples"]["train"] == 16
    assert len({manifest["fingerprint"] for manifest in manifests.values()}) == 4
    kept = [
        *runs.glob("*/metrics.jsonl"),
        *runs.glob("*/eval/*/generations.jsonl"),
        *tmp_path.glob("out/base/*/eval/*/*"),
    ]
    before = {path: path.stat().st_mtime_ns for path in kept}
    again = subprocess.run(command, cwd=repo, capture_output=True, text=True, check=False)
    assert (again.returncode, "$ " in again.stderr) == (0, False)
    assert {path: path.stat().st_mtime_ns for path in kept} == before
    assert (tmp_path / "out/table.md").read_text() == text
