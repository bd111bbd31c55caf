"""Scores for the model card: those of the exported model, and no others."""

import json

import pytest

from dft_mm.report.exported import scores_of_export


@pytest.fixture
def run(tmp_path):
    """A run whose export is that of step 7, with a suite scored on it and one on another model."""
    run = tmp_path / "runs/mine"
    (run / "export").mkdir(parents=True)
    (run / "export/dft_mm.json").write_text('{"step": 7}')
    for suite, model in (("math", run / "export"), ("code", tmp_path / "other")):
        (run / "eval" / suite).mkdir(parents=True)
        metrics = {"avg@1": {"value": 0.5, "se": 0.1, "ci95": [0.3, 0.7], "n": 10}}
        benchmarks = {suite: {"metrics": metrics, "status": {"correct": 5, "wrong": 5}, "samples": 1}}
        results = {"suite": suite, "model": str(model), "benchmarks": benchmarks}
        (run / "eval" / suite / "results.json").write_text(json.dumps(results))
    return run


def test_the_exports_own_scores_are_a_table(run):
    table = scores_of_export(run, 7)
    assert "50.0 (30.0 to 70.0)" in table
    assert "math" in table
    assert "code" not in table


def test_another_step_has_no_scores(run):
    assert scores_of_export(run, 6) == ""


def test_a_run_that_was_not_scored_or_not_exported_has_none(run):
    (run / "eval/math/results.json").unlink()
    assert scores_of_export(run, 7) == ""
    (run / "export/dft_mm.json").unlink()
    assert scores_of_export(run, 7) == ""
