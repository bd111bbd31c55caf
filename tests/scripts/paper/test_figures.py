"""The paper's figures: what is trained and scored for them, and what is drawn; trainings and scorings are stand-ins."""

import json
import math
import re
from pathlib import Path

import pytest
import yaml

from dft_mm.config import load_recipe
from dft_mm.report.plots import score_plot
from dft_mm.study import arms, launch, probe
from scripts.paper import figure1, figure2, figure3
from scripts.paper.figures import Figure, Point, Sweep, write
from scripts.paper.tiny import tiny_changes

MATH = ("math500", "minerva", "olympiadbench", "aime24", "amc23")
LAST = 50
MODEL = "Qwen2.5-Math-1.5B"


def percent_of(model):
    """What the stand-in of an evaluation finds: 5 percent untrained, else more by step, and more by dft."""
    step = re.search(r"step-(\d+)", model)
    better = 20.0 if "dft" in model else 10.0
    return (better + (int(step[1]) if step else LAST) / 10) if "/" in model and "Qwen/" not in model else 5.0


@pytest.fixture
def commands(monkeypatch, make_scores):
    """Commands that were given; each leaves behind what it would."""
    given = []

    def run(command, folder, log_file, environment):
        verb, *words = command[command.index("dft_mm") + 1 :]
        given.append((verb, *words))
        out = Path(words[words.index("--out") + 1]) if "--out" in words else None
        if verb == "train":
            told = yaml.safe_load(Path(words[0]).read_text())
            run = Path(told["output"])
            for step in [*range(told["train"]["save_every"], LAST, told["train"]["save_every"]), LAST]:
                (run / f"checkpoints/step-{step:08d}").mkdir(parents=True)
            (run / "export").mkdir()
            (run / "data").mkdir()
            (run / "data/manifest.json").write_text('{"fingerprint": "same"}')
            (run / "metrics.jsonl").write_text('{"step": 1, "supervised_tokens": 5}\n')
            (run / "STATUS.json").write_text(json.dumps({"state": "finished", "step": LAST, "reason": ""}))
            (run / "recipe.yaml").write_text(yaml.safe_dump(told))
        elif verb == "export":
            out.mkdir()
        else:
            model = words[words.index("--model") + 1]
            assert model == "Qwen/Qwen2.5-Math-1.5B" or Path(model).is_dir()
            make_scores(out, dict.fromkeys(MATH, percent_of(model)))

    monkeypatch.setattr(launch, "run_command", run)
    monkeypatch.setattr(arms, "write_report", lambda *_: None)
    return given


def figure_of(out):
    return json.loads((out / "figure.json").read_text())


def self_contained(out):
    page = (out / "figure.html").read_text()
    assert not re.search(r"""(src|href)=["']?(http|//)|@import|<script|<link""", page)
    return page


# --- figure 1


def test_figure_1_has_every_checkpoint_of_both_losses(tmp_path, commands, capsys):
    assert figure1.main(["--out", str(tmp_path), "--ranks", "1"]) == 0
    told = figure_of(tmp_path)
    assert [panel["benchmark"] for panel in told["panels"]] == [*MATH, "average"]
    for panel in told["panels"]:
        assert panel["axis"] == "step"
        assert panel["curves"]["SFT"]["x"] == panel["curves"]["DFT"]["x"] == [0, 20, 40, LAST]
        assert panel["curves"]["SFT"]["percent"] == pytest.approx([5, 12, 14, 15])
        assert panel["curves"]["DFT"]["percent"] == pytest.approx([5, 22, 24, 25])
        for low, high in panel["curves"]["DFT"]["ci95"]:
            assert high - low == pytest.approx(4)  # as the results say
    for panel in told["panels"][:-1]:
        assert panel["metric"] == "official avg@16"
    page, table = self_contained(tmp_path), (tmp_path / "figure.md").read_text()
    assert page.count("<svg") == 6
    for text in (page, table, capsys.readouterr().out):
        assert "prints no numbers" in text
        assert "DFT, step 40" in text
        assert f"{MODEL} DFT (arXiv 2508.05629, Table 1)" in text
        assert "64.9" in text  # Table 1's Math500 of DFT
    assert {row["method"]: row["percent"]["average"] for row in told["published"]["rows"]} == {
        "base": 15.92, "SFT": 18.01, "DFT": 31.58,
    }  # fmt: skip


def test_figure_1_trains_as_table_1_and_keeps_every_checkpoint(tmp_path, commands):
    figure1.main(["--out", str(tmp_path), "--ranks", "1"])
    trained = [yaml.safe_load(Path(words[0]).read_text()) for verb, *words in commands if verb == "train"]
    assert [recipe["loss"]["name"] for recipe in trained] == ["sft", "dft"]
    for recipe in trained:
        assert (recipe["optim"]["lr"], recipe["optim"]["batch_size"], recipe["data"]["max_length"]) == (5e-5, 256, 2048)
        steps = math.ceil(100_000 / 256)
        assert recipe["train"]["keep"] >= steps / recipe["train"]["save_every"] >= 10


def test_figure_1_exports_what_is_not_scored_and_removes_it(tmp_path, commands):
    figure1.main(["--out", str(tmp_path), "--ranks", "1"])
    # Untrained, the two ends, and two steps of each run; the ends are exports of their runs.
    assert [verb for verb, *_ in commands] == ["eval", *["train", "eval"] * 2, *["export", "eval"] * 4]
    assert [words[2] for verb, *words in commands if verb == "export"] == ["20", "40"] * 2
    assert not list(tmp_path.glob("steps/*/*/export"))
    assert len(list(tmp_path.glob("steps/*/*/eval/math/results.json"))) == 4
    written = figure_of(tmp_path)
    del commands[:]
    figure1.main(["--out", str(tmp_path), "--ranks", "1"])
    assert commands == []
    assert figure_of(tmp_path) == written
    figure1.main(["--out", str(tmp_path), "--ranks", "1", "--keep-exports"])
    assert [verb for verb, *_ in commands] == ["export"] * 4
    assert len(list(tmp_path.glob("steps/*/*/export"))) == 4


def test_figure_1_goes_on_where_it_was_stopped(tmp_path, commands, monkeypatch):
    whole = launch.run_command

    def stopped(command, *rest):
        if "eval" in command and "step-00000040" in " ".join(command):
            raise launch.Stopped("stopped")
        whole(command, *rest)

    monkeypatch.setattr(launch, "run_command", stopped)
    assert figure1.main(["--out", str(tmp_path), "--ranks", "1"]) == 3
    assert not (tmp_path / "figure.json").exists()
    monkeypatch.setattr(launch, "run_command", whole)
    del commands[:]
    assert figure1.main(["--out", str(tmp_path), "--ranks", "1"]) == 0
    assert [verb for verb, *_ in commands] == ["eval", "export", "eval", "export", "eval"]


def test_figure_1_has_a_curve_a_seed(tmp_path, commands):
    figure1.main(["--out", str(tmp_path), "--ranks", "1", "--seeds", "3,4"])
    assert list(figure_of(tmp_path)["panels"][0]["curves"]) == [
        "SFT, seed 3", "SFT, seed 4", "DFT, seed 3", "DFT, seed 4",
    ]  # fmt: skip


@pytest.mark.parametrize("figure", [figure1, figure2, figure3])
def test_a_model_that_the_figure_does_not_have_is_told(tmp_path, commands, figure, capsys):
    assert figure.main(["--out", str(tmp_path), "--ranks", "1", "--models", "LLaMA-3.2-3B"]) == 2
    assert f"--models LLaMA-3.2-3B: this table has {MODEL}" in capsys.readouterr().err
    assert commands == []


# --- figure 2


def test_figure_2_probes_before_and_after(tmp_path, commands, monkeypatch, capsys):
    asked = {}

    def stand_in(recipe, rows, model=None, after=()):
        asked.update(recipe=recipe, rows=rows, model=model, after=after)
        kind = {"tokens": 4, "p_mean": 0.5}
        figures = {
            "rows": 2, "tokens": 4, "p_hist": [1, 0, 0, 0, 0, 1, 0, 0, 0, 2], "p_mean": 0.5, "p_median": 0.5, "ce": 0.7,
            "effective_token_ratio": 0.8, "signal_kept": 0.5, "ignored_examples": 0.0, "answer_tokens": 2.0,
            "classes": dict.fromkeys(("numbers", "operators", "words", "punctuation"), kind), "control_tokens": kind,
        }  # fmt: skip
        source = figures | {"path": "rows.jsonl", "loss": "sft", "advice": "dft"}
        told = figures | {"model": recipe.model.path, "sources": [source], "warnings": [], "advice": "dft"}
        after = [figures | {"model": path, "sources": [source]} for path in after]
        return told | {"reasons": ["because"], "after": after}

    monkeypatch.setattr(probe, "probe", stand_in)
    study = tmp_path / "table1"
    words = ["--out", str(tmp_path / "out"), "--ranks", "1", "--study", str(study), "--rows", "9"]
    assert figure2.main([*words, "--after", "dpo/export", "--after", "grpo/export"]) == 0
    runs = [str(study / "runs" / name) for name in ("sft-s0", "dft-s0")]
    assert asked["after"] == [*runs, "dpo/export", "grpo/export"]
    assert (asked["model"], asked["rows"]) == (None, 9)
    assert asked["recipe"].model.path == "Qwen/Qwen2.5-Math-1.5B"
    assert asked["recipe"].run_dir == study / "runs/sft-s0"  # its data are prepared
    told = figure_of(tmp_path / "out")
    assert [each["model"] for each in told["after"]] == asked["after"]
    page = self_contained(tmp_path / "out")
    for name in ("before", "after sft-s0", "after dft-s0", "after dpo", "after grpo"):
        assert name in page
        assert name in (tmp_path / "out/figure.md").read_text()
    assert "prints no numbers" in page
    assert "prints no numbers" in capsys.readouterr().out
    assert len([verb for verb, *_ in commands if verb == "train"]) == 2
    del commands[:]
    assert figure2.main(words) == 0  # the study is there
    assert commands == []


# --- figure 3


def test_figure_3_varies_one_thing_at_a_time(tmp_path, commands):
    assert figure3.main(["--out", str(tmp_path), "--ranks", "1"]) == 0
    trained = [yaml.safe_load(Path(words[0]).read_text()) for verb, *words in commands if verb == "train"]
    found = sorted((r["loss"]["name"], r["optim"]["lr"], r["optim"]["batch_size"]) for r in trained)
    rates, sizes = [2e-4, 1e-4, 5e-5, 1e-5], [32, 64, 128, 256]  # appendix A.8
    settings = {(rate, 256) for rate in rates} | {(5e-5, size) for size in sizes}
    assert found == sorted((loss, *setting) for loss in ("sft", "dft") for setting in settings)
    told = figure_of(tmp_path)
    by_rate, by_size = told["panels"]
    assert (by_rate["axis"], by_size["axis"]) == ("learning rate", "batch size")
    for panel, places in ((by_rate, sorted(rates)), (by_size, sizes)):
        assert (panel["benchmark"], panel["log"]) == ("average", True)
        assert panel["curves"]["SFT"]["x"] == panel["curves"]["DFT"]["x"] == places
        assert panel["curves"]["SFT"]["percent"] == pytest.approx([15] * 4)
        assert panel["curves"]["DFT"]["percent"] == pytest.approx([25] * 4)
    page = self_contained(tmp_path)
    assert page.count("<svg") == 2
    for label in ("SFT, learning rate 2e-4", "DFT, batch size 32", f"{MODEL} SFT (arXiv 2508.05629, Table 1)"):
        assert label in page
        assert label in (tmp_path / "figure.md").read_text()
    assert "prints no numbers" in page


def test_figure_3_compares_only_what_saw_the_same_examples(tmp_path, commands):
    figure3.main(["--out", str(tmp_path), "--ranks", "1"])
    comparison = json.loads((tmp_path / MODEL / "compare.json").read_text())
    pairs = {(row["a"], row["b"]) for row in comparison["comparisons"]}
    assert len(pairs) == 7
    assert all(a.removeprefix("sft-") == b.removeprefix("dft-") for a, b in pairs)
    assert comparison["notes"] == []


def test_figure_3_scores_its_settings_under_their_own_names(tmp_path, commands, monkeypatch, make_scores):
    whole = launch.run_command

    def run(command, folder, log_file, environment):
        if "eval" not in command:
            return whole(command, folder, log_file, environment)
        words = " ".join(command)
        rate, size = re.search(r"-lr(\S+?)-batch(\d+)-s0/export", words).groups()
        out = Path(command[command.index("--out") + 1])
        return make_scores(out, dict.fromkeys(MATH, 10 + 1e5 * float(rate) + int(size) / 64))

    monkeypatch.setattr(launch, "run_command", run)
    figure3.main(["--out", str(tmp_path), "--ranks", "1"])
    by_rate, by_size = figure_of(tmp_path)["panels"]
    assert by_rate["curves"]["DFT"]["percent"] == pytest.approx([10 + 1e5 * x + 4 for x in (1e-5, 5e-5, 1e-4, 2e-4)])
    assert by_size["curves"]["DFT"]["percent"] == pytest.approx([15 + x / 64 for x in (32, 64, 128, 256)])


def test_figure_3_has_rows_for_two_whole_steps_when_it_is_tiny(shared):
    changes = [*tiny_changes("math", shared / "data"), *figure3.tiny_rows(shared / "data")]
    recipe = load_recipe(figure3.RECIPE, changes)
    (source,) = recipe.data.train
    rows = json.loads(Path(source.path).read_text())
    short = [row for row in rows if len(row["problem"]) < 2 * recipe.data.max_length]  # some 3 letters a token
    assert {source.columns.prompt, source.columns.response} <= rows[0].keys()
    assert len(short) * recipe.train.epochs >= recipe.train.max_steps * max(figure3.BATCH_SIZES)


# --- drawing


def test_points_stand_where_their_values_are():
    curve = {"x": [16, 32, 256], "percent": [10.0, 30.0, 50.0], "ci95": [[8, 12], None, [45, 55]]}
    svg = score_plot({"DFT": curve}, "average by batch size", "batch size", log_x=True)
    markers = re.findall(r'<use [^>]*?x="([\d.]+)" y="([\d.]+)" style="fill: var\(--run-0, #0072b2', svg)
    (x1, y1), (x2, y2), (x3, y3) = [tuple(map(float, place)) for place in markers[:3]]  # the last is the legend's
    assert (x3 - x1) / (x2 - x1) == pytest.approx(math.log(256 / 16) / math.log(32 / 16), rel=1e-3)
    assert (y1 - y3) / (y1 - y2) == pytest.approx((50 - 10) / (30 - 10), rel=1e-3)
    for label in ("16", "32", "256", "batch size", "percent", "DFT"):
        assert f">{label}<" in svg


def test_a_score_that_is_missing_is_a_gap(tmp_path, make_scores):
    folders = [
        make_scores(tmp_path / str(n), dict.fromkeys(MATH, 10.0 * n), ungradable=["aime24"][: n - 1]) for n in (1, 2)
    ]
    points = [Point("SFT", n, f"SFT, step {n}", folder) for n, folder in enumerate(folders)]
    write(Figure("1", "accuracy", MODEL, [Sweep("step", points)]), tmp_path)
    (panel,) = [each for each in figure_of(tmp_path)["panels"] if each["benchmark"] == "aime24"]
    assert panel["curves"]["SFT"]["percent"] == [pytest.approx(10.0), None]
    assert panel["curves"]["SFT"]["ci95"][1] is None
    assert "7 answers could not be graded" in self_contained(tmp_path)
