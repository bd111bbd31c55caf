"""The head is compared with the formula on the first rows, and what differs is told before anything is learned."""

import pytest
import torch
from loss.test_family import LOSSES, case

from dft_mm.loss import head
from dft_mm.loss.check import HeadDiffersError, check_head
from dft_mm.loss.family import Objective
from dft_mm.loss.head import HeadOptions


def checked(objective, dtype=torch.float32, **more):
    hidden, weight, bias, targets, reference, sequences = case()
    rows = (targets != -100).nonzero()[:, 0]
    narrow = [x.detach().to(dtype) for x in (hidden, weight, bias)]
    reference = type(reference)(*(x.detach().to(dtype) for x in reference[:2]))
    answers = torch.unique(sequences[rows], return_inverse=True)[1]
    return check_head(*narrow, rows, targets[rows], objective, None, answers, reference, **more)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("name", LOSSES)
def test_a_right_head_agrees(name, dtype, limit):
    options = HeadOptions(logit_scale=0.5, softcap=20.0)
    assert 0 < checked(Objective(name), dtype, options=options) < limit


def test_losses_of_several_sources_agree():
    hidden, weight, _, targets, _, _ = case()
    rows = (targets != -100).nonzero()[:, 0]
    kinds = (torch.arange(len(rows)) % 3).byte()
    objective = Objective(["dft", "sft", "chord"])
    assert check_head(hidden, weight, None, rows, targets[rows], objective, kinds) < 1e-12


@pytest.mark.parametrize("part", ["fold", "gradient"])
def test_a_broken_kernel_is_told(monkeypatch, part):
    right = getattr(head.tiles, part)

    def broken(z, sums, *others, **more):
        out = right(z, sums, *others, **more)
        (sums.total if part == "fold" else out).mul_(1.01)
        return out

    monkeypatch.setattr(head.tiles, part, broken)
    with pytest.raises(HeadDiffersError, match=r"does not compute dft as its formula does: on 8 rows .* nothing was"):
        checked(Objective("dft"))


def test_certain_rows_are_no_false_alarm():
    """Where p is nearly 1 the gradient is rounding, in both; relative to itself it may be anything."""
    weight = torch.eye(40, 16)
    hidden = 17.0 * torch.eye(16)
    rows = torch.arange(16)
    check_head(hidden, weight, None, rows, rows, Objective("dft"))


def test_a_loss_that_is_not_finite_is_left_to_the_step():
    hidden, weight, _, targets, _, _ = case()
    rows = (targets != -100).nonzero()[:, 0]
    broken = hidden.detach().clone()
    broken[rows[0]] = float("nan")
    error = check_head(broken, weight, None, rows, targets[rows], Objective("dft"))
    assert error != error
