"""The paper's tables: what is trained in which setting, and ours beside the published rows."""

import importlib
import json
import subprocess
import sys
import time

import pytest

from dft_mm.config import load_recipe
from dft_mm.errors import InputError
from dft_mm.evaluate.suite import load_suite
from scripts.paper import table1, table2, table6
from scripts.paper.experiment import METHODS, REPO, Findings, Model, Scored, main, options, write

MATH = ("math500", "minerva", "olympiadbench", "aime24", "amc23")
TABLES = {
    number: getattr(importlib.import_module(f"scripts.paper.table{number}"), f"TABLE{number}") for number in "134578"
}
SETTINGS = [(number, model) for number, table in TABLES.items() for model in table.models]
EACH_SETTING = pytest.mark.parametrize(("number", "model"), SETTINGS, ids=[f"{n}-{m.name}" for n, m in SETTINGS])


@pytest.fixture(scope="module")
def printed():
    """Rows of the paper's tables, by number."""
    told = json.loads((REPO / "eval/published.json").read_text())
    return {number: table["rows"] for number, table in told["tables"].items()}


def recipe_of(number, model):
    table = TABLES[number]
    words = [*table.changes, *model.changes, f"model.path={model.path}", f"loss.name={table.losses[0]}"]
    return load_recipe(REPO / "scripts/recipes" / table.recipe, words)


def table_of(text):
    """Lines of the table in a text: first the columns, then the rows, each a list of cells."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def scored(make_scores, folder, name, method, percent, setting=None, **more):
    return Scored(name, method, (make_scores(folder, dict.fromkeys(MATH, percent), **more),), setting)


# --- the table


def test_each_row_of_ours_stands_directly_above_its_published_one(tmp_path, make_scores, printed):
    rows = [
        scored(make_scores, tmp_path / f"{name} {method}", name, method, 10.0 + number)
        for number, (name, method) in enumerate(
            (name, method) for name in ("Qwen2.5-Math-1.5B", "LLaMA-3.2-3B") for method in ("DFT", "base", "SFT")
        )
    ]
    _, *found = table_of(write(Findings("1", rows), tmp_path))
    theirs = {(row["model"], row["method"]): row["percent"] for row in printed["1"]}
    assert len(found) == 12
    for ours, published in zip(found[::2], found[1::2]):
        name, method, whose = ours[0].split()
        assert whose == "ours"
        assert published[0] == f"{name} {method} (arXiv 2508.05629, Table 1)"
        assert published[1:] == [f"{theirs[name, method][benchmark]:.1f}" for benchmark in (*MATH, "average")]
    told = json.loads((tmp_path / "table.json").read_text())
    assert told["table"] == "1"
    (ours, published) = [row for row in told["rows"] if (row["model"], row["method"]) == ("LLaMA-3.2-3B", "base")]
    assert (ours["published"], ours["percent"]["average"]) == (False, pytest.approx(14.0))
    assert (published["published"], published["percent"]["average"]) == (True, 1.19)


def test_settings_of_one_method_are_told_apart(tmp_path, make_scores, printed):
    rows = [
        scored(make_scores, tmp_path / f"{setting} {method}", "Qwen2.5-Math-1.5B", method, 20.0, setting)
        for setting in ("Offline", "SFT")
        for method in ("DFT", "iw-SFT")
    ]
    _, *found = table_of(write(Findings("6", rows), tmp_path))
    wanted = [(row["method"], row["setting"]) for row in printed["6"]]
    assert [row[0] for row in found[::2]] == [f"Qwen2.5-Math-1.5B {m} ({s}) ours" for m, s in wanted]
    assert [row[0] for row in found[1::2]] == [
        f"Qwen2.5-Math-1.5B {m} (arXiv 2508.05629, Table 6, {s})" for m, s in wanted
    ]


def test_table_2_knows_which_methods_are_online(tmp_path, make_scores, monkeypatch):
    one = make_scores(tmp_path / "one", dict.fromkeys(MATH, 20.0))
    (tmp_path / "correct.jsonl").write_text("{}\n" * 3)
    (tmp_path / "stats.json").write_text(json.dumps({"source": {"path": "x", "format": "messages"}}))
    (tmp_path / "out/Qwen2.5-Math-1.5B").mkdir(parents=True)
    (tmp_path / "out/Qwen2.5-Math-1.5B/compare.json").write_text('{"comparisons": []}')
    monkeypatch.setattr(table2, "sampled", lambda *_: table2.Sampled(tmp_path, tmp_path))
    monkeypatch.setattr(table2, "train_baseline", lambda *_: tmp_path / "export")
    monkeypatch.setattr(table2, "score", lambda *_: one)
    monkeypatch.setattr(table2, "train", lambda *_: {"sft": (one,), "dft": (one,)})
    _, *found = table_of(table2.table(options("", ["--out", str(tmp_path / "out")]), ["dpo", "grpo", "rloo"]) or "")
    names = [row[0].removeprefix("Qwen2.5-Math-1.5B ") for row in found]
    ours = {name.split()[0]: at for at, name in enumerate(names) if name.endswith("ours")}
    assert set(ours) == {"base", "DPO", "RFT", "GRPO", "RLOO", "DFT"}
    for method in ("base", "DPO", "RFT", "GRPO", "DFT"):
        assert names[ours[method] + 1].startswith(f"{method} (arXiv"), names


def test_only_columns_with_a_published_number_are_kept(tmp_path, make_scores):
    rows = [scored(make_scores, tmp_path / "a", "Qwen2.5-Math-1.5B", "SFT", 40.0)]
    columns, *found = table_of(write(Findings("1", rows), tmp_path))
    (ours,) = [row for row in found if row[0].endswith("ours")]
    assert columns == ["model", *(f"{name} official avg@16" for name in MATH), "average"]
    assert ours[1:] == ["40.0 (38.0 to 42.0)"] * 6  # not the 20 of another grader, nor the 90 of pass@16
    (tmp_path / "b").mkdir()
    metric = {"value": 0.4, "se": 0.1, "ci95": [0.2, 0.6], "n": 4}
    entry = {"metrics": {"avg@1": metric}, "samples": 1, "status": {"correct": 1}, "judge": "rule"}
    told = {"suite": "math", "model": "m", "benchmarks": {"gsm8k": entry, "aime24": entry}}
    (tmp_path / "b/results.json").write_text(json.dumps(told))
    columns, *_ = table_of(write(Findings("1", [Scored("Qwen2.5-Math-1.5B", "SFT", (tmp_path / "b",))]), tmp_path))
    assert columns == ["model", "aime24"]


def test_footnotes_are_those_of_the_columns_that_are_kept(tmp_path):
    metric = {"value": 0.4, "se": 0.1, "ci95": [0.2, 0.6], "n": 4}
    entry = {"metrics": {"avg@1": metric}, "samples": 1, "status": {"correct": 1}, "judge": "rule"}
    benchmarks = {
        "gsm8k": entry | {"notes": ["of no interest here"]}, "aime24": entry | {"notes": ["read this"]},
        "amc23": entry | {"notes": ["and this"]}, "minerva": entry | {"notes": ["read this"]},
    }  # fmt: skip
    (tmp_path / "results.json").write_text(json.dumps({"suite": "math", "model": "m", "benchmarks": benchmarks}))
    text = write(Findings("1", [Scored("Qwen2.5-Math-1.5B", "SFT", (tmp_path,))]), tmp_path)
    (ours,) = [row for row in table_of(text) if row[0].endswith("ours")]
    assert [cell[-3:] for cell in ours[1:]] == ["[1]", "[2]", "[1]"]
    assert [line.strip() for line in text.splitlines() if line.startswith("[")] == ["[1] read this", "[2] and this"]


def test_a_score_that_is_missing_is_no_number(tmp_path, make_scores):
    rows = [scored(make_scores, tmp_path / "a", "Qwen2.5-Math-1.5B", "SFT", 40.0, ungradable=["aime24"])]
    rows.append(scored(make_scores, tmp_path / "b", "Qwen2.5-Math-1.5B", "DFT", 50.0))
    text = write(Findings("1", rows), tmp_path)
    columns, *found = table_of(text)
    ours = next(row for row in found if row[0] == "Qwen2.5-Math-1.5B SFT ours")
    assert ours[columns.index("aime24 official avg@16")] == "[1]"
    assert "[1] 7 answers could not be graded" in text
    told = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert [set(row["percent"]) & {"aime24 official avg@16"} for row in told if not row["published"]] == [
        set(), {"aime24 official avg@16"},
    ]  # fmt: skip


def test_every_seed_has_a_row(tmp_path, make_scores):
    folders = tuple(make_scores(tmp_path / str(seed), dict.fromkeys(MATH, 10.0 * seed)) for seed in (1, 2, 3))
    _, *found = table_of(write(Findings("1", [Scored("Qwen2.5-Math-1.5B", "DFT", folders)]), tmp_path))
    at = [row[0] for row in found].index("Qwen2.5-Math-1.5B DFT ours (1. seed)")
    assert [row[0] for row in found[at : at + 4]] == [
        "Qwen2.5-Math-1.5B DFT ours (1. seed)", "Qwen2.5-Math-1.5B DFT ours (2. seed)",
        "Qwen2.5-Math-1.5B DFT ours (3. seed)", "Qwen2.5-Math-1.5B DFT (arXiv 2508.05629, Table 1)",
    ]  # fmt: skip
    assert [row[1][:4] for row in found[at : at + 4]] == ["10.0", "20.0", "30.0", "64.9"]


def test_differences_are_told_in_the_papers_metric(tmp_path, make_scores):
    rows = [scored(make_scores, tmp_path / "a", "Qwen2.5-Math-1.5B", "SFT", 40.0)]
    told = {"benchmark": "aime24", "a": "sft", "b": "dft", "difference": -0.25, "ci95": [-0.4, -0.1], "n": 30}
    told |= {"p": 0.001, "p_adjusted": 0.002, "verdict": "b_better", "questions_needed": None}
    study = tmp_path / "Qwen2.5-Math-1.5B"
    study.mkdir()
    comparisons = [told | {"metric": "avg@16", "difference": 0.5}, told | {"metric": "official avg@16"}]
    (study / "compare.json").write_text(json.dumps({"comparisons": comparisons}))
    text = write(Findings("1", rows, [study], ["A note."]), tmp_path)
    assert "A note." in text
    (line,) = [line for line in text.splitlines() if line.startswith("- ")]
    assert line.startswith("- aime24, official avg@16: sft - dft = -25.0 points (-40.0 to -10.0): dft is better")


# --- what is asked for


def test_a_model_that_a_table_does_not_have_is_told(capsys, tmp_path):
    wanted = options("", ["--models", "Qwen2.5-Math-7B,LLaMA-3.2-3B"], "runs/x")
    assert [model.name for model in wanted.chosen(table1.MODELS)] == ["LLaMA-3.2-3B", "Qwen2.5-Math-7B"]
    assert wanted.chosen([Model("LLaMA-3.2-3B", ""), Model("Qwen2.5-Math-7B", "")])
    with pytest.raises(InputError, match=r"--models Qwen2\.5-VL-3B: this table has LLaMA-3\.2-3B, .*Qwen2\.5-Math-7B"):
        options("", ["--models", "Qwen2.5-VL-3B"], "runs/x").chosen(table1.MODELS)
    assert main(table1.TABLE1, "", ["--models", "LLaMA", "--out", str(tmp_path)]) == 2
    assert "--models LLaMA: this table has" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_all_models_are_wanted_unless_some_are_named():
    assert options("", [], "runs/x").chosen(table1.MODELS) == list(table1.MODELS)


def test_tiny_has_a_folder_of_its_own():
    assert options("", [], "runs/x").out.name == "x"
    assert options("", ["--tiny"], "runs/x").out.name == "x_tiny"
    assert options("", ["--tiny", "--out", "here"], "runs/x").out.name == "here"


# --- the paper's settings


@pytest.mark.parametrize("number", TABLES)
def test_a_table_is_about_the_papers_models_and_methods(number, printed):
    table = TABLES[number]
    assert table.table == number
    assert [model.name for model in table.models] == list(dict.fromkeys(row["model"] for row in printed[number]))
    methods = [*(["base"] if table.base else []), *(METHODS[loss] for loss in table.losses)]
    assert methods == list(dict.fromkeys(row["method"] for row in printed[number]))
    suite = load_suite(table.suite)
    known = {bench.key for bench in suite.benchmarks} | suite.averages.keys()
    assert {name.split(" ")[0] for row in printed[number] for name in row["percent"]} == known


MATH_SETTING = {"lr": 5e-5, "batch": 256, "length": 2048, "warmup": 0.1, "epochs": 1}  # section 4.1.1
PAPER = {
    "1": MATH_SETTING,
    "3": {"lr": 5e-5, "batch": 16, "warmup": 0.05, "epochs": 1},  # section 4.3.1
    "4": {"lr": 5e-5, "epochs": 1},  # section 4.4.1
    "5": MATH_SETTING,
    "7": MATH_SETTING | {"epochs": 3},  # appendix A.6
    "8": MATH_SETTING,
}


@EACH_SETTING
def test_hyper_parameters_are_the_papers(number, model):
    recipe = recipe_of(number, model)
    found = {
        "lr": recipe.optim.lr, "batch": recipe.optim.batch_size, "length": recipe.data.max_length,
        "warmup": recipe.optim.warmup_ratio, "epochs": recipe.train.epochs,
    }  # fmt: skip
    lower = {"lr": 2e-5} if model.name == "LLaMA-3.1-8B" else {}  # "for which we adopt a lower learning rate"
    assert {key: found[key] for key in PAPER[number]} == PAPER[number] | lower
    assert (recipe.optim.schedule, recipe.train.max_steps) == ("cosine", None)
    lora = recipe.model.lora
    assert (lora and (lora.rank, lora.alpha)) == ((8, 16) if number == "8" else None)  # appendix A.7
    # LLaMA-Factory's defaults for Qwen2.5-VL: --freeze_vision_tower and --freeze_multi_modal_projector.
    assert sorted(recipe.model.freeze) == (["projector", "vision"] if number == "4" else [])
    assert recipe.model.path == model.path


@pytest.mark.parametrize("script", [table2, table6])
def test_offline_tables_train_as_table_1(script):
    (model,) = [model for model in table1.MODELS if model.name == "Qwen2.5-Math-1.5B"]
    assert model == script.MODEL
    assert load_recipe(script.RECIPE) == load_recipe(REPO / "scripts/recipes" / table1.TABLE1.recipe)


def test_answers_are_sampled_as_in_the_paper():
    sampling = load_suite("math").sampling
    assert (sampling.samples, sampling.temperature, sampling.max_tokens) == (16, 1.0, 4096)  # section 4.1.1


# --- all of it


@pytest.mark.long
def test_a_table_ends_and_trains_nothing_anew(shared, tmp_path):
    command = [sys.executable, "-m", "scripts.paper.table1", "--tiny", "--data", str(shared / "data"), "--ranks", "1"]
    command += ["--models", "Qwen2.5-Math-1.5B", "--out", str(tmp_path / "out")]
    times = []
    for _ in range(2):
        started = time.monotonic()
        done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        watched = [*tmp_path.rglob("metrics.jsonl"), *tmp_path.rglob("generations.jsonl")]
        times.append({path: path.stat().st_mtime_ns for path in watched})
        columns, *rows = table_of(done.stdout)
        assert [row[0].removeprefix("Qwen2.5-Math-1.5B ") for row in rows] == [
            f"{method} {whose}"
            for method in ("base", "SFT", "DFT")
            for whose in ("ours", "(arXiv 2508.05629, Table 1)")
        ]
        assert len(columns) == 7
        assert all(cell for row in rows for cell in row)
        print(f"{time.monotonic() - started:.0f} s")
    assert len(times[0]) == 5  # two runs, three models scored
    assert times[0] == times[1]
    assert "$ " not in done.stderr
