"""Metrics against closed forms, published values and counting."""

import math

import pytest

from dft_mm.evaluate.results import summarise, to_markdown
from dft_mm.evaluate.statistics import wilson
from dft_mm.evaluate.suite import Suite
from dft_mm.evaluate.task import Answer, Grade, Question, Scored


def _summary(statuses: dict[str, list[str]], samples: int, official=None, **more) -> dict:
    """results.json of one benchmark `x`, from the statuses of each question's samples."""
    answers, grades = [], []
    for question, row in statuses.items():
        for number, status in enumerate(row):
            answers.append(Answer(Question(question, [], "1"), number, "text", more.get("finish_reason", "stop")))
            grades.append(Grade(status, None, official=official and official(status)))
    suite = Suite.model_validate(
        {
            "name": "s",
            "sampling": {"samples": samples, "temperature": 1.0},
            "benchmarks": [{"task": "gsm8k", "name": "x", "data": "d"}],
            "averages": more.get("averages", {}),
        }
    )
    return summarise(suite, "a|b", {"x": answers}, {"x": more.get("scored", Scored(grades))})


def _entry(statuses: dict[str, list[str]], samples: int, **more) -> dict:
    return _summary(statuses, samples, **more)["benchmarks"]["x"]


def test_one_sample_each_gives_the_share_of_right_questions():
    entry = _entry({"a": ["correct"], "b": ["wrong"], "c": ["no_answer"], "d": ["correct"]}, 1)
    assert set(entry["metrics"]) == {"avg@1", "pass@1"}
    found = entry["metrics"]["avg@1"]
    assert found["value"] == 0.5
    assert found["n"] == 4
    assert found["se"] == pytest.approx(math.sqrt(1 / 3) / 2)  # s² of (1, 0, 0, 1) is 1/3
    assert found["ci95"] == list(wilson(2, 4))
    assert entry["status"] == {"correct": 2, "no_answer": 1, "wrong": 1}


def test_several_samples_are_averaged_within_a_question_first():
    rows = {"a": ["correct"] * 4, "b": ["correct", "wrong", "wrong", "truncated"], "c": ["wrong"] * 4}
    entry = _entry(rows, 4)
    metrics = entry["metrics"]
    assert list(metrics) == ["avg@4", "pass@1", "pass@2", "pass@4"]
    assert metrics["avg@4"]["value"] == metrics["pass@1"]["value"] == pytest.approx((1 + 0.25 + 0) / 3)
    assert metrics["pass@2"]["value"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert metrics["pass@4"]["value"] == pytest.approx(2 / 3)
    assert {value["n"] for value in metrics.values()} == {3}
    assert entry["samples"] == 4


def test_powers_of_two_end_at_the_number_of_samples():
    assert list(_entry({"a": ["wrong"] * 6}, 6)["metrics"]) == ["avg@6", "pass@1", "pass@2", "pass@4"]


def test_an_ungradable_question_is_shown_and_never_a_zero():
    entry = _entry({"a": ["correct"], "b": ["ungradable"]}, 1)
    assert entry["metrics"]["avg@1"]["value"] == 1.0
    assert entry["metrics"]["avg@1"]["n"] == 1
    assert entry["status"]["ungradable"] == 1
    table = to_markdown({"suite": "s", "model": "m", "benchmarks": {"x": entry}})
    assert "1 ungradable" in table
    assert "not part of the values" in table


def test_nothing_gradable_is_a_blank():
    entry = _entry({"a": ["ungradable"]}, 1)
    assert entry["metrics"] == {}
    assert "| x |  | | | 0 | 1 ungradable |" in to_markdown({"suite": "s", "model": "m", "benchmarks": {"x": entry}})


def test_the_table_is_in_percent():
    entry = _entry({str(n): ["correct" if n < 81 else "wrong"] for n in range(263)}, 1)
    table = to_markdown({"suite": "s", "model": "a|b", "benchmarks": {"x": entry}})
    assert "| x | avg@1 | 30.8 | 25.5 to 36.6 | 263 | 81 correct, 182 wrong |" in table


def test_official_verdicts_have_an_average_of_their_own():
    statuses = {"a": ["correct"], "b": ["wrong"], "c": ["wrong"], "d": ["wrong"]}
    averages = _summary(statuses, 1, official=lambda status: status == "wrong", averages={"all": ["x"]})["averages"]
    assert {name: mean["value"] for name, mean in averages.items()} == {"all": 0.25, "all official": 0.75}


def test_an_average_is_unweighted_and_blank_where_a_member_is():
    statuses = {str(n): ["correct" if n < 5 else "wrong"] for n in range(10)}
    summary = _summary(statuses, 1, averages={"all": ["x"]})
    mean = summary["averages"]["all"]
    error = summary["benchmarks"]["x"]["metrics"]["avg@1"]["se"]
    assert (mean["value"], mean["se"], mean["of"]) == (0.5, error, ["x"])
    assert mean["ci95"] == pytest.approx([0.5 - 1.96 * error, 0.5 + 1.96 * error], abs=1e-4)
    assert "| all | mean of 1 | 50.0 |" in to_markdown(summary)
    blank = _summary({"a": ["ungradable"]}, 1, averages={"all": ["x"]})
    assert blank["averages"]["all"]["value"] is None
    assert "all: no value, since x have none" in to_markdown(blank)
    assert list(blank["averages"]) == ["all"]
    certain = _summary({"a": ["wrong"], "b": ["wrong"]}, 1, averages={"all": ["x"]})
    assert certain["averages"]["all"]["ci95"] is None


def test_answers_that_were_cut_are_told_apart_from_those_without_an_end():
    entry = _entry({"a": ["correct"], "b": ["truncated"]}, 1, finish_reason="length")
    table = to_markdown({"suite": "s", "model": "m", "benchmarks": {"x": entry}})
    assert "1 correct, 1 truncated; 2 cut at max_tokens" in table
    assert "pass@1" not in table
