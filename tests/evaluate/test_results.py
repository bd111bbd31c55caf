"""Metrics against closed forms, published values and counting."""

import itertools
import math

import pytest

from dft_mm.evaluate.results import bootstrap, metric, pass_at_k, summarise, to_markdown, wilson


def _scores(statuses: dict[str, list[str]]) -> list[dict]:
    return [
        {"id": question, "sample": number, "status": status}
        for question, row in statuses.items()
        for number, status in enumerate(row)
    ]


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3 (score interval without continuity correction).
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_pass_at_k_counts_the_subsets_with_a_right_sample(n):
    for correct in range(n + 1):
        right = [number < correct for number in range(n)]
        for k in range(1, n + 1):
            subsets = list(itertools.combinations(right, k))
            assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_bootstrap_agrees_with_the_normal_approximation_and_repeats():
    values = [(number * 37 % 100) / 100 for number in range(400)]
    mean = sum(values) / 400
    error = math.sqrt(sum((value - mean) ** 2 for value in values) / 400 / 400)
    low, high = bootstrap(values)
    assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.1 * error)
    assert bootstrap(values) == (low, high)


def test_one_sample_each_gives_the_share_of_right_questions():
    entry = summarise(_scores({"a": ["correct"], "b": ["wrong"], "c": ["no_answer"], "d": ["correct"]}), 1)
    assert set(entry["metrics"]) == {"avg@1", "pass@1"}
    found = entry["metrics"]["avg@1"]
    assert found["value"] == 0.5
    assert found["n"] == 4
    assert found["se"] == pytest.approx(math.sqrt(1 / 3) / 2)  # s² of (1, 0, 0, 1) is 1/3
    assert found["ci95"] == list(wilson(2, 4))
    assert entry["status"] == {"correct": 2, "no_answer": 1, "wrong": 1}


def test_several_samples_are_averaged_within_a_question_first():
    rows = {"a": ["correct"] * 4, "b": ["correct", "wrong", "wrong", "truncated"], "c": ["wrong"] * 4}
    entry = summarise(_scores(rows), 4)
    metrics = entry["metrics"]
    assert list(metrics) == ["avg@4", "pass@1", "pass@2", "pass@4"]
    assert metrics["avg@4"]["value"] == metrics["pass@1"]["value"] == pytest.approx((1 + 0.25 + 0) / 3)
    assert metrics["pass@2"]["value"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert metrics["pass@4"]["value"] == pytest.approx(2 / 3)
    assert {value["n"] for value in metrics.values()} == {3}
    assert entry["samples"] == 4


def test_powers_of_two_end_at_the_number_of_samples():
    assert list(summarise(_scores({"a": ["wrong"] * 6}), 6)["metrics"]) == ["avg@6", "pass@1", "pass@2", "pass@4"]


def test_an_ungradable_question_is_shown_and_never_a_zero():
    entry = summarise(_scores({"a": ["correct"], "b": ["ungradable"]}), 1)
    assert entry["metrics"]["avg@1"]["value"] == 1.0
    assert entry["metrics"]["avg@1"]["n"] == 1
    assert entry["status"]["ungradable"] == 1
    table = to_markdown({"suite": "s", "model": "m", "benchmarks": {"x": entry}})
    assert "1 ungradable" in table
    assert "not part of the values" in table


def test_nothing_gradable_is_a_blank():
    entry = summarise(_scores({"a": ["ungradable"]}), 1)
    assert entry["metrics"] == {}
    assert "| x | | | | 0 | 1 ungradable |" in to_markdown({"suite": "s", "model": "m", "benchmarks": {"x": entry}})


def test_one_question_has_no_standard_error():
    assert metric([1.0], binomial=True)["se"] is None


def test_the_table_is_in_percent():
    entry = summarise(_scores({str(n): ["correct" if n < 81 else "wrong"] for n in range(263)}), 1)
    table = to_markdown({"suite": "s", "model": "a|b", "benchmarks": {"x": entry}})
    assert "| x | avg@1 | 30.8 | 25.5 to 36.6 | 263 | 81 correct, 182 wrong |" in table
