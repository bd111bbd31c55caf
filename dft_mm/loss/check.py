"""The head against the plain formula, on a few rows of a real batch: whether a kernel computes on this device what it
computed where it was tested.
"""

import torch
from torch import Tensor

from dft_mm.loss.family import Objective
from dft_mm.loss.head import HeadOptions, Reference, supervised_loss
from dft_mm.loss.tokens import token_loss

_ROWS = 8
_COLUMNS = 16384
_LIMITS = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}


class HeadDiffersError(RuntimeError):
    """The head's loss or gradient is not the formula's."""


def check_head(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor,
    targets: Tensor,
    objective: Objective,
    kinds: Tensor | None = None,
    sequences: Tensor | None = None,
    reference: Reference | None = None,
    options: HeadOptions | None = None,
) -> float:
    """The larger relative error of loss and gradient for hidden on up to 8 of the rows, all as for `supervised_loss`.

    Raises HeadDiffersError where it is more than the arithmetic of the type explains.
    """
    options = options or HeadOptions()
    picked = torch.linspace(0, len(rows) - 1, min(_ROWS, len(rows)), device=rows.device).long()
    chosen, count = rows[picked], len(picked)
    targets, weight = targets[picked], weight.detach()
    kinds = None if kinds is None else kinds[picked]
    sequences = None if sequences is None else torch.unique(sequences[picked], return_inverse=True)[1]
    if reference is not None:
        reference = Reference(reference.hidden[chosen], reference.weight, reference.bias)
    exact = HeadOptions(options.logit_scale, options.softcap)
    with torch.enable_grad():
        h = hidden[chosen].detach().requires_grad_()
        out = supervised_loss(
            h, weight, bias, torch.arange(count, device=h.device), targets, objective, kinds, sequences, None,
            reference, exact,
        )  # fmt: skip
        (gradient,) = torch.autograd.grad(out.loss, h)
        raw = _product(h.detach(), weight, bias).requires_grad_()
        logits = _scaled(raw, options)
        ref_logits = None if reference is None else _scaled(_product(*reference), options)
        formula = logits.new_zeros(())
        for number in range(len(objective.losses)):
            of_loss = slice(None) if kinds is None else kinds == number
            formula = formula + token_loss(
                logits[of_loss], targets[of_loss], objective.only(number),
                None if ref_logits is None else ref_logits[of_loss],
                None if sequences is None else sequences[of_loss],
            ).loss.sum()  # fmt: skip
            if kinds is None:
                break
        (grad_logits,) = torch.autograd.grad(formula, raw)
    truth = sum(grad_logits[:, c] @ weight[c].to(raw.dtype) for c in _columns(weight))
    if not formula.isfinite() or not truth.isfinite().all():
        return float("nan")  # the step itself stops for that, and names its examples
    limit = _LIMITS[torch.promote_types(hidden.dtype, weight.dtype)]
    # A row of p = 1 has p - 1 for a gradient, which is rounding alone, times the weight's rows.
    rounding = 1e-5 * count**0.5 * float(weight[targets].to(raw.dtype).norm(dim=1).max())
    apart, norm = float((gradient.to(raw.dtype) - truth).norm()), float(truth.norm())
    loss_apart, loss = float((out.loss - formula).detach().abs()), float(formula.detach().abs())
    if apart > limit * norm + rounding or loss_apart > limit * loss + 1e-5 * count:
        raise HeadDiffersError(
            f"the loss head does not compute {objective.name} as its formula does: on {count} rows the loss is off by "
            f"{loss_apart:.2e} of {loss:.2e}, the gradient by {apart:.2e} of {norm:.2e}, more than {limit:g}. A kernel "
            "is broken on this device or with these versions; nothing was learned"
        )
    return max(apart / max(norm, 1e-30), loss_apart / max(loss, 1e-30))


def _columns(weight: Tensor) -> list[slice]:
    return [slice(start, start + _COLUMNS) for start in range(0, len(weight), _COLUMNS)]


def _product(h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Logits (R, V) in float32 or wider; the weight is widened piece by piece."""
    dtype = torch.promote_types(torch.promote_types(h.dtype, weight.dtype), torch.float32)
    z = torch.cat([h.to(dtype) @ weight[c].detach().to(dtype).t() for c in _columns(weight)], dim=1)
    return z if bias is None else z + bias.detach()


def _scaled(z: Tensor, options: HeadOptions) -> Tensor:
    z = z * options.logit_scale
    return z if options.softcap is None else options.softcap * torch.tanh(z / options.softcap)
