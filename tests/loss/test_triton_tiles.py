"""Triton's tile functions against torch's and the formula, in its interpreter; and compiled for a GPU, without one."""

import os
import subprocess
import sys

import pytest
import torch
from loss.oracle import dft_gradients, relative_error
from loss.test_head import random_case

from dft_mm.loss import head, tiles, triton_tiles
from dft_mm.loss.head import HeadOptions, linear_token_loss
from dft_mm.loss.tokens import token_loss

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs the kernels themselves (-m gpu)")


@pytest.fixture
def through_triton(monkeypatch):
    """The head as on a GPU: Triton's tile functions on tiles whose rows lie together."""
    monkeypatch.setattr(head, "tile_functions", lambda device, objective: triton_tiles)
    monkeypatch.setattr(head, "_tile_view", lambda buffer, rows, width: buffer[: rows * width].view(rows, width))
    monkeypatch.setattr(head, "TILE_MIN", 2**14)


@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize(
    ("rows", "vocabulary", "dim", "ignored"),
    [(0, 7, 3, 0), (1, 1, 3, 0), (5, 7, 3, 1), (16, 64, 8, 0), (17, 61, 5, 0.4), (1, 4096, 4, 0), (2, 4103, 4, 0.3)],
)
@pytest.mark.parametrize("loss", ["dft", "sed"])
def test_the_head_through_triton_is_the_formula(
    through_triton, monkeypatch, loss, rows, vocabulary, dim, ignored, layout
):
    monkeypatch.setattr(head, "THIN", 1 if layout == "rows" else 10**9)
    hidden, weight, targets = random_case(rows, vocabulary, dim, ignored)
    ours = linear_token_loss(hidden, weight, targets, loss, options=HeadOptions(entropy=True))
    theirs = token_loss(hidden @ weight.T, targets, loss)
    torch.testing.assert_close(ours.loss, theirs.loss.sum(), rtol=2e-6, atol=2e-6)
    logits = (hidden @ weight.T).detach()[targets != -100]
    entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1)
    torch.testing.assert_close(ours.token_entropy, entropy, rtol=1e-5, atol=2e-6)
    for mine, truth in zip(
        torch.autograd.grad(ours.loss, [hidden, weight]), torch.autograd.grad(theirs.loss.sum(), [hidden, weight])
    ):
        assert float((mine - truth).norm()) <= 2e-6 * max(float(truth.norm()), 0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weight_tied_to_the_embedding(through_triton, dtype):
    ids, targets = torch.tensor([1, 4, 2, 4, 0]), torch.tensor([4, 2, -100, 0, 3])
    weight = torch.randn(6, 3, dtype=dtype, requires_grad=True)
    linear_token_loss(weight[ids] * 2, weight, targets, "dft").loss.backward()
    theirs = weight.detach().double().requires_grad_()
    token_loss((theirs[ids] * 2) @ theirs.T, targets, "dft").loss.sum().backward()
    assert relative_error(weight.grad, theirs.grad) < (2e-6 if dtype == torch.float32 else 1e-14)


@pytest.mark.parametrize("learn_weight", [True, False])
def test_the_path_of_a_gpu_in_bfloat16(through_triton, monkeypatch, learn_weight):
    """Its product of bfloat16 matrices is float32: a stand-in for that; tile and narrow gradient are the kernels'."""
    real_mm, real_addmm = torch.mm, torch.addmm
    made = []

    def mm(a, b, *, out_dtype=None, out=None):
        made.append(a.dtype)
        if out_dtype is not None:
            a, b = a.to(out_dtype), b.to(out_dtype)
        return real_mm(a, b) if out is None else real_mm(a, b, out=out)

    def addmm(c, a, b, *, out_dtype, out):
        assert a.dtype == b.dtype == torch.bfloat16
        return real_addmm(c, a.to(out_dtype), b.to(out_dtype), out=out)

    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(torch, "addmm", addmm)
    monkeypatch.setattr(head, "_multiplies_mixed", lambda hidden, weight: True)
    hidden, weight, targets = random_case(12, 90, 16, dtype=torch.bfloat16)
    weight.requires_grad_(learn_weight)
    inputs = [hidden, weight] if learn_weight else [hidden]
    ours = torch.autograd.grad(linear_token_loss(hidden, weight, targets, "dft").loss, inputs)
    assert set(made) == {torch.bfloat16}
    for mine, truth in zip(ours, dft_gradients(hidden, weight, targets)):
        assert relative_error(mine, truth) < 6e-3


def test_extreme_logits_stay_finite(through_triton):
    hidden = torch.tensor([[1e4], [-1e4], [1e4]], requires_grad=True)
    weight = torch.linspace(-1, 1, 65)[:, None].requires_grad_()
    out = linear_token_loss(hidden, weight, torch.tensor([64, 64, 0]), "dft", options=HeadOptions(entropy=True))
    gradients = torch.autograd.grad(out.loss, [hidden, weight])
    assert out.token_nll.tolist() == pytest.approx([0, 2e4, 2e4])
    assert out.token_entropy.isfinite().all()
    assert all(g.isfinite().all() for g in gradients)


def test_a_nan_is_not_lost(through_triton):
    hidden, weight, targets = random_case(6, 9, 4, ignored=0)
    with torch.no_grad():
        hidden[2, 1] = float("nan")
    assert not linear_token_loss(hidden, weight, targets, "dft").loss.isfinite()


@pytest.mark.parametrize("function", ["fold", "gradient"])
def test_a_tile_may_lie_either_way(function):
    logits, targets = torch.randn(3, 130), torch.tensor([0, 129, 64])
    results = []
    for z in (logits.clone(), logits.t().contiguous().t()):
        sums = tiles.Sums.start(z)
        triton_tiles.fold(z, sums, targets, 0)
        slope = torch.ones(3, 1)
        results.append(sums.nll if function == "fold" else gradient(z, sums, slope, targets))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def gradient(z, sums, slope, targets):
    return triton_tiles.gradient(z, sums, slope, targets, 0, slope, fresh=False)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from dft_mm.loss import triton_tiles

common = {"row_stride": "i64", "column_stride": "i32", "targets_ptr": "*i64", "start": "i32", "width": "i32"}
fold = common | {"z_ptr": "*fp32"} | {f"{x}_ptr": "*fp32" for x in ("top", "total", "at_target", "moment")}
gradient = common | {"z_ptr": "*fp32", "out_ptr": "*bf16", "out_row_stride": "i64", "out_column_stride": "i32"}
gradient |= {f"{x}_ptr": "*fp32" for x in ("top", "factor", "slope")}
for capability in (80, 90):
    for kernel, types, constants in (
        (triton_tiles._fold_kernel, fold, {"MOMENT": True, "BLOCK": 4096}),
        (triton_tiles._fold_kernel, fold, {"MOMENT": False, "BLOCK": 4096}),
        (triton_tiles._gradient_kernel, gradient, {"BLOCK": 4096}),
    ):
        signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
        compiled = triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", capability, 32))
        assert len(compiled.asm["cubin"]) > 1000
print("compiled")
"""


def test_the_kernels_compile_for_gpus(tmp_path):
    env = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=env, capture_output=True, text=True)
    assert done.stdout == "compiled\n", done.stderr
