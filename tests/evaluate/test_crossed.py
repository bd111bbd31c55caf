"""The interval of a difference over training seeds and questions."""

import numpy as np
import pytest
from scipy import stats

from dft_mm.evaluate.statistics import crossed


def drawn(generator, seeds, questions, mean=0.0, of_seed=0.03, of_question=0.2, of_both=0.4):
    rows = generator.normal(0, of_seed, (seeds, 1))
    columns = generator.normal(0, of_question, (1, questions))
    return mean + rows + columns + generator.normal(0, of_both, (seeds, questions))


@pytest.mark.parametrize("of_seed", [0.0, 0.03, 0.1])
@pytest.mark.parametrize("seeds", [2, 5])
def test_the_interval_holds_the_truth_as_often_as_it_says(seeds, of_seed):
    generator = np.random.default_rng(seeds)
    missed = 0
    for _ in range(400):
        low, high = crossed(drawn(generator, seeds, 100, 0.1, of_seed))["ci95"]
        missed += not low < 0.1 < high
    assert missed / 400 <= 0.075  # three standard errors above 5 %


def test_with_no_luck_of_questions_it_is_the_t_test_of_the_seeds():
    generator = np.random.default_rng(0)
    gains = generator.normal(0.1, 0.1, (6, 1)) + np.zeros((6, 50))
    found, truth = crossed(gains), stats.ttest_1samp(gains[:, 0], 0.0)
    assert found["p"] == pytest.approx(truth.pvalue, rel=1e-6)
    assert found["ci95"] == pytest.approx([*truth.confidence_interval(0.95)], rel=1e-6)


def test_a_planted_difference_is_found_and_what_it_would_take_is_about_right():
    generator = np.random.default_rng(1)
    assert crossed(drawn(generator, 5, 500, mean=0.15))["p"] < 0.01
    needed = [crossed(drawn(generator, 8, 400, mean=0.05, of_seed=0.05))["seeds_needed"] for _ in range(200)]
    assert 5 <= np.median([count for count in needed if count]) <= 14  # ((1.96 + 0.84) · 0.05 / 0.05)² = 8
    wide = crossed(drawn(generator, 2, 100, mean=0.0, of_seed=0.1))
    assert wide["questions_needed"] is None or wide["questions_needed"] > 100


def test_equal_differences_leave_nothing_to_doubt():
    assert crossed(np.zeros((3, 4)))["p"] == 1.0
    assert crossed(np.full((3, 4), 0.5))["ci95"] == [0.5, 0.5]
