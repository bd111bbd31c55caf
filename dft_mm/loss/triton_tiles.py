"""`tiles.fold` and `tiles.gradient` for CUDA: each reads a tile of logits once, where torch's operations go over it six
times.

Two kernels and not one, because the weight of a token stands between softmax and gradient, and is computed from a few
numbers a row by the one table of losses (`family.FORMS`).

Axes: R rows of the tile, C columns of the vocabulary in it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dft_mm.loss.tiles import Sums, keep_largest

_BLOCK = 4096


@triton.jit
def _fold_kernel(
    z_ptr, row_stride, column_stride, targets_ptr, top_ptr, total_ptr, at_target_ptr, moment_ptr, start, width,
    MOMENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    z_ptr += row * row_stride
    top = tl.load(top_ptr + row)
    total = tl.load(total_ptr + row)
    moment = total * 0.0
    if MOMENT:
        moment = tl.load(moment_ptr + row)
    for at in range(0, width, BLOCK):
        columns = at + tl.arange(0, BLOCK).to(tl.int64)
        z = tl.load(z_ptr + columns * column_stride, mask=columns < width, other=-float("inf"))
        new_top = tl.maximum(top, tl.max(z, axis=0))
        exponential = tl.exp(z - new_top)
        shrunk = tl.exp(top - new_top)
        if MOMENT:
            # What was folded in before is measured from the old top; 0 · -inf of the masked columns is left out.
            shifted = tl.where(exponential > 0, z - new_top, 0.0)
            moment = shrunk * (moment + (top - new_top) * total) + tl.sum(exponential * shifted, axis=0)
        total = total * shrunk + tl.sum(exponential, axis=0)
        top = new_top
    tl.store(top_ptr + row, top)
    tl.store(total_ptr + row, total)
    if MOMENT:
        tl.store(moment_ptr + row, moment)
    local = tl.load(targets_ptr + row) - start
    if (local >= 0) & (local < width):
        tl.store(at_target_ptr + row, tl.load(z_ptr + local * column_stride))


@triton.jit
def _gradient_kernel(
    z_ptr, row_stride, column_stride, out_ptr, out_row_stride, out_column_stride, targets_ptr, top_ptr, factor_ptr,
    slope_ptr, start, width, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
    inside = columns < width
    z = tl.load(z_ptr + row * row_stride + columns * column_stride, mask=inside, other=-float("inf"))
    gradient = tl.exp(z - tl.load(top_ptr + row)) * tl.load(factor_ptr + row)
    is_target = columns == tl.load(targets_ptr + row) - start
    gradient -= tl.where(is_target, tl.load(slope_ptr + row), 0.0)
    out = out_ptr + row * out_row_stride + columns * out_column_stride
    tl.store(out, gradient.to(out_ptr.dtype.element_ty), mask=inside)


def fold(z: Tensor, sums: Sums, targets: Tensor, start: int, top_k: int = 0, model_z: Tensor | None = None) -> None:
    """As `tiles.fold`, but z keeps its logits. There is no reference: model_z is None."""
    assert model_z is None
    keep_largest(z, sums, top_k)
    _fold_kernel[(len(z),)](
        z, *z.stride(), targets, sums.top, sums.total, sums.at_target, sums.top if sums.moment is None else sums.moment,
        start, z.shape[1], MOMENT=sums.moment is not None, BLOCK=_BLOCK,
    )  # fmt: skip


def gradient(
    z: Tensor,
    sums: Sums,
    slope: Tensor,
    targets: Tensor,
    start: int,
    scale: Tensor,
    fresh: bool,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """As `tiles.gradient`; z holds logits whatever `fresh` says."""
    out = z if dtype is None else torch.empty_like(z, dtype=dtype)
    _gradient_kernel[(len(z), triton.cdiv(z.shape[1], _BLOCK))](
        z, *z.stride(), out, *out.stride(), targets, sums.top, scale / sums.total, slope.contiguous(),
        start, z.shape[1], BLOCK=_BLOCK,
    )  # fmt: skip
    return out
