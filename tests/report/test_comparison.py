"""What a comparison says in a sentence."""

import pytest

from dft_mm.report.comparison import headline, verdict


def rows(**verdicts):
    return [{"benchmark": name, "metric": "avg@1", "verdict": verdict} for name, verdict in verdicts.items()]


def test_a_headline_names_the_pair_whatever_came_out():
    assert headline("dft", "sft", rows(x="no_difference")) == "dft and sft: no difference is shown on x"
    assert headline("dft", "sft", rows(x="b_better")) == "sft is better than dft on x"
    said = headline("dft", "sft", rows(x="a_better", y="no_difference"))
    assert said == "dft is better than sft on x; no difference is shown on y"
    assert headline("dft", "sft", []) == "dft and sft have no benchmark in common"


def test_many_scores_with_one_outcome_are_counted_and_not_listed():
    same = rows(**dict.fromkeys("abcdef", "no_difference"))
    assert headline("dft", "sft", same) == "dft and sft: no difference is shown on each of 6 scores"
    assert headline("dft", "sft", same[:5] + rows(g="a_better")).endswith("no difference is shown on a, b, c, d, e")


@pytest.mark.parametrize(("count", "room"), [(1, "95"), (5, "45"), (59, "5"), (500, "0.6")])
def test_questions_that_all_came_out_alike_prove_the_less_the_fewer_they_are(count, room):
    """An interval of no width is none: 0.95 ** 59 is the first below 0.05."""
    same = {"verdict": "no_difference", "questions_needed": None, "n": count, "ci95": [0.0, 0.0]}
    assert f"came out alike, which at 95 % leaves room for {room} % of others" in verdict(same, "dft", "sft")


def test_a_difference_that_is_not_shown_says_how_many_questions_would_show_one_of_its_size():
    row = {"verdict": "no_difference", "questions_needed": 1234, "n": 100, "ci95": [-0.01, 0.03]}
    assert verdict(row, "dft", "sft") == "no difference is shown; one of this size would need about 1,234 questions"
