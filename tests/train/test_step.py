"""One step with a stand-in for the engine: what is counted, and what stops before the update."""

import dataclasses

import pytest
import torch
from torch import nn

from dft_mm.batch import Batch
from dft_mm.errors import InputError
from dft_mm.loss.family import Objective
from dft_mm.train.step import NonFiniteError, heldout_pass, train_step
from dft_mm.train.telemetry import P_BINS

END = 1
DFT = Objective("dft")


class Model(nn.Module):
    """p of a token is its own parameter: `labels` choose among four."""

    def __init__(self, values=(0.05, 0.55, 0.25, 1.0)):
        super().__init__()
        self.p = nn.Parameter(torch.tensor(values))

    def forward(self, rows, targets, objective, kinds=None, sequences=None, **inputs):
        nll = -self.p[targets].log()
        weight = torch.ones_like(nll) if objective.name == "sft" else (-nll).exp().detach()
        return (weight * nll).sum(), nll.detach(), weight, nll.new_zeros(0), torch.tensor(0)


class Engine:
    device = torch.device("cpu")

    def __init__(self, module):
        self.module, self.updates, self.boundaries = module, 0, []

    def __call__(self, *args, **kwargs):
        return self.module(*args, **kwargs)

    def set_gradient_accumulation_boundary(self, is_boundary):
        self.boundaries.append(is_boundary)

    def backward(self, loss, scale_wrt_gas):
        assert scale_wrt_gas is False
        loss.backward()

    def step(self):
        self.updates += self.boundaries[-1]

    def was_step_applied(self):
        return self.boundaries[-1]

    def zero_optimization_stage(self):
        return 0

    def train(self):
        self.module.train()

    def eval(self):
        self.module.eval()


def batch(name, *targets):
    ids = torch.tensor([[3, *targets]])
    rows, zeros = torch.arange(len(targets)), torch.zeros(len(targets), dtype=torch.long)
    return Batch(ids, rows, ids[0, 1:], zeros, (name,), tokens=ids.numel())


def test_sums_and_gradient_are_over_the_global_tokens():
    engine = Engine(Model())
    sums, norm = train_step(engine, iter([batch("a", 0, 1), batch("b", 2, 3, 1)]), 2, 5, DFT, END)
    p = torch.tensor([0.05, 0.55, 0.25, 1.0, 0.55])
    metrics = sums.metrics()
    assert metrics["loss"] == pytest.approx(float(-(p * p.log()).mean()))
    assert metrics["ce"] == pytest.approx(float(-p.log().mean()))
    assert [metrics["p_mean"], metrics["weight_mean"]] == pytest.approx([float(p.mean())] * 2)
    assert metrics["eos_p"] == pytest.approx(0.55)
    assert (metrics["supervised_tokens"], metrics["tokens"]) == (5, 7)
    expected = [0] * P_BINS
    for place in (0, 5, 2, 9, 5):  # p = 1 belongs to the last bin
        expected[place] += 1
    assert metrics["p_hist"] == expected
    # d(-sg(p) log p)/dp = -1 for each use
    torch.testing.assert_close(engine.module.p.grad, torch.tensor([-1.0, -2.0, -1.0, -1.0]) / 5)
    assert norm == pytest.approx(float(engine.module.p.grad.norm()))
    assert engine.boundaries == [False, True]
    assert engine.updates == 1


def test_a_metric_that_was_not_measured_is_absent():
    sums, _ = train_step(Engine(Model()), [batch("a", 0, 2)], 1, 2, DFT, END)
    assert "eos_p" not in sums.metrics()


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_its_examples():
    engine = Engine(Model((0.5, 0.5, 0.0, 0.5)))
    with pytest.raises(NonFiniteError, match=r"examples: bad$"):
        train_step(engine, [batch("good", 0), batch("bad", 2), batch("fine", 1)], 3, 3, Objective("sft"), END)
    assert engine.updates == 0


def test_a_gradient_that_is_not_finite_stops_before_the_update():
    engine = Engine(Model())
    engine.module.p.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(NonFiniteError, match="gradient is not finite; the step's examples: a, b"):
        train_step(engine, [batch("a", 0), batch("b", 1)], 2, 2, DFT, END)
    assert engine.updates == 0


def test_a_plan_that_counted_otherwise_is_a_bug_that_is_told():
    with pytest.raises(RuntimeError, match="plan counted 7 supervised tokens, the step 2"):
        train_step(Engine(Model()), [batch("a", 0, 1)], 1, 7, DFT, END)


def test_lost_tokens_are_left_out_of_the_update_as_if_they_were_never_planned():
    lost = dataclasses.replace(batch("b"), lost=("b: gone",), lost_tokens=3)
    engine, reference = Engine(Model()), Engine(Model())
    sums, norm = train_step(engine, [batch("a", 0, 1), lost], 2, 5, DFT, END)
    _, expected = train_step(reference, [batch("a", 0, 1)], 1, 2, DFT, END)
    torch.testing.assert_close(engine.module.p.grad, reference.module.p.grad)
    assert norm == pytest.approx(expected)
    assert (sums.metrics()["lost_images"], sums.metrics()["supervised_tokens"]) == (1, 2)


def test_a_step_that_lost_all_its_pictures_says_so():
    lost = dataclasses.replace(batch("b"), lost=("b: gone",), lost_tokens=3)
    with pytest.raises(InputError, match="the pictures of all its examples are lost"):
        train_step(Engine(Model()), [lost], 1, 3, DFT, END)


def test_a_wish_to_stop_travels_with_the_sums():
    assert not train_step(Engine(Model()), [batch("a", 0)], 1, 1, DFT, END)[0].stop
    assert train_step(Engine(Model()), [batch("a", 0)], 1, 1, DFT, END, stop_wanted=True)[0].stop


def test_the_heldout_pass_measures_plain_cross_entropy_and_goes_back_to_training():
    engine = Engine(Model())
    measured = heldout_pass(engine, [batch("a", 0, 1), batch("b", 3)], END)
    p = torch.tensor([0.05, 0.55, 1.0])
    assert measured["heldout_ce"] == pytest.approx(float(-p.log().mean()))
    assert sum(measured["heldout_p_hist"]) == 3
    assert engine.module.training
    assert engine.module.p.grad is None
