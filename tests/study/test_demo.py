import json

import pytest

from dft_mm.errors import InputError
from dft_mm.study.demo import MODELS, SUITES, Settings, demo, make_recipe
from dft_mm.study.digits import Sizes

SMALL = Settings(sizes=Sizes(clean=64, mixed=32, heldout=12), batch_size=16, warmup_epochs=1, epochs=1)


def test_the_arms_differ_in_their_loss_and_name_only():
    sft, dft = (make_recipe(name, Settings()).model_dump() for name in ("sft", "dft"))
    losses = sft.pop("loss"), dft.pop("loss")
    assert [loss.pop("name") for loss in losses] == ["sft", "dft"]
    assert losses[0] == losses[1]
    assert (sft.pop("name"), dft.pop("name")) == ("sft", "dft")
    assert (sft.pop("output"), dft.pop("output")) == ("runs/sft", "runs/dft")
    assert sft == dft


def test_the_arms_start_from_the_warm_up():
    assert make_recipe("warmup", Settings()).model.path == "model"
    assert make_recipe("dft", Settings()).model.path == "runs/warmup/export"
    assert make_recipe("warmup", Settings()).loss.name == "sft"


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="is not empty"):
        demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_demo_with_other_settings_is_refused(tmp_path):
    (tmp_path / "demo.json").write_text(json.dumps({"dft_mm": "0.0.1", "seed": 0}))
    with pytest.raises(InputError, match=r"dft_mm: '0.0.1' -> "):
        demo(tmp_path)


@pytest.mark.long
def test_a_small_demo_runs_to_its_page_and_is_not_done_twice(tmp_path, capsys):
    out = tmp_path / "demo"
    demo(out, SMALL)
    printed = capsys.readouterr().out
    assert all(f"| {name} |" in printed for name in MODELS)
    assert (out / "report.html").stat().st_size > 50_000
    for name in MODELS:
        assert json.loads((out / "runs" / name / "STATUS.json").read_text())["state"] == "finished"
        for suite in SUITES:
            results = json.loads((out / "runs" / name / "eval" / suite / "results.json").read_text())
            assert all(entry["metrics"] for entry in results["benchmarks"].values())
    verdicts = {row["verdict"] for row in json.loads((out / "compare.json").read_text())["comparisons"]}
    assert verdicts <= {"a_better", "b_better", "no_difference"}
    before = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*") if path.is_file()}
    demo(out, SMALL)
    assert before == {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*") if path.is_file()}
