"""Intervals and pass@k against closed forms, published values and counting."""

import itertools
import math

import pytest

from dft_mm.evaluate.statistics import bootstrap, metric, pass_at_k, wilson


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


def test_one_question_has_no_standard_error():
    assert metric([1.0], binomial=True)["se"] is None
