"""The learning rate by step, against the formulas written out."""

import itertools
import math

import pytest

from dft_mm.train.schedule import lr_factor


def rates(steps, warmup_ratio, schedule):
    return [lr_factor(step, steps, warmup_ratio, schedule) for step in range(1, steps + 1)]


def test_warmup_rises_linearly_to_the_peak_and_no_step_has_rate_zero():
    assert rates(100, 0.1, "cosine")[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    for schedule in ("cosine", "linear", "constant"):
        assert min(rates(7, 0.3, schedule)) > 0


def test_cosine_equals_transformers_cosine_one_step_earlier():
    torch = pytest.importorskip("torch")
    from transformers import get_cosine_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_cosine_schedule_with_warmup(optimizer, 10, 100)
    expected = []
    for _ in range(100):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    # theirs begins at zero; ours spends no step there and is at k/10 in step k
    assert rates(100, 0.1, "cosine")[10:] == pytest.approx(expected[10:], abs=1e-12)
    assert rates(100, 0.1, "cosine")[:10] == pytest.approx(expected[1:11], abs=1e-12)


def test_linear_falls_by_equal_amounts_and_constant_stays():
    falling = rates(12, 0.0, "linear")
    assert falling[0] == 1.0
    assert [a - b for a, b in itertools.pairwise(falling)] == pytest.approx([1 / 12] * 11)
    assert rates(12, 0.25, "constant") == pytest.approx([1 / 3, 2 / 3] + [1.0] * 10)


def test_warmup_is_rounded_up_as_in_transformers():
    assert rates(15, 0.1, "constant")[0] == 1 / math.ceil(1.5)
