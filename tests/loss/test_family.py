"""Every loss against its paper's formula in float64, in the readable definition and in the head; when it sets in."""

from typing import get_args

import pytest
import torch
from loss.oracle import paper_loss

from dft_mm.config import LossConfig, LossName
from dft_mm.loss.family import FORMS, Objective
from dft_mm.loss.head import HeadOptions, Reference, linear_token_loss, supervised_loss
from dft_mm.loss.tokens import token_loss

LOSSES = get_args(LossName)
ROWS, VOCABULARY, DIM = 60, 50, 8


def case(dtype=torch.float64):
    """hidden, weight, bias, targets, reference's hidden and weight, sequences; likely targets among unlikely ones."""
    generator = torch.Generator().manual_seed(3)
    hidden, ref_hidden = (torch.randn(ROWS, DIM, generator=generator, dtype=dtype) for _ in range(2))
    weight = torch.randn(VOCABULARY, DIM, generator=generator, dtype=dtype)
    bias = torch.randn(VOCABULARY, generator=generator, dtype=dtype)
    targets = torch.randint(VOCABULARY, (ROWS,), generator=generator)
    targets[::2] = (hidden @ weight.T + bias).argmax(1)[::2]
    targets[::7] = -100
    sequences = torch.arange(ROWS) // 4 + 100
    reference = Reference(hidden + 0.3 * ref_hidden, weight * 0.9)
    return hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), targets, reference, sequences


def truth(name, hidden, weight, bias, targets, reference, sequences):
    inputs = [x.detach().double().requires_grad_() for x in (hidden, weight, bias)]
    logits = inputs[0] @ inputs[1].T + inputs[2]
    ref_logits = reference.hidden.double() @ reference.weight.detach().double().T
    keep = targets != -100
    loss = paper_loss(name, logits[keep], targets[keep], ref_logits[keep], sequences[keep])
    return loss.detach(), torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("name", LOSSES)
def test_both_forms_are_the_papers_formula(name):
    hidden, weight, bias, targets, reference, sequences = case()
    expected, gradients = truth(name, *case())
    ref_logits = reference.hidden @ reference.weight.detach().T
    naive = token_loss(hidden @ weight.T + bias, targets, name, ref_logits, sequences)
    head = linear_token_loss(hidden, weight, targets, name, bias, reference=reference, sequences=sequences)
    given = linear_token_loss(hidden, weight, targets, name, bias, ref_logits=ref_logits, sequences=sequences)
    for loss in (naive.loss.sum(), head.loss, given.loss):
        torch.testing.assert_close(loss.detach(), expected, rtol=1e-10, atol=1e-10)
        for mine, right in zip(torch.autograd.grad(loss, [hidden, weight, bias]), gradients):
            torch.testing.assert_close(mine, right, rtol=1e-9, atol=1e-10)
    keep = targets != -100
    torch.testing.assert_close(head.token_weight, naive.weight[keep])
    assert naive.weight[~keep].eq(0).all()


def test_several_losses_of_a_batch_are_each_their_own():
    hidden, weight, bias, targets, reference, _ = case()
    names = ["asft", "sft", "eaft", "sed", "dft_sequence"]
    keep = targets != -100
    rows = keep.nonzero()[:, 0]
    kinds = torch.arange(len(rows)) // 4 % len(names)
    of_answers = torch.unique(torch.arange(len(rows)) // 4, return_inverse=True)[1]
    together = supervised_loss(
        hidden, weight, bias, rows, targets[rows], Objective(names), kinds.byte(), of_answers, None, reference
    )
    ref_logits = reference.hidden @ reference.weight.detach().T
    logits = hidden @ weight.T + bias
    alone = sum(
        paper_loss(name, *(x[rows][kinds == n] for x in (logits, targets, ref_logits)), of_answers[kinds == n])
        for n, name in enumerate(names)
    )
    torch.testing.assert_close(together.loss, alone)
    for mine, right in zip(
        torch.autograd.grad(together.loss, [hidden, weight]), torch.autograd.grad(alone, [hidden, weight])
    ):
        torch.testing.assert_close(mine, right, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("special", "general"),
    [
        ("sft", LossConfig(name="power", alpha=0)), ("dft", LossConfig(name="power", alpha=1)),
        ("sft", LossConfig(name="mix", alpha=0)), ("dft", LossConfig(name="mix", alpha=1)),
        ("sft", LossConfig(name="profit", tau=0)), ("sft", LossConfig(name="focal", gamma=0)),
        ("sft", LossConfig(name="eaft", alpha=0)), ("dft", LossConfig(name="asft", kl=0)),
        ("sft", LossConfig(name="sed", diversity=0)),
    ],
)  # fmt: skip
def test_the_family_meets_at_its_ends(special, general):
    hidden, weight, _, targets, reference, _ = case()
    one = linear_token_loss(hidden, weight, targets, special)
    other = linear_token_loss(hidden, weight, targets, general, reference=reference)
    torch.testing.assert_close(other.loss, one.loss)
    torch.testing.assert_close(
        torch.autograd.grad(other.loss, [hidden, weight]), torch.autograd.grad(one.loss, [hidden, weight])
    )


def test_a_model_that_is_its_own_reference_is_not_held_back():
    hidden, weight, bias, targets, _, _ = case()
    out = linear_token_loss(
        hidden, weight, targets, "asft", bias, reference=Reference(hidden.detach(), weight.detach(), bias.detach())
    )
    dft = linear_token_loss(hidden, weight, targets, "dft", bias)
    torch.testing.assert_close(out.loss, dft.loss)
    torch.testing.assert_close(torch.autograd.grad(out.loss, hidden), torch.autograd.grad(dft.loss, hidden))


def test_a_long_answers_probability_is_zero_and_not_an_error():
    logits = torch.zeros(1, 400, 50, requires_grad=True)
    out = token_loss(logits, torch.zeros(1, 400, dtype=torch.long), "dft_sequence")
    assert out.loss.eq(0).all()  # 50^-400
    assert torch.autograd.grad(out.loss.sum(), logits)[0].eq(0).all()
    short = token_loss(torch.zeros(2, 3, 2), torch.zeros(2, 3, dtype=torch.long), "dft_sequence")
    torch.testing.assert_close(short.weight, torch.full((2, 3), 0.125))  # a row of the targets is one answer


@pytest.mark.parametrize("name", ["dft", "asft", "sed", "profit"])
def test_a_loss_sets_in_over_its_steps(name):
    """At share s the loss is (1 - s) sft + s loss, in the naive form and in the head."""
    hidden, weight, _, targets, reference, _ = case()
    config = LossConfig(name=name, warmup_steps=2, ramp_steps=4)
    ref_logits = reference.hidden @ reference.weight.detach().T
    values = {}
    for loss in ("sft", name):
        out = linear_token_loss(hidden, weight, targets, loss, reference=reference)
        values[loss] = out.loss, *torch.autograd.grad(out.loss, [hidden, weight], retain_graph=True)
    for step, share in [(1, 0.0), (2, 0.0), (3, 0.25), (4, 0.5), (6, 1.0), (9, 1.0)]:
        head = linear_token_loss(hidden, weight, targets, config, reference=reference, step=step)
        naive = token_loss(hidden @ weight.T, targets, config, ref_logits, step=step).loss.sum()
        for loss in (head.loss, naive):
            mine = loss, *torch.autograd.grad(loss, [hidden, weight])
            for value, sft, own in zip(mine, values["sft"], values[name]):
                torch.testing.assert_close(value, (1 - share) * sft + share * own)
    with pytest.raises(ValueError, match=r"sets in over steps.*step= is missing"):
        linear_token_loss(hidden, weight, targets, config, reference=reference)


@pytest.mark.parametrize("name", ["asft", "iw_sft"])
def test_a_missing_reference_is_named(name):
    hidden, weight, _, targets, _, _ = case()
    with pytest.raises(ValueError, match=rf"{name} compares with a reference model: ref_logits= is missing"):
        token_loss(hidden @ weight.T, targets, name)
    with pytest.raises(ValueError, match=rf"{name} compares with a reference model: ref_logits= is missing"):
        linear_token_loss(hidden, weight, targets, name)


def test_a_reference_of_another_shape_is_named():
    hidden, weight, _, targets, _, _ = case()
    with pytest.raises(ValueError, match=r"ref_logits \(60, 49\)"):
        token_loss(hidden @ weight.T, targets, "asft", torch.zeros(ROWS, 49, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"\(N, V\) = \(60, 50\), not \(60, 49\)"):
        linear_token_loss(hidden, weight, targets, "asft", ref_logits=torch.zeros(ROWS, 49))
    with pytest.raises(ValueError, match="reference has 59 rows over 50 tokens"):
        linear_token_loss(hidden, weight, targets, "asft", reference=Reference(hidden[1:], weight))


@pytest.mark.parametrize(
    ("options", "logits"),
    [
        (HeadOptions(logit_scale=0.25), lambda z: z * 0.25),
        (HeadOptions(softcap=3.0), lambda z: 3 * torch.tanh(z / 3)),
        (HeadOptions(logit_scale=2.0, softcap=3.0), lambda z: 3 * torch.tanh(2 * z / 3)),
    ],
)
@pytest.mark.parametrize("name", ["dft", "asft"])
def test_scaled_and_capped_logits(name, options, logits):
    hidden, weight, bias, targets, reference, _ = case()
    out = linear_token_loss(hidden, weight, targets, name, bias, reference=reference, options=options)
    ref_logits = logits(reference.hidden @ reference.weight.detach().T)
    right = token_loss(logits(hidden @ weight.T + bias), targets, name, ref_logits).loss.sum()
    torch.testing.assert_close(out.loss, right)
    inputs = [hidden, weight, bias]
    for mine, theirs in zip(torch.autograd.grad(out.loss, inputs), torch.autograd.grad(right, inputs)):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)


def test_entropy_is_that_of_the_whole_prediction():
    hidden, weight, bias, targets, _, _ = case()
    out = linear_token_loss(hidden, weight, targets, "dft", bias, options=HeadOptions(entropy=True))
    right = torch.distributions.Categorical(logits=hidden @ weight.T + bias).entropy()[targets != -100]
    torch.testing.assert_close(out.token_entropy, right.detach())


def test_every_name_has_one_entry():
    assert set(FORMS) == set(LOSSES)
