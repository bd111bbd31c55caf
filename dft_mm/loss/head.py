"""The output layer and the token loss in one: the numbers of `token_loss` without ever holding the (N, V) logits.

Axes: N rows, M supervised rows, V vocabulary, D hidden width.

Logits are made tile by tile, and each tile is turned into its gradient in place while it is there, in the forward
pass; the backward pass only scales. A tile is either some rows by the whole vocabulary, or all rows by some of the
vocabulary. The second needs the logits twice, once for the softmax's sum and once for the gradient (four matrix
products for three), and is taken where the first would multiply thin matrices, or add the weight's gradient up in a
narrow type.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dft_mm.config import LossConfig
from dft_mm.loss.tokens import Weight, supervised_rows, weight_function

TILE_SHARE = 16
"""A tile holds this fraction of the (M, V) logits,"""
TILE_MIN, TILE_MAX = 2**18, 2**27
"""within these numbers of elements."""
THIN = 64
"""Fewer rows than this make a matrix product slow: reading the weight then takes longer than multiplying."""

Grads = tuple[Tensor | None, Tensor | None, Tensor | None]


class HeadLoss(NamedTuple):
    """Sums over the supervised rows, and what telemetry wants of each; float32, or float64 for float64 inputs."""

    loss: Tensor
    """(): Σ weight · nll; carries the gradient."""
    nll: Tensor
    """(): Σ nll, detached."""
    tokens: Tensor
    """(): M."""
    token_nll: Tensor
    """(M,): -log p of each, in order, detached."""
    token_weight: Tensor
    """(M,): its weight, detached."""
    token_targets: Tensor
    """(M,) int64: its target."""


def linear_token_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, loss: str | LossConfig, bias: Tensor | None = None
) -> HeadLoss:
    """`token_loss(hidden @ weight.T + bias, targets, loss)`, summed.

    What it holds beyond inputs and gradients is about 1/16 of the (M, V) float32 logits. Gradients that nothing asks
    for (a frozen weight, no_grad) are not computed. With no supervised row the loss is 0 with zero gradients, so that
    every rank of a sharded model takes the same path. A second backward pass over a retained graph computes anew.

    Args:
        hidden: (N, D), of any floating type; the softmax is float32, float64 for float64.
        weight: (V, D).
        targets: (N,) integers in [0, V), IGNORE_INDEX where nothing is learned. Nothing is shifted.
        loss: a name of `tokens.WEIGHTS`, or the recipe's section.
        bias: (V,), added to the logits.

    Raises:
        ValueError: unknown loss, shapes that do not match, or a target outside the vocabulary.
        RuntimeError: in a backward pass with create_graph=True.
    """
    weigh = weight_function(loss)
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden is (N, D) and weight (V, D); these are {tuple(hidden.shape)}, {tuple(weight.shape)}")
    if targets.shape != hidden.shape[:1]:
        raise ValueError(f"{len(hidden)} rows of hidden need targets of that shape, not {tuple(targets.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"a weight of {len(weight)} rows needs a bias of that shape, not {tuple(bias.shape)}")
    rows, kept = supervised_rows(targets, len(weight))
    # Inside the function grad mode is always off, so whether anybody wants gradients is asked here.
    total, nll, token_weight = _LinearTokenLoss.apply(hidden, weight, bias, rows, kept, weigh, torch.is_grad_enabled())
    return HeadLoss(total, nll.sum(), nll.new_full((), len(kept)), nll, token_weight, kept)


class _LinearTokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rows: Tensor,
        targets: Tensor,
        weigh: Weight,
        learning: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.wanted = tuple(learning and needed for needed in ctx.needs_input_grad[:3])
        ctx.weigh = weigh
        ctx.save_for_backward(hidden, weight, bias, rows, targets)
        nll, token_weight, ctx.grads = _evaluate(hidden, weight, bias, rows, targets, weigh, ctx.wanted)
        ctx.mark_non_differentiable(nll, token_weight)
        return (token_weight * nll).sum(), nll, token_weight

    @staticmethod
    def backward(ctx: Any, scale: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True: constants here would drop the second derivative in silence
            raise RuntimeError("linear_token_loss has no second derivative; use token_loss on logits for it")
        # The buffers are scaled in place and given away; whoever comes again by a retained graph gets new ones.
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            *_, grads = _evaluate(*ctx.saved_tensors, ctx.weigh, ctx.wanted)
        for grad in grads:
            if grad is not None:
                _scale(grad, scale)
        return *grads, None, None, None, None


def _evaluate(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor,
    targets: Tensor,
    weigh: Weight,
    wanted: tuple[bool, ...],
) -> tuple[Tensor, Tensor, Grads]:
    """nll (M,), weight (M,) and the gradients of Σ weight · nll for hidden, weight and bias, where wanted."""
    dtype = torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)
    mixed = _multiplies_mixed(hidden, weight)
    all_supervised = len(rows) == len(hidden)
    h = hidden if all_supervised else hidden[rows]
    h = h if mixed else h.to(dtype)
    nll, token_weight = h.new_empty(len(h), dtype=dtype), h.new_empty(len(h), dtype=dtype)
    grad_h = torch.zeros_like(h, dtype=dtype) if wanted[0] else None
    grad_w = torch.zeros_like(weight) if wanted[1] else None
    grad_b = h.new_zeros(len(weight), dtype=dtype) if wanted[2] else None

    height, width = _tile(h, weight, mixed, wanted[1])
    columns = list(_slices(len(weight), width))
    buffer = h.new_empty(height * width, dtype=dtype)

    def logits(r: slice, c: slice) -> tuple[Tensor, Tensor]:
        w = weight[c] if mixed else weight[c].to(dtype)
        z = buffer[: (r.stop - r.start) * (c.stop - c.start)].view(r.stop - r.start, c.stop - c.start)
        torch.mm(h[r], w.t(), **({"out_dtype": dtype} if mixed else {}), out=z)
        return (z if bias is None else z.add_(bias[c])), w

    # Autocast would narrow the products behind our back.
    with torch.autocast(h.device.type, enabled=False):
        for r in _slices(len(h), height):
            top = h.new_full((r.stop - r.start, 1), torch.finfo(dtype).min, dtype=dtype)
            total, at_target = torch.zeros_like(top), torch.zeros_like(top)
            for c in columns:
                z, w = logits(r, c)
                index, inside = _within(targets[r], c)
                at_target = torch.where(inside, z.gather(1, index), at_target)
                before, top = top, torch.maximum(top, z.amax(1, keepdim=True))
                total = total * (before - top).exp() + z.sub_(top).exp_().sum(1, keepdim=True)
            # Differences of logits first: at ±1e4 the sum top + log(total) would lose three digits.
            nll[r] = (total.log() - (at_target - top)).squeeze(1)
            token_weight[r] = weigh(torch.exp(-nll[r]))
            if not any(wanted):
                continue
            factor = token_weight[r][:, None]
            for c in columns:
                if len(columns) > 1:
                    z, w = logits(r, c)
                    z.sub_(top).exp_()
                index, inside = _within(targets[r], c)
                z.mul_(factor / total).scatter_add_(1, index, torch.where(inside, -factor, 0.0))
                if grad_b is not None:
                    grad_b[c] += z.sum(0)
                d = z.to(weight.dtype) if mixed else z
                if grad_h is not None:
                    _add_product(grad_h[r], d, w)
                if grad_w is not None:
                    _add_product(grad_w[c], d.t(), h[r])
    if grad_h is not None:
        grad_h = grad_h.to(hidden.dtype)
        grad_h = grad_h if all_supervised else torch.zeros_like(hidden).index_copy_(0, rows, grad_h)
    return nll, token_weight, (grad_h, grad_w, None if grad_b is None else grad_b.to(bias.dtype))


def _tile(h: Tensor, weight: Tensor, mixed: bool, weight_learns: bool) -> tuple[int, int]:
    """Rows and columns of the tiles of the (M, V) logits."""
    (rows, dim), vocabulary = h.shape, len(weight)
    tile = min(max(rows * vocabulary // TILE_SHARE, TILE_MIN), TILE_MAX)
    if mixed:
        tile //= 2  # the tile has a narrow copy
    # A narrow weight is widened block by block, and the sum of its gradient must not pass through the narrow type.
    blocks_of_weight = weight.dtype != h.dtype or (mixed and weight_learns)
    if not blocks_of_weight and tile // vocabulary >= min(rows, THIN):
        return _even(rows, tile // vocabulary), vocabulary
    # Widened copies: of hidden and its gradient for the whole time, of one block of the weight and its gradient.
    if blocks_of_weight:
        tile = max(tile - 2 * rows * dim, tile // 4)
    return max(rows, 1), _even(vocabulary, tile // max(1, rows + (2 * dim if blocks_of_weight else 0)))


def _even(length: int, largest: int) -> int:
    """The size of the fewest equal pieces of at most `largest`."""
    return max(1, math.ceil(length / math.ceil(max(1, length) / max(1, largest))))


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def _within(targets: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """targets (m,) → their index (m, 1) in a block of columns, and whether they are in it (else the index is moot)."""
    index = targets[:, None] - columns.start
    clamped = index.clamp(0, columns.stop - columns.start - 1)
    return clamped, index == clamped


def _multiplies_mixed(hidden: Tensor, weight: Tensor) -> bool:
    """Whether the device multiplies these narrow types into float32; elsewhere they are widened first."""
    return hidden.is_cuda and hidden.dtype == weight.dtype and hidden.dtype in (torch.bfloat16, torch.float16)


def _add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """out += a @ b in place; the sum inside is never narrower than float32."""
    if out.dtype == a.dtype:
        out.addmm_(a, b)
    elif a.dtype.itemsize < out.dtype.itemsize:
        torch.addmm(out, a, b, out_dtype=out.dtype, out=out)
    else:
        out += torch.mm(a, b)


def _scale(grad: Tensor, scale: Tensor) -> None:
    """grad *= scale in place. A scale rounded to bfloat16 would be off by up to 0.4 % for every element alike."""
    if grad.dtype == scale.dtype:
        grad.mul_(scale)
        return
    for part in grad.split(max(1, TILE_MIN * len(grad) // max(1, grad.numel()))):
        part.copy_(part.to(scale.dtype) * scale)
