import json

import pytest

from dft_mm.errors import InputError
from dft_mm.report.read import read_lines, read_paths, read_run, stamps


def test_a_run_brings_its_own_scores(make_run, make_results):
    run = make_run("dft", "dft")
    make_results(run / "eval" / "digits", 30)
    found = read_paths([run, run / "eval" / "digits", run])
    assert [each.name for each in found.runs] == ["dft"]
    assert [(each.label, each.suite) for each in found.results] == [("dft", "digits")]


def test_a_key_is_read_where_it_was_measured(make_run):
    run = read_run(make_run("dft"))
    assert run.series("heldout_ce")[0] == [20, 40]
    assert run.series("no such key") == ([], [])


def test_a_model_that_was_not_trained_here_has_its_scores_in_a_folder_like_a_run(tmp_path):
    folder = tmp_path / "base/eval/math"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text('{"suite": "math", "model": "m", "benchmarks": {}}')
    found = read_paths([tmp_path / "base"])
    assert [(each.label, each.suite) for each in found.results] == [("base", "math")]
    assert found.runs == []


def test_a_path_that_is_neither_is_refused(tmp_path):
    with pytest.raises(InputError, match="neither a run folder"):
        read_paths([tmp_path])
    with pytest.raises(InputError, match="neither a run folder"):
        read_paths([tmp_path / "nothing"])


def test_a_folder_that_holds_nothing_yet_can_be_waited_for(tmp_path):
    assert read_paths([tmp_path], wait=True).waiting == [tmp_path]
    with pytest.raises(InputError, match="neither a run folder"):
        read_paths([tmp_path / "nothing"], wait=True)


def test_a_comparison_brings_the_results_that_were_compared(make_results, compare, tmp_path):
    a, b = (make_results(tmp_path / "runs" / name / "eval" / "digits", 20) for name in ("dft", "sft"))
    found = read_paths([compare(tmp_path / "comparison", a, b)])
    assert [each.label for each in found.results] == ["dft", "sft"]
    assert {(row["a"], row["b"]) for row in found.comparisons[0].rows} == {("dft", "sft")}


def test_two_suites_of_one_run_are_compared_by_their_paths(make_results, compare, tmp_path):
    a, b = (make_results(tmp_path / "runs/dft/eval" / suite, 20) for suite in ("one", "two"))
    (row, _) = read_paths([compare(tmp_path / "comparison", a, b)]).comparisons[0].rows
    assert (row["a"], row["b"]) == (str(a), str(b))


def test_a_study_brings_its_runs_in_the_order_of_its_arms_and_may_have_no_comparison_yet(make_run, tmp_path):
    for name in ("a-s0", "sft-s0", "dft-s1", "dft-s0"):
        make_run(name)
    (tmp_path / "study.json").write_text('{"arms": {"sft": [], "dft": [], "a": []}}')
    found = read_paths([tmp_path])
    assert [run.name for run in found.runs] == ["sft-s0", "dft-s0", "dft-s1", "a-s0"]
    assert found.comparisons == []


def test_a_change_of_anything_that_is_read_is_seen(make_run, make_results, compare, tmp_path):
    a, b = (make_results(tmp_path / "elsewhere" / name, 20) for name in ("a", "b"))
    comparison = compare(tmp_path / "comparison", a, b)
    study, run = tmp_path / "study", make_run("sft-s0")
    (study / "runs").mkdir(parents=True)
    run.rename(study / "runs/sft-s0")
    (study / "study.json").write_text("{}")
    paths = [comparison, study, a]
    for file in (comparison / "compare.json", b / "results.json", a / "manifest.json", study / "study.json"):
        before = stamps(paths)
        with file.open("a") as more:
            more.write(" ")
        assert stamps(paths) != before, file


def test_a_comparison_that_is_half_written_has_its_own_stamp(compare, tmp_path):
    (compare(tmp_path, "a", "b") / "compare.json").write_text('{"a": ')
    assert list(stamps([tmp_path])) == [str(tmp_path / "compare.json")]


def test_models_of_one_name_are_told_apart(make_results, tmp_path):
    found = read_paths([make_results(tmp_path / place / "math", 20) for place in ("one", "two")])
    assert [each.label for each in found.results] == [str(tmp_path / place / "math") for place in ("one", "two")]


def test_texts_with_other_ends_of_lines_are_read(tmp_path):
    path = tmp_path / "generations.jsonl"
    path.write_text(json.dumps({"text": "a\u2028b\x85c"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_lines(path) == [{"text": "a\u2028b\x85c"}]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("results.json", "[]", "suite, model, benchmarks is missing, so it is not what dft-mm eval writes"),
        ("recipe.yaml", "a: [", "not valid YAML"),
        ("recipe.yaml", "name: x", "model, data, loss, optim, train is missing"),
        ("compare.json", "{}", "comparisons is missing"),
    ],
)
def test_a_file_of_something_else_is_named(tmp_path, file, text, message):
    (tmp_path / file).write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_paths([tmp_path])
    assert str(tmp_path / file) in str(caught.value)


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
