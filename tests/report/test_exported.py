"""Scores for the model card: those of the exported model, and no others."""

import json

import pytest

from dft_mm.evaluate.answering import model_hash
from dft_mm.report.exported import scores_of_export


@pytest.fixture
def run(tmp_path):
    """A run whose export is that of step 7, with a suite scored on it and one on another model."""
    run = tmp_path / "runs/mine"
    for folder in (run / "export", run / "merged", tmp_path / "other"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "dft_mm.json").write_text('{"step": 7}')
        (folder / "model.safetensors").write_bytes(b"weights")
    for suite, model in (("math", run / "export"), ("code", tmp_path / "other")):
        (run / "eval" / suite).mkdir(parents=True)
        metrics = {"avg@1": {"value": 0.5, "se": 0.1, "ci95": [0.3, 0.7], "n": 10}}
        benchmarks = {suite: {"metrics": metrics, "status": {"correct": 5, "wrong": 5}, "samples": 1}}
        results = {"suite": suite, "model": str(model), "benchmarks": benchmarks}
        (run / "eval" / suite / "results.json").write_text(json.dumps(results))
        manifest = {"model": {"path": str(model), "sha256": model_hash(str(model), "hf")}}
        (run / "eval" / suite / "manifest.json").write_text(json.dumps(manifest))
    return run


def test_the_exports_own_scores_are_a_table(run):
    table = scores_of_export(run, 7)
    assert "50.0 (30.0 to 70.0)" in table
    assert "math" in table
    assert "code" not in table


def test_scores_of_the_merged_model_are_the_run_s_too(run):
    path = run / "eval/code/results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model": str(run / "merged")}))
    table = scores_of_export(run, 7)
    assert "math" in table
    assert "code" in table
    (run / "merged/dft_mm.json").write_text('{"step": 6}')
    assert "code" not in scores_of_export(run, 7)
    assert "math" in scores_of_export(run, 7)


def test_scores_of_weights_that_were_there_before_are_not_shown(run):
    (run / "export/model.safetensors").write_bytes(b"trained anew")
    assert scores_of_export(run, 7) == ""


def test_another_step_has_no_scores(run):
    assert scores_of_export(run, 6) == ""


def test_a_run_that_was_not_scored_or_not_exported_has_none(run):
    (run / "eval/math/results.json").unlink()
    assert scores_of_export(run, 7) == ""
    (run / "export/dft_mm.json").unlink()
    assert scores_of_export(run, 7) == ""
