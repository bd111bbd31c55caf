"""The readable definition: names, shapes, the paper's gradient."""

import pytest
import torch
import torch.nn.functional as F

from dft_mm.config import LossConfig
from dft_mm.loss.family import FORMS
from dft_mm.loss.tokens import token_loss


def random_case(*shape, vocabulary=11, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(*shape, vocabulary, generator=generator, dtype=dtype)
    return logits.requires_grad_(), torch.randint(vocabulary, shape, generator=generator)


def test_dft_gradient_is_minus_gradient_of_summed_probability():
    logits, targets = random_case(4, 7)
    (ours,) = torch.autograd.grad(token_loss(logits, targets, "dft").loss.sum(), logits)
    p = torch.softmax(logits, -1).gather(-1, targets[..., None])
    (truth,) = torch.autograd.grad(-p.sum(), logits)
    assert float((ours - truth).abs().max()) <= 1e-10


def test_sft_is_cross_entropy():
    logits, targets = random_case(4, 7)
    targets[1, 2:5] = -100
    ours = token_loss(logits, targets, "sft")
    theirs = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(4, 7)
    torch.testing.assert_close(ours.loss, theirs)
    torch.testing.assert_close(ours.nll, theirs)
    gradients = [torch.autograd.grad(value.sum(), logits)[0] for value in (ours.loss, theirs)]
    torch.testing.assert_close(*gradients)


def test_two_equal_logits_halve_the_cross_entropy():
    out = token_loss(torch.zeros(1, 2), torch.tensor([1]), "dft")
    assert float(out.nll) == pytest.approx(0.6931472)
    assert float(out.loss) == pytest.approx(0.5 * 0.6931472)
    assert float(out.weight) == pytest.approx(0.5)


def test_results_are_float32_in_the_targets_shape_and_the_weight_is_detached():
    logits, targets = random_case(2, 3, 5, dtype=torch.bfloat16)
    for name in FORMS:
        out = token_loss(logits, targets, name, ref_logits=logits)
        assert [value.shape for value in out] == [(2, 3, 5)] * 3
        assert [value.dtype for value in out] == [torch.float32] * 3
        assert out.loss.requires_grad
        assert not out.weight.requires_grad


def test_ignored_rows_are_zero_and_their_nan_reaches_no_gradient():
    logits, targets = random_case(5)
    targets[1] = targets[4] = -100
    with torch.no_grad():
        logits[1] = float("nan")
    out = token_loss(logits, targets, "dft")
    for value in out:
        assert value[[1, 4]].eq(0).all()
        assert value[[0, 2, 3]].gt(0).all()
    (gradient,) = torch.autograd.grad(out.loss.sum(), logits)
    assert gradient[[1, 4]].eq(0).all()
    assert gradient.isfinite().all()


def test_nothing_supervised_gives_zero_that_still_has_a_gradient():
    logits, _ = random_case(3)
    out = token_loss(logits, torch.full((3,), -100), "dft")
    (gradient,) = torch.autograd.grad(out.loss.sum(), logits)
    assert float(out.loss.detach().sum()) == 0
    assert gradient.eq(0).all()


def test_order_of_tokens_does_not_matter():
    logits, targets = random_case(20)
    order = torch.randperm(20)
    torch.testing.assert_close(
        token_loss(logits[order], targets[order], "dft").loss, token_loss(logits, targets, "dft").loss[order]
    )


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4, 0.0]] * 3, requires_grad=True)
    out = token_loss(logits, torch.tensor([0, 1, 2]), "dft")
    (gradient,) = torch.autograd.grad(out.loss.sum(), logits)
    assert out.loss.isfinite().all()
    assert gradient.isfinite().all()
    assert out.nll.tolist() == [0.0, 2e4, 1e4]


def test_a_recipe_section_is_a_name():
    logits, targets = random_case(6)
    torch.testing.assert_close(token_loss(logits, targets, LossConfig(name="sft")), token_loss(logits, targets, "sft"))


@pytest.mark.parametrize(
    ("shape", "targets", "loss", "words"),
    [
        ((2, 5), [0, 1], "dtf", ["'dtf'", "sft, dft", "did you mean 'dft'"]),
        ((2, 5), [0, 5], "dft", ["target 5", "[0, 5)"]),
        ((2, 5), [0, -1], "dft", ["target -1", "[0, 5)", "-100"]),
        ((2, 5), [0, 1, 2], "dft", ["(2, 5)", "(3,)"]),
        ((2, 5), [0.0, 1.0], "dft", ["integers", "float32"]),
    ],
)
def test_wrong_input_is_named_with_its_limit(shape, targets, loss, words):
    with pytest.raises(ValueError) as caught:
        token_loss(torch.zeros(shape), torch.tensor(targets), loss)
    for word in words:
        assert word in str(caught.value)
