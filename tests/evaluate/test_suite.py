"""Suites and rows of questions: what is taken, and what is refused with which words."""

import json

import pytest
from asked import load_questions

from dft_mm.errors import InputError
from dft_mm.evaluate.suite import load_suite
from dft_mm.evaluate.tasks.digits import grade_exact


def _suite(tmp_path, text):
    path = tmp_path / "s.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def _data(tmp_path, *rows):
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_suite_is_read_with_its_overrides(tmp_path):
    path = _suite(tmp_path, "name: s\nsampling: {temperature: 1e0}\nbenchmarks: [{task: gsm8k, data: d, name: g}]\n")
    suite = load_suite(path, ["sampling.samples=4", "sampling.max_tokens=9"])
    assert (suite.sampling.samples, suite.sampling.max_tokens, suite.sampling.temperature) == (4, 9, 1.0)
    assert suite.benchmarks[0].key == "g"


def test_settings_of_every_benchmark_or_of_one_follow_the_suite(tmp_path):
    text = "name: s\nbenchmarks: [{task: gsm8k, data: d}, {task: gsm8k, name: other}]\n"
    overrides = ["benchmarks.limit=2", "benchmarks.other.data=e", "benchmarks.other.limit=3"]
    suite = load_suite(_suite(tmp_path, text), overrides)
    assert [(bench.data, bench.limit) for bench in suite.benchmarks] == [("d", 2), ("e", 3)]
    with pytest.raises(InputError, match=r"unknown key 'benchmarks.0.limt'; did you mean 'benchmarks.limit'"):
        load_suite(_suite(tmp_path, text), ["benchmarks.limt=2"])


def test_the_shipped_suites_load_by_name_from_anywhere(repo, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert load_suite("math").sampling.samples == 16
    for path in (repo / "eval/suites").glob("*.yaml"):
        assert load_suite(path).name == path.stem


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: s\nbenchmarks: [{task: gms8k, data: d}]", ["gms8k", "did you mean 'gsm8k'"]),
        ("name: s\nbenchmarks: []", ["benchmarks"]),
        ("name: s\nbenchmarks: [{task: gsm8k, prompt: {user: Solve.}}]", ["{question}", "'Solve.'"]),
        ("name: s\nbenchmarks: [{task: wemath, judge: gpt-4}]", ["judge", "'rule' or 'exact'", "gpt-4"]),
        ("name: s\nbenchmarks: [{task: wemath, judge: {url: 'http://h/v1'}}]", ["judge.endpoint.model", "missing"]),
        ("name: s\nbenchmarks: [{task: gsm8k, split: x}]", ["gsm8k", "no split 'x'"]),
        ("name: s\nbenchmarks: [{task: digits, data: d, prompt: qwen}]", ["digits", "no prompt"]),
        ("name: s\nbenchmarks: [{task: gsm8k, judge: exact}]", ["gsm8k", "'exact'", "there are rule"]),
        ("name: s\nbenchmarks: [{task: gsm8k}]\naverages: {all: [gsm9k]}", ["averages.all", "gsm9k", "gsm8k"]),
        ("name: s\nbenchmarks: [{task: gsm8k, data: d}, {task: gsm8k, data: e}]", ["gsm8k", "twice", "name"]),
        ("name: s\nsampling: {temprature: 1}\nbenchmarks: [{task: gsm8k, data: d}]", ["temprature", "temperature"]),
        ("name: s\nsampling: {samples: 4}\nbenchmarks: [{task: gsm8k, data: d}]", ["samples is 4", "temperature"]),
    ],
)
def test_a_wrong_suite_is_refused_by_name(tmp_path, text, words):
    with pytest.raises(InputError) as error:
        load_suite(_suite(tmp_path, text))
    assert all(word in str(error.value) for word in words), str(error.value)


def test_an_unknown_suite_names_those_there_are(repo, monkeypatch):
    monkeypatch.chdir(repo)
    with pytest.raises(InputError, match=r"nothere.*multimodal"):
        load_suite("nothere")


def test_ids_are_the_rows_own_or_the_line_number(tmp_path):
    row = {"question": "q", "answer": "x #### 1"}
    path = _data(tmp_path, row | {"idx": 0}, row | {"unique_id": "a/b", "id": 7}, row)
    assert [question.id for question in load_questions("gsm8k", str(path))] == ["0", "a/b", "3"]
    assert [question.id for question in load_questions("gsm8k", str(tmp_path), limit=2)] == ["0", "a/b"]


@pytest.mark.parametrize(
    ("task", "row", "words"),
    [
        ("gsm8k", {"question": "q", "answer": "no mark"}, "####"),
        ("gsm8k", {"answer": "#### 1"}, "question"),
        ("math500", {"problem": "p"}, "answer"),
        ("math500", {"problem": "p", "answer": " "}, "empty"),
        ("math500", [1], "math500"),
        ("math500", {"problem": "p", "answer": "1 + 1\n#### 2"}, "gsm8k"),
        ("digits", {"problem": "p", "answer": "1"}, "image_path"),
    ],
)
def test_a_row_that_is_no_question_is_named(tmp_path, task, row, words):
    good = {"question": "q", "problem": "p", "answer": "1" if task == "math500" else "#### 1", "image_path": "a.png"}
    path = _data(tmp_path, good, row)
    with pytest.raises(InputError, match=rf"test\.jsonl:2.*{words}"):
        load_questions(task, str(path))


def test_broken_missing_empty_and_repeated_data_are_refused(tmp_path):
    with pytest.raises(InputError, match="not found"):
        load_questions("gsm8k", str(tmp_path / "no.jsonl"))
    empty = _data(tmp_path)
    with pytest.raises(InputError, match="no question"):
        load_questions("gsm8k", str(empty))
    row = {"idx": 3, "question": "q", "answer": "#### 1"}
    with pytest.raises(InputError, match=r":2: id '3' is that of line 1"):
        load_questions("gsm8k", str(_data(tmp_path, row, row)))
    empty.write_text('{"question": ', encoding="utf-8")
    with pytest.raises(InputError, match=r":1: not valid JSON"):
        load_questions("gsm8k", str(empty))


@pytest.mark.parametrize(
    ("response", "reason", "status", "extracted"),
    [
        ("<think>3 + 4</think><answer> 7 </answer>", "stop", "correct", "7"),
        ("<answer>8</answer> no, <answer>1 2</answer>", "stop", "correct", "1 2"),
        ("<answer>8</answer>", "stop", "wrong", "8"),
        ("7", "stop", "no_answer", None),
        ("<answer> </answer>", "stop", "no_answer", None),
        ("<think>3 + 4 <answer>7", "length", "truncated", None),
    ],
)
def test_digits_are_graded_by_the_text_of_the_last_answer(response, reason, status, extracted):
    gold = "12" if "1 2" in response else "7"
    found = grade_exact(response, gold, reason)
    assert (found.status, found.extracted) == (status, extracted)
