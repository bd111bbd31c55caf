"""What a comparison says in a sentence."""

from dft_mm.report.comparison import headline


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
