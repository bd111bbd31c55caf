import pytest

from dft_mm.errors import InputError
from dft_mm.report.read import read_paths, read_run


def test_a_run_brings_its_own_scores(make_run, make_results):
    run = make_run("dft", "dft")
    make_results(run / "eval" / "digits", 30)
    runs, results = read_paths([run])
    assert [each.name for each in runs] == ["dft"]
    assert [(each.label, each.suite) for each in results] == [("dft", "digits")]


def test_a_key_is_read_where_it_was_measured(make_run):
    run = read_run(make_run("dft"))
    assert run.series("heldout_ce")[0] == [20, 40]
    assert run.series("no such key") == ([], [])


def test_a_model_that_was_not_trained_here_has_its_scores_in_a_folder_like_a_run(tmp_path):
    folder = tmp_path / "base/eval/math"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text('{"suite": "math", "model": "m", "benchmarks": {}}')
    runs, (results,) = read_paths([tmp_path / "base"])
    assert (runs, results.label, results.suite) == ([], "base", "math")


def test_a_path_that_is_neither_is_refused(tmp_path):
    with pytest.raises(InputError, match="neither a run folder"):
        read_paths([tmp_path])
    with pytest.raises(InputError, match="neither a run folder"):
        read_paths([tmp_path / "nothing"])


def test_a_line_being_written_is_no_error_and_a_broken_one_is(make_run):
    running = make_run("a", state="running")
    with (running / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "ce"')
    assert len(read_run(running).metrics) == 40
    finished = make_run("b")
    with (finished / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "ce"')
    with pytest.raises(InputError, match=r"metrics.jsonl:41"):
        read_run(finished)
