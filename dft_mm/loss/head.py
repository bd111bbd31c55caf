"""The output layer and the token loss in one: the numbers of `token_loss` without ever holding the (N, V) logits.

Axes: N rows, M supervised rows, V vocabulary, D hidden width.

Logits are made tile by tile, and each tile is turned into its gradient in place while it is there, in the forward
pass; the backward pass only scales. A tile is either some rows by the whole vocabulary, or all rows by some of the
vocabulary. The second needs the logits twice, once for the softmax's sum and once for the gradient (four matrix
products for three), and is taken where the first would multiply thin matrices, or add the weight's gradient up in a
narrow type, and where a token's weight hangs on other tokens.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dft_mm.config import LossConfig
from dft_mm.loss import tiles
from dft_mm.loss.family import Objective, Tokens, Weighted
from dft_mm.loss.tokens import answers_of, supervised_rows

TILE_SHARE = 6
"""A tile holds this fraction of the (N, V) logits,"""
TILE_MIN, TILE_MAX = 2**20, 320 * 2**20
"""within these numbers of bytes."""
THIN = 48
"""Fewer rows than this make a matrix product slow: reading the weight then takes longer than multiplying."""
EVEN_ROWS = 16
"""A CPU's matrix product takes half as long again for rows that are no multiple of this; zero rows fill them up."""

Grads = tuple[Tensor | None, Tensor | None, Tensor | None]


class HeadLoss(NamedTuple):
    """Sums over the supervised rows, and what telemetry wants of each; float32, or float64 for float64 inputs."""

    loss: Tensor
    """(): Σ of the token losses; carries the gradient."""
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
    token_entropy: Tensor
    """(M,): entropy of its prediction, detached; (0,) where it was not asked for."""
    skipped: Tensor
    """() int64: rows whose gradient was certain to be negligible, and was not multiplied out."""


class Reference(NamedTuple):
    """The output layer of a reference model and what goes into it, for losses that compare with one."""

    hidden: Tensor
    """(N, D)"""
    weight: Tensor
    """(V, D)"""
    bias: Tensor | None = None


@dataclass(frozen=True)
class HeadOptions:
    """What an output layer does besides multiplying, and what is wanted of the head."""

    logit_scale: float = 1.0
    """Logits are multiplied with it (Granite, Cohere),"""
    softcap: float | None = None
    """and then bounded: softcap · tanh(logit / softcap) (Gemma 2)."""
    entropy: bool = False
    """Also return the entropy of each prediction."""
    skip_budget: float = 0.0
    """Rows are not multiplied out whose share of the sum of the norms of all rows' gradients for their logits is
    together at most this: no one's is greater than √2 · |w| · (1 - p), nor smaller than |w| · (1 - p). With a loss that
    is held near a reference none is skipped: the reference's part has no such bound."""


def linear_token_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    loss: str | LossConfig | Objective,
    bias: Tensor | None = None,
    *,
    ref_logits: Tensor | None = None,
    reference: Reference | None = None,
    sequences: Tensor | None = None,
    step: int | None = None,
    options: HeadOptions | None = None,
) -> HeadLoss:
    """`token_loss(hidden @ weight.T + bias, targets, loss)`, summed.

    What it holds beyond inputs and gradients is about 1/6 of the (N, V) float32 logits. Gradients that nothing asks
    for (a frozen weight, no_grad) are not computed. With no supervised row the loss is 0 with zero gradients, so that
    every rank of a sharded model takes the same path. A second backward pass over a retained graph computes anew.

    Args:
        hidden: (N, D), of any floating type; the softmax is float32, float64 for float64.
        weight: (V, D).
        targets: (N,) integers in [0, V), IGNORE_INDEX where nothing is learned. Nothing is shifted.
        loss: a name of `family.FORMS`, or the recipe's section.
        bias: (V,), added to the logits.
        ref_logits: (N, V) of the reference, for losses that have one (asft, iw_sft); or rather
        reference: its output layer, so that its logits are not held either.
        sequences: (N,) integers, equal within an answer, for dft_sequence; default: one answer.
        step: the step, from 1, for a loss with warmup_steps or ramp_steps.
        options: scale and cap of the logits, and what else is wanted.

    Raises:
        ValueError: unknown loss, a missing reference or step, shapes that do not match, or a target outside the
            vocabulary.
        RuntimeError: in a backward pass with create_graph=True.
    """
    objective = loss if isinstance(loss, Objective) else Objective(loss, step)
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden is (N, D) and weight (V, D); these are {tuple(hidden.shape)}, {tuple(weight.shape)}")
    if targets.shape != hidden.shape[:1]:
        raise ValueError(f"{len(hidden)} rows of hidden need targets of that shape, not {tuple(targets.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"a weight of {len(weight)} rows needs a bias of that shape, not {tuple(bias.shape)}")
    if ref_logits is not None and ref_logits.shape != (len(hidden), len(weight)):
        raise ValueError(f"ref_logits are (N, V) = ({len(hidden)}, {len(weight)}), not {tuple(ref_logits.shape)}")
    if reference is not None and (len(reference.hidden), len(reference.weight)) != (len(hidden), len(weight)):
        raise ValueError(
            f"the reference has {len(reference.hidden)} rows over {len(reference.weight)} tokens, "
            f"the model {len(hidden)} over {len(weight)}"
        )
    objective.check_inputs(ref_logits if reference is None else reference, targets)
    rows, kept = supervised_rows(targets, len(weight))
    answers = answers_of(targets, sequences, rows) if objective.by_sequence else None
    return supervised_loss(hidden, weight, bias, rows, kept, objective, None, answers, ref_logits, reference, options)


def supervised_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor,
    targets: Tensor,
    objective: Objective,
    kinds: Tensor | None = None,
    sequences: Tensor | None = None,
    ref_logits: Tensor | None = None,
    reference: Reference | None = None,
    options: HeadOptions | None = None,
) -> HeadLoss:
    """`linear_token_loss` for rows that are known already, which costs a GPU no synchronisation; nothing is checked.

    Args:
        hidden: (N, D).
        rows: (M,) int64, rising: the supervised ones.
        targets: (M,) int64.
        kinds: (M,): number of each one's loss in the objective; None: the first.
        sequences: (M,) int64 in [0, M): number of each one's answer.
    """
    work = _Work(bias, rows, targets, objective, kinds, sequences, ref_logits, reference, options or HeadOptions())
    # Inside the function grad mode is always off, so whether anybody wants gradients is asked here.
    total, nll, token_weight, entropy, skipped = _LinearTokenLoss.apply(
        hidden, weight, bias, work, torch.is_grad_enabled()
    )
    return HeadLoss(total, nll.sum(), nll.new_full((), len(rows)), nll, token_weight, targets, entropy, skipped)


class _Work(NamedTuple):
    """What the head is given besides what it differentiates."""

    bias: Tensor | None
    rows: Tensor
    targets: Tensor
    objective: Objective
    kinds: Tensor | None
    sequences: Tensor | None
    ref_logits: Tensor | None
    reference: Reference | None
    options: HeadOptions


class _LinearTokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, work: _Work, learning: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        ctx.wanted = tuple(learning and needed for needed in ctx.needs_input_grad[:3])
        ctx.work = work
        ctx.save_for_backward(hidden, weight)
        loss, *of_tokens, ctx.grads = _evaluate(hidden, weight, work, ctx.wanted)
        ctx.mark_non_differentiable(*of_tokens)
        return loss, *of_tokens

    @staticmethod
    def backward(ctx: Any, scale: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True: constants here would drop the second derivative in silence
            raise RuntimeError("linear_token_loss has no second derivative; use token_loss on logits for it")
        # The buffers are scaled in place and given away; whoever comes again by a retained graph gets new ones.
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            *_, grads = _evaluate(*ctx.saved_tensors, ctx.work, ctx.wanted)
        for grad in grads:
            if grad is not None:
                _scale(grad, scale)
        return *grads, None, None


def _evaluate(
    hidden: Tensor, weight: Tensor, work: _Work, wanted: tuple[bool, ...]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Grads]:
    """Σ loss (), nll (M,), weight (M,), entropy (M,) or (0,), skipped () and the gradients for hidden, weight and bias,
    where wanted.
    """
    tiling = _Tiling(hidden, weight, work, learns=wanted[1])
    h, dtype, count = tiling.h, tiling.dtype, len(work.rows)
    nll, token_weight = (h.new_empty(count, dtype=dtype) for _ in range(2))
    entropy = h.new_empty(count if work.options.entropy else 0, dtype=dtype)
    loss = h.new_zeros((), dtype=dtype)
    skipped = torch.zeros((), dtype=torch.int64, device=h.device)
    grad_h = torch.zeros_like(h, dtype=dtype) if wanted[0] else None
    grad_w = (torch.empty_like if count else torch.zeros_like)(weight) if wanted[1] else None
    grad_b = h.new_zeros(len(weight), dtype=dtype) if wanted[2] else None
    # Autocast would narrow the products behind our back.
    with torch.autocast(h.device.type, enabled=False):
        for r in tiling.blocks:
            block = tiling.softmax(r)
            real = slice(r.start, r.start + block.count)
            loss += block.loss
            nll[real], token_weight[real] = block.nll, block.weighted.weight
            if work.options.entropy:
                entropy[real] = block.sums.entropy[: block.count]
            if any(wanted):
                skipped += tiling.gradients(r, block, grad_h, grad_w, grad_b)
    if grad_h is not None:
        grad_h = grad_h[:count].to(hidden.dtype)
        if count < len(hidden):
            grad_h = torch.zeros_like(hidden).index_copy_(0, work.rows, grad_h)
    grad_b = None if grad_b is None else grad_b.to(work.bias.dtype)
    return loss, nll, token_weight, entropy, skipped, (grad_h, grad_w, grad_b)


@dataclass
class _Block:
    """What the softmax has told of R rows of which `count` are real."""

    count: int
    sums: tiles.Sums
    ref_sums: tiles.Sums
    nll: Tensor
    """(count,)"""
    weighted: Weighted
    loss: Tensor
    """(): Σ of the rows' losses."""
    anchor: Tensor | None
    """(count,): λ of the divergence from the reference, where there is one."""


class _Tiling:
    """The supervised rows against the vocabulary, tile by tile."""

    def __init__(self, hidden: Tensor, weight: Tensor, work: _Work, learns: bool) -> None:
        self.weight, self.work = weight, work
        self.dtype = torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)
        self.mixed = _multiplies_mixed(hidden, weight)
        self.h, self.targets = _even_rows(hidden, work, hidden.dtype if self.mixed else self.dtype)
        self.compares = work.objective.needs_reference
        self.ops = tile_functions(hidden.device, work.objective)
        height, width = tile_shape(len(hidden), self.h, weight, self.mixed, learns, work.objective.by_sequence)
        self.blocks = list(_slices(len(self.h), height))
        self.columns = list(_slices(len(weight), width))
        self._buffers = [self.h.new_empty(height * width, dtype=self.dtype) for _ in range(1 + self.compares)]
        self._tile: tuple[Tensor, Tensor | None] | None = None
        """The tile that the softmax left, and the slope of its cap."""
        self._ref_tile: Tensor | None = None

    def softmax(self, r: slice) -> _Block:
        """Go over the vocabulary for the rows r, and weigh their tokens."""
        work, options = self.work, self.work.options
        like = self.h.new_empty((r.stop - r.start, 0), dtype=self.dtype)
        sums = tiles.Sums.start(like, options.entropy, work.objective.top_k > 0)
        ref_sums = tiles.Sums.start(like, cross=work.objective.is_anchored)
        for c in self.columns:
            z, _ = self._tile = self._logits(r, c)
            if self.compares:
                self._ref_tile = self._ref_logits(r, c)
                self.ops.fold(self._ref_tile, ref_sums, self.targets[r], c.start, model_z=z)
            self.ops.fold(z, sums, self.targets[r], c.start, work.objective.top_k)
        n = min(r.stop, len(work.rows)) - r.start
        real = slice(r.start, r.start + n)
        tokens = Tokens(
            sums.nll[:n],
            sums.log_largest[:n] if sums.largest is not None else None,
            ref_sums.nll[:n] if self.compares else None,
            None if work.sequences is None else work.sequences[real],
        )
        weighted = work.objective(tokens, None if work.kinds is None else work.kinds[real])
        loss, anchor = weighted.value.sum(), None
        if work.objective.is_anchored:
            anchor = torch.as_tensor(weighted.anchor, dtype=self.dtype, device=like.device).expand(n)
            loss = loss + (anchor * ref_sums.divergence(sums)[:n]).sum()
        return _Block(n, sums, ref_sums, tokens.nll, weighted, loss, anchor)

    def gradients(
        self, r: slice, block: _Block, grad_h: Tensor | None, grad_w: Tensor | None, grad_b: Tensor | None
    ) -> int:
        """Add the gradients of the rows r, where they are wanted; returns how many rows were left out."""
        work, keep = self.work, None
        slope = _column(block.weighted.slope, r)
        scale = slope if block.anchor is None else slope + _column(block.anchor, r)
        if work.options.skip_budget and block.anchor is None:
            keep = _rows_that_count(block.weighted.slope, torch.exp(-block.nll), work.options.skip_budget)
        inputs = self.h[r] if keep is None else self.h[r][keep]
        for c in self.columns:
            grad_z = self._gradient_tile(r, c, block, slope, scale, narrow=grad_b is None)
            grad_z = grad_z if keep is None else grad_z[keep]
            if grad_b is not None:
                grad_b[c] += grad_z.sum(0)
            d = grad_z.to(self.weight.dtype) if self.mixed else grad_z
            if grad_h is not None and keep is None:
                _add_product(grad_h[r], d, self._weight(c))
            elif grad_h is not None:
                grad_h[r].index_add_(0, keep, torch.mm(d, self._weight(c)).to(self.dtype))
            if grad_w is not None:
                (_set_product if r.start == 0 else _add_product)(grad_w[c], d.t(), inputs)
        return 0 if keep is None else block.count - len(keep)

    def _gradient_tile(self, r: slice, c: slice, block: _Block, slope: Tensor, scale: Tensor, narrow: bool) -> Tensor:
        """(R, C): the loss' gradient for the products of hidden and weight; rounded at once where nothing follows."""
        options, fresh = self.work.options, len(self.columns) > 1
        z, cap_slope = self._logits(r, c) if fresh else self._tile
        last = not self.compares and cap_slope is None and options.logit_scale == 1.0 and narrow and self.mixed
        dtype = self.weight.dtype if last else None
        grad_z = self.ops.gradient(z, block.sums, slope, self.targets[r], c.start, scale, fresh, dtype)
        if block.anchor is not None:
            q = self._ref_logits(r, c).sub_(block.ref_sums.top).exp_() if fresh else self._ref_tile
            grad_z.sub_(q.mul_(_column(block.anchor, r) / block.ref_sums.total))
        if cap_slope is not None:
            grad_z.mul_(cap_slope)
        return grad_z if options.logit_scale == 1.0 else grad_z.mul_(options.logit_scale)

    def _weight(self, c: slice) -> Tensor:
        return self.weight[c] if self.mixed else self.weight[c].to(self.dtype)

    def _logits(self, r: slice, c: slice) -> tuple[Tensor, Tensor | None]:
        """Logits (R, C) in the buffer, and the slope of their cap (R, C), where there is one."""
        z = _tile_view(self._buffers[0], r.stop - r.start, c.stop - c.start)
        torch.mm(self.h[r], self._weight(c).t(), **({"out_dtype": self.dtype} if self.mixed else {}), out=z)
        if self.work.bias is not None:
            z.add_(self.work.bias[c])
        return _scale_and_cap(z, self.work.options)

    def _ref_logits(self, r: slice, c: slice) -> Tensor:
        """Logits (R, C) of the reference in a buffer of their own."""
        work = self.work
        z = _tile_view(self._buffers[1], r.stop - r.start, c.stop - c.start)
        rows = work.rows[r.start : r.stop]
        z[len(rows) :] = 0.0
        if work.reference is None:
            z[: len(rows)] = work.ref_logits[rows, c]
            return z
        h, weight, bias = work.reference
        torch.mm(h[rows].to(self.dtype), weight[c].to(self.dtype).t(), out=z[: len(rows)])
        if bias is not None:
            z.add_(bias[c])
        return _scale_and_cap(z, work.options)[0]


def tile_functions(device: torch.device, objective: Objective) -> ModuleType:
    """`fold` and `gradient` for a device: Triton's where a CUDA device has them and no reference is compared with."""
    if device.type == "cuda" and not objective.needs_reference:
        from dft_mm.loss import triton_tiles

        return triton_tiles
    return tiles


def _even_rows(hidden: Tensor, work: _Work, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The supervised rows (M', D) and their targets (M',); on a CPU filled up with zeros to an even number."""
    count = len(work.rows)
    even = count if hidden.is_cuda else math.ceil(count / EVEN_ROWS) * EVEN_ROWS
    if even == count == len(hidden):
        return hidden.to(dtype), work.targets
    h = hidden.new_zeros((even, hidden.shape[1]), dtype=dtype)
    h[:count] = hidden[work.rows] if count < len(hidden) else hidden
    return h, torch.nn.functional.pad(work.targets, (0, even - count))


def _column(values: Tensor, r: slice) -> Tensor:
    """(n,) → (R, 1), zero for the rows that fill up."""
    return torch.nn.functional.pad(values, (0, r.stop - r.start - len(values)))[:, None]


def _scale_and_cap(z: Tensor, options: HeadOptions) -> tuple[Tensor, Tensor | None]:
    if options.logit_scale != 1.0:
        z.mul_(options.logit_scale)
    if options.softcap is None:
        return z, None
    bounded = z.div_(options.softcap).tanh_()
    slope = 1 - bounded**2
    return bounded.mul_(options.softcap), slope


def _tile_view(buffer: Tensor, rows: int, width: int) -> Tensor:
    """A tile (rows, width) of a buffer. On a CPU its columns lie together, which its matrix products like better."""
    part = buffer[: rows * width]
    return part.view(rows, width) if buffer.is_cuda else part.view(width, rows).t()


def _rows_that_count(slope: Tensor, p: Tensor, budget: float) -> Tensor:
    """Indices of the rows that are left when as many as the budget allows are left out, the smallest first."""
    least = slope.abs() * (1 - p)
    order = least.argsort()
    spent = (math.sqrt(2) * least[order]).cumsum(0)
    count = int((spent > budget * least.sum()).sum())
    count = min(len(order), math.ceil(count / EVEN_ROWS) * EVEN_ROWS)
    return order[len(order) - count :].sort().values


def tile_shape(
    rows_of_all: int, h: Tensor, weight: Tensor, mixed: bool, weight_learns: bool, all_rows: bool
) -> tuple[int, int]:
    """Rows and columns of the tiles of the (M, V) logits."""
    (rows, dim), vocabulary = h.shape, len(weight)
    size = 6 if mixed else max(h.element_size(), 4)  # the gradient is a narrow copy beside the tile
    share = rows_of_all * vocabulary * size // TILE_SHARE
    tile = min(max(share, TILE_MIN), TILE_MAX) // size
    # A narrow weight is widened block by block, and the sum of its gradient must not pass through the narrow type.
    blocks_of_weight = weight.dtype != h.dtype or (mixed and weight_learns)
    if not blocks_of_weight and not all_rows and tile // vocabulary >= min(rows, THIN):
        height = _even(rows, tile // vocabulary)
        even = height if h.is_cuda else math.ceil(height / EVEN_ROWS) * EVEN_ROWS
        return max(1, min(rows, even)), vocabulary
    # Widened copies: of hidden and its gradient for the whole time, of one block of the weight and its gradient.
    if blocks_of_weight:
        tile = max(tile - 3 * rows * dim, tile // 4)
    return max(rows, 1), _even(vocabulary, tile // max(1, rows + (3 * dim if blocks_of_weight else 0)))


def _even(length: int, largest: int) -> int:
    """The size of the fewest equal pieces of at most `largest`."""
    return max(1, math.ceil(length / math.ceil(max(1, length) / max(1, largest))))


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


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


def _set_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """out = a @ b; the sum inside is never narrower than float32."""
    if out.dtype == a.dtype:
        torch.mm(a, b, out=out)
    else:
        out.copy_(torch.mm(a, b))


def _scale(grad: Tensor, scale: Tensor) -> None:
    """grad *= scale in place. A scale rounded to bfloat16 would be off by up to 0.4 % for every element alike."""
    if grad.dtype == scale.dtype:
        grad.mul_(scale)
        return
    for part in grad.split(max(1, TILE_MIN // scale.element_size() * len(grad) // max(1, grad.numel()))):
        part.copy_(part.to(scale.dtype) * scale)
