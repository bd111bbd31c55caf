"""Intervals and pass@k against closed forms, published values and counting."""

import itertools
import math

import pytest

from dft_mm.evaluate.statistics import bootstrap, holm, metric, paired, pass_at_k, wilson


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


def test_where_all_answers_agree_there_is_uncertainty_all_the_same():
    assert metric([1.0] * 30, binomial=False)["ci95"] == list(wilson(30, 30))
    assert metric([0.0] * 30, binomial=False)["ci95"] == list(wilson(0, 30))
    assert metric([0.5] * 30, binomial=False)["ci95"] == [0.5, 0.5]


def test_one_question_has_no_standard_error():
    assert metric([1.0], binomial=True)["se"] is None


def test_the_paired_p_value_counts_the_signs():
    differences = [0.5, 1.0, -0.25, 0.0, 0.75]
    moved = [value for value in differences if value]
    sums = [sum(s * v for s, v in zip(signs, moved)) for signs in itertools.product((1, -1), repeat=4)]
    found = paired(differences)
    assert found["difference"] == pytest.approx(0.4)
    assert found["p"] == sum(abs(each) >= 2.0 for each in sums) / 16
    # McNemar's exact test is the same thing for right and wrong: 2 * (1 + 10) / 2**10 for one against nine.
    assert paired([1.0] * 9 + [-1.0] + [0.0] * 30)["p"] == 22 / 1024


def test_many_questions_are_drawn_and_agree_with_the_normal_approximation():
    differences = [1.0] * 60 + [-1.0] * 40 + [0.0] * 100
    assert paired(differences)["p"] == pytest.approx(math.erfc(19 / math.sqrt(100) / math.sqrt(2)), abs=0.01)


def test_the_number_of_questions_needed_has_the_power_it_promises():
    # One in five differs, three to one: sd² = 0.2 - 0.1², mean 0.1.
    needed = paired([1.0] * 15 + [-1.0] * 5 + [0.0] * 80)["questions_needed"]
    assert needed == pytest.approx(((1.96 + 0.8416) / 0.1) ** 2 * (0.2 - 0.01), rel=0.02)


def test_holm_s_correction_is_the_published_one():
    # Holm 1979 with p = 0.01, 0.04, 0.03: times 3, 1, 2, and never below the one before.
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
