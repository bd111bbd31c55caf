"""The head that never holds the logits: the same numbers as the readable definition, in a tenth of the memory."""

import pytest
import torch
from loss.oracle import dft_gradients, peak_bytes, plain_dft_sum, relative_error
from torch.utils.checkpoint import checkpoint

from dft_mm.loss import head as module
from dft_mm.loss.head import linear_token_loss
from dft_mm.loss.tokens import token_loss


def random_case(rows, vocabulary, dim, ignored=0.4, dtype=torch.float32, learn=True):
    generator = torch.Generator().manual_seed(rows + vocabulary)
    hidden = torch.randn(rows, dim, generator=generator)
    weight = torch.randn(vocabulary, dim, generator=generator) * 2 / dim**0.5
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    # Half of the targets are likely ones, as in fine-tuning: else p is nearly 0 everywhere.
    targets[::2] = (hidden @ weight.T).argmax(1)[::2]
    targets[torch.rand(rows, generator=generator) < ignored] = -100
    return hidden.to(dtype).requires_grad_(learn), weight.to(dtype).requires_grad_(learn), targets


@pytest.fixture(params=["as_is", "row_tiles", "column_tiles"])
def tiling(request, monkeypatch):
    """Small tiles of both kinds on small problems; `as_is` leaves the choice to the code."""
    if request.param != "as_is":
        monkeypatch.setattr(module, "TILE_MIN", 64)
        monkeypatch.setattr(module, "THIN", 1 if request.param == "row_tiles" else 10**9)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("loss", ["sft", "dft"])
@pytest.mark.parametrize(
    ("rows", "vocabulary", "dim", "ignored"),
    [(0, 7, 3, 0), (1, 7, 3, 0), (5, 7, 3, 1), (16, 64, 8, 0), (17, 61, 5, 0.4), (33, 1, 4, 0.2), (300, 257, 16, 0.8)],
)
def test_equals_the_readable_definition(tiling, rows, vocabulary, dim, ignored, loss, biased):
    hidden, weight, targets = random_case(rows, vocabulary, dim, ignored)
    bias = torch.randn(vocabulary, requires_grad=True) if biased else None
    inputs = [hidden, weight, bias] if biased else [hidden, weight]
    ours = linear_token_loss(hidden, weight, targets, loss, bias)
    logits = hidden @ weight.T if bias is None else hidden @ weight.T + bias
    theirs = token_loss(logits, targets, loss)

    keep = targets != -100
    assert float(ours.tokens) == int(keep.sum())
    assert ours.token_targets.equal(targets[keep])
    close = {"rtol": 2e-6, "atol": 2e-6}
    torch.testing.assert_close(ours.loss, theirs.loss.sum(), rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(ours.nll, theirs.nll.detach().sum(), rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(ours.token_nll, theirs.nll.detach()[keep], **close)
    torch.testing.assert_close(ours.token_weight, theirs.weight[keep], **close)
    for mine, truth in zip(
        torch.autograd.grad(ours.loss * 0.37, inputs), torch.autograd.grad(theirs.loss.sum() * 0.37, inputs)
    ):
        # Where p is nearly 1 both are p - 1 in float32, so the error has a floor that the gradient has not.
        assert float((mine - truth).norm()) <= 2e-6 * max(float(truth.norm()), 0.1)


def test_dft_gradients_are_minus_gradients_of_summed_probability(tiling):
    hidden, weight, targets = random_case(40, 50, 6, dtype=torch.float64)
    bias = torch.randn(50, dtype=torch.float64, requires_grad=True)
    out = linear_token_loss(hidden, weight, targets, "dft", bias)
    assert out.loss.dtype == torch.float64
    ours = torch.autograd.grad(out.loss, [hidden, weight, bias])
    for mine, truth in zip(ours, dft_gradients(hidden, weight, targets, bias)):
        assert float((mine - truth).abs().max()) <= 1e-10


def test_bfloat16_is_nearer_to_the_truth_than_the_plain_formula(tiling):
    hidden, weight, targets = random_case(200, 500, 64, dtype=torch.bfloat16)
    out = linear_token_loss(hidden, weight, targets, "dft")
    ours = torch.autograd.grad(out.loss * 0.013, [hidden, weight])
    plain = torch.autograd.grad(plain_dft_sum(hidden, weight, targets) * 0.013, [hidden, weight])
    assert out.loss.dtype == out.token_nll.dtype == torch.float32
    for mine, theirs, truth in zip(ours, plain, dft_gradients(hidden, weight, targets)):
        assert mine.dtype == torch.bfloat16
        assert relative_error(mine, 0.013 * truth) <= relative_error(theirs, 0.013 * truth)
        assert relative_error(mine, 0.013 * truth) < 4e-3


def test_mixed_precision_products_give_the_same_numbers(tiling, monkeypatch):
    """The path of a GPU, whose product of bfloat16 matrices is float32, on a stand-in for that product."""
    real_mm, real_addmm = torch.mm, torch.addmm

    def mm(a, b, *, out_dtype=None, out):
        if out_dtype is None:
            return real_mm(a, b, out=out)
        assert a.dtype == b.dtype == torch.bfloat16
        return real_mm(a.to(out_dtype), b.to(out_dtype), out=out)

    def addmm(c, a, b, *, out_dtype, out):
        assert a.dtype == b.dtype == torch.bfloat16
        return real_addmm(c, a.to(out_dtype), b.to(out_dtype), out=out)

    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(torch, "addmm", addmm)
    monkeypatch.setattr(module, "_multiplies_mixed", lambda hidden, weight: True)
    hidden, weight, targets = random_case(200, 500, 64, dtype=torch.bfloat16)
    ours = torch.autograd.grad(linear_token_loss(hidden, weight, targets, "dft").loss, [hidden, weight])
    for mine, truth in zip(ours, dft_gradients(hidden, weight, targets)):
        assert relative_error(mine, truth) < 6e-3


def test_hidden_may_be_narrower_than_the_weight(tiling):
    hidden, weight, targets = random_case(40, 50, 6)
    narrow = hidden.detach().bfloat16().requires_grad_()
    ours = torch.autograd.grad(linear_token_loss(narrow, weight, targets, "dft").loss, [narrow, weight])
    assert [g.dtype for g in ours] == [torch.bfloat16, torch.float32]
    for mine, truth, limit in zip(ours, dft_gradients(narrow, weight, targets), (4e-3, 2e-6)):
        assert relative_error(mine, truth) < limit


def test_extreme_logits_stay_finite(tiling):
    hidden = torch.tensor([[1e4], [-1e4], [1e4], [3e3]], requires_grad=True)
    weight = torch.linspace(-1, 1, 65)[:, None].requires_grad_()
    out = linear_token_loss(hidden, weight, torch.tensor([64, 64, 0, -100]), "dft")
    gradients = torch.autograd.grad(out.loss, [hidden, weight])
    assert out.token_nll.tolist() == pytest.approx([0, 2e4, 2e4])
    assert all(g.isfinite().all() for g in gradients)


def test_nothing_supervised_gives_an_attached_zero_and_zero_gradients():
    hidden, weight, _ = random_case(6, 9, 4)
    out = linear_token_loss(hidden, weight, torch.full((6,), -100), "dft")
    out.loss.backward()
    assert float(out.loss.detach()) == 0
    assert hidden.grad.shape == hidden.shape
    assert hidden.grad.eq(0).all()
    assert weight.grad.shape == weight.shape
    assert weight.grad.eq(0).all()


def test_ignored_rows_get_zero_gradient_even_if_they_hold_nan():
    hidden, weight, targets = random_case(30, 20, 4)
    with torch.no_grad():
        hidden[targets == -100] = float("nan")
    linear_token_loss(hidden, weight, targets, "dft").loss.backward()
    assert hidden.grad[targets == -100].eq(0).all()
    assert hidden.grad[targets != -100].ne(0).all()
    assert weight.grad.isfinite().all()


def test_frozen_weight_gets_no_gradient_and_costs_no_buffer():
    hidden, weight, targets = random_case(64, 4096, 256)
    frozen = weight.detach()

    def run():
        linear_token_loss(hidden, frozen, targets, "dft").loss.backward()

    assert peak_bytes(run) < frozen.nbytes / 2
    with_learning = torch.autograd.grad(linear_token_loss(hidden, weight, targets, "dft").loss, hidden)[0]
    torch.testing.assert_close(hidden.grad, with_learning, rtol=1e-5, atol=1e-7)


def test_frozen_hidden_leaves_the_weight_its_gradient(tiling):
    hidden, weight, targets = random_case(20, 30, 4)
    (ours,) = torch.autograd.grad(linear_token_loss(hidden.detach(), weight, targets, "dft").loss, [weight])
    assert relative_error(ours, dft_gradients(hidden, weight, targets)[1]) < 2e-6


def test_without_grad_no_gradient_is_made():
    hidden, weight, targets = random_case(64, 4096, 256)

    @torch.no_grad()
    def run():
        return linear_token_loss(hidden, weight, targets, "dft")

    assert peak_bytes(run) < weight.nbytes / 2
    assert not run().loss.requires_grad
    torch.testing.assert_close(run().loss, linear_token_loss(hidden, weight, targets, "dft").loss.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_incoming_scale_is_honoured_exactly(dtype):
    hidden, weight, targets = random_case(30, 40, 8, dtype=dtype)
    scale = 1.0039  # bfloat16 would round it to 1.0
    one = torch.autograd.grad(linear_token_loss(hidden, weight, targets, "dft").loss, [hidden, weight])
    scaled = torch.autograd.grad(linear_token_loss(hidden, weight, targets, "dft").loss * scale, [hidden, weight])
    for plain, times in zip(one, scaled):
        assert times.equal((plain.float() * scale).to(dtype))


@pytest.mark.parametrize("reentrant", [True, False])
def test_under_gradient_checkpointing(reentrant):
    hidden, weight, targets = random_case(30, 40, 8)
    truth = torch.autograd.grad(linear_token_loss(hidden * 2, weight, targets, "dft").loss, [hidden, weight])
    loss = checkpoint(lambda h: linear_token_loss(h * 2, weight, targets, "dft").loss, hidden, use_reentrant=reentrant)
    (loss * 1.0).backward()
    torch.testing.assert_close((hidden.grad, weight.grad), truth)


def test_weight_tied_to_the_embedding_sums_both_gradients():
    ids = torch.tensor([1, 4, 2, 4, 0])
    targets = torch.tensor([4, 2, -100, 0, 3])
    weight = torch.randn(6, 3, requires_grad=True)
    linear_token_loss(weight[ids] * 2, weight, targets, "dft").loss.backward()
    double = weight.detach().double().requires_grad_()
    keep = targets != -100
    p = torch.softmax((double[ids] * 2) @ double.T, 1)[keep].gather(1, targets[keep][:, None])
    (truth,) = torch.autograd.grad(-p.sum(), double)
    assert relative_error(weight.grad, truth) < 2e-6


def test_a_retained_graph_may_be_walked_again():
    hidden, weight, targets = random_case(30, 40, 8)
    loss = linear_token_loss(hidden, weight, targets, "dft").loss
    first = torch.autograd.grad(loss * 2, [hidden, weight], retain_graph=True)
    kept = [g.clone() for g in first]
    second = torch.autograd.grad(loss * 2, [hidden, weight])
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(list(first), kept)


def test_second_derivatives_are_refused():
    hidden, weight, targets = random_case(5, 6, 3)
    with pytest.raises(RuntimeError, match="no second derivative; use token_loss"):
        torch.autograd.grad(linear_token_loss(hidden, weight, targets, "dft").loss, hidden, create_graph=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_does_not_narrow_the_products(dtype):
    hidden, weight, targets = random_case(30, 40, 8, dtype=dtype)
    truth = torch.autograd.grad(linear_token_loss(hidden, weight, targets, "dft").loss, [hidden, weight])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_token_loss(hidden, weight, targets, "dft").loss
    for mine, right in zip(torch.autograd.grad(loss, [hidden, weight]), truth):
        assert mine.equal(right)


@pytest.mark.parametrize(
    ("dtype", "ignored", "dim"), [(torch.float32, 0.0, 256), (torch.float32, 0.5, 256), (torch.bfloat16, 0.0, 256)]
)
def test_memory_stays_below_a_tenth_of_the_plain_loss(dtype, ignored, dim):
    rows, vocabulary = 512, 32768
    hidden, weight, targets = random_case(rows, vocabulary, dim, ignored, dtype)
    returned = hidden.nbytes + weight.nbytes
    plain = peak_bytes(lambda: plain_dft_sum(hidden, weight, targets).backward()) - returned
    assert plain > rows * vocabulary * 4  # the meter sees the logits
    hidden.grad = weight.grad = None
    extra = peak_bytes(lambda: linear_token_loss(hidden, weight, targets, "dft").loss.backward()) - returned
    assert extra < plain / 10, f"{extra / plain:.3f} of the plain loss"


@pytest.mark.parametrize(
    ("hidden", "weight", "targets", "bias", "words"),
    [
        ((2, 3), (5, 4), (2,), None, ["(2, 3)", "(5, 4)"]),
        ((1, 2, 3), (5, 3), (2,), None, ["(1, 2, 3)", "(N, D)"]),
        ((2, 3), (5, 3), (3,), None, ["2 rows", "(3,)"]),
        ((2, 3), (5, 3), (2,), (4,), ["5 rows", "(4,)"]),
    ],
)
def test_wrong_shapes_are_named(hidden, weight, targets, bias, words):
    tensors = torch.zeros(hidden), torch.zeros(weight), torch.zeros(targets, dtype=torch.long)
    with pytest.raises(ValueError) as caught:
        linear_token_loss(*tensors, "dft", None if bias is None else torch.zeros(bias))
    for word in words:
        assert word in str(caught.value)


def test_wrong_names_and_targets_are_refused_as_by_the_definition():
    hidden, weight, _ = random_case(2, 5, 3)
    with pytest.raises(ValueError, match="did you mean 'dft'"):
        linear_token_loss(hidden, weight, torch.tensor([0, 1]), "dftt")
    with pytest.raises(ValueError, match=r"target 5 is outside \[0, 5\)"):
        linear_token_loss(hidden, weight, torch.tensor([0, 5]), "dft")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("learn_weight", [True, False])
def test_on_a_gpu_bfloat16_is_near_the_truth_in_a_fraction_of_the_memory(learn_weight):
    hidden, weight, targets = random_case(4096, 32768, 512, 0.2, torch.bfloat16)
    hidden, weight = hidden.detach().cuda().requires_grad_(), weight.detach().cuda().requires_grad_(learn_weight)
    targets = targets.cuda()
    inputs = [hidden, weight] if learn_weight else [hidden]
    truth = dft_gradients(hidden, weight, targets)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ours = torch.autograd.grad(linear_token_loss(hidden, weight, targets, "dft").loss, inputs)
    extra = torch.cuda.max_memory_allocated() - before - sum(x.nbytes for x in inputs)
    for mine, right in zip(ours, truth):
        assert relative_error(mine, right) < 6e-3
    assert extra < hidden.shape[0] * weight.shape[0] * 4 / 5  # the plain loss holds more than twice the logits


@pytest.mark.parametrize("budget", [1e-3, 1e-4])
def test_rows_within_the_budget_are_skipped_and_the_error_is_certain(tiling, budget):
    hidden, weight, targets = random_case(300, 60, 16, ignored=0.1, dtype=torch.float64)
    hidden = (hidden * 6).detach().requires_grad_()  # most rows are certain or hopeless
    exact = linear_token_loss(hidden, weight, targets, "dft")
    out = linear_token_loss(hidden, weight, targets, "dft", options=module.HeadOptions(skip_budget=budget))
    assert 30 < int(out.skipped) < 270
    assert int(exact.skipped) == 0
    torch.testing.assert_close(out[:6], exact[:6])  # losses and telemetry are of all rows
    logits = (hidden @ weight.T).detach().requires_grad_()
    per_row = torch.autograd.grad(token_loss(logits, targets, "dft").loss.sum(), logits)[0].norm(dim=1)
    mine, truth = (torch.autograd.grad(o.loss, hidden)[0] for o in (out, exact))
    gone = (mine == 0).all(1) & (targets != -100)
    assert int(gone.sum()) == int(out.skipped)
    assert float(per_row[gone].sum()) <= budget * float(per_row.sum())
    torch.testing.assert_close(mine[~gone], truth[~gone])
    weights = [torch.autograd.grad(o.loss, weight)[0] for o in (
        linear_token_loss(hidden, weight, targets, "dft", options=module.HeadOptions(skip_budget=budget)),
        linear_token_loss(hidden, weight, targets, "dft"),
    )]  # fmt: skip
    assert float((weights[0] - weights[1]).norm()) <= budget * float(per_row.sum() * hidden.norm(dim=1).max())


def test_rows_that_are_held_near_a_reference_are_never_skipped():
    hidden, weight, targets = random_case(50, 60, 16)
    reference = module.Reference(hidden.detach() * 1.1, weight.detach())
    options = module.HeadOptions(skip_budget=1e-3)
    assert int(linear_token_loss(hidden, weight, targets, "asft", reference=reference, options=options).skipped) == 0
