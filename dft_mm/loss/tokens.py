"""Token losses by name: cross-entropy with a detached weight a token. This is the readable definition; faster forms
must give the same numbers.

    loss_t = -sg(w(p_t)) · log p_t,    p_t = softmax(logits_t)[target_t],    sg: no gradient passes
"""

import difflib
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dft_mm.batch import IGNORE_INDEX
from dft_mm.config import LossConfig

Weight = Callable[[Tensor], Tensor]
"""Detached target probabilities p (M,) → weights (M,)."""

WEIGHTS: dict[str, Weight] = {
    "sft": torch.ones_like,
    # Dynamic Fine-Tuning, arXiv 2508.05629, eq. 9: the gradient of -sg(p) log p is -∇p.
    "dft": lambda p: p,
}


class TokenLoss(NamedTuple):
    """Values a token, in the shape of the targets; zero where nothing is learned."""

    loss: Tensor
    """weight · nll; carries the gradient."""
    nll: Tensor
    """Plain cross-entropy, -log p; carries its own gradient."""
    weight: Tensor
    """w(p), detached."""


def token_loss(logits: Tensor, targets: Tensor, loss: str | LossConfig) -> TokenLoss:
    """The loss of every token. Nothing is shifted, averaged or summed.

    Args:
        logits: (..., V), of any floating type; arithmetic is float32, float64 for float64.
        targets: (...) integers in [0, V), aligned with logits; IGNORE_INDEX where nothing is learned.
        loss: a name of `WEIGHTS`, or the recipe's section.

    Raises:
        ValueError: unknown loss, shapes that do not match, or a target outside the vocabulary.
    """
    weigh = weight_function(loss)
    if logits.ndim == 0 or logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} do not match: targets have one value "
            "where logits have a row over the vocabulary"
        )
    vocabulary = logits.shape[-1]
    # Rows that are ignored never meet the softmax, so not even a NaN in them reaches a gradient.
    rows, kept = supervised_rows(targets.reshape(-1), vocabulary)
    logits = logits.reshape(targets.numel(), vocabulary)[rows]
    log_p = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)
    nll = -log_p.gather(1, kept[:, None]).squeeze(1)
    weight = weigh(torch.exp(-nll.detach()))

    def in_place(values: Tensor) -> Tensor:
        return values.new_zeros(targets.numel()).index_copy(0, rows, values).view(targets.shape)

    return TokenLoss(in_place(weight * nll), in_place(nll), in_place(weight))


def weight_function(loss: str | LossConfig) -> Weight:
    """The weight that belongs to a loss; raises ValueError with the known names for an unknown one."""
    name = loss if isinstance(loss, str) else loss.name
    if name not in WEIGHTS:
        near = difflib.get_close_matches(name, WEIGHTS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown loss {name!r}, known are {', '.join(WEIGHTS)}{hint}")
    return WEIGHTS[name]


def supervised_rows(targets: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    """targets (N,) → indices (M,) of the rows that are learned, in order, and their targets (M,) int64.

    Raises ValueError for a target that is neither IGNORE_INDEX nor in [0, vocabulary).
    """
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise ValueError(f"targets are token ids, so integers; these are {targets.dtype}")
    rows = (targets != IGNORE_INDEX).nonzero().squeeze(1)
    kept = targets[rows].long()
    if len(kept):
        low, high = torch.stack(kept.aminmax()).tolist()
        if low < 0 or high >= vocabulary:
            raise ValueError(
                f"target {low if low < 0 else high} is outside [0, {vocabulary}), the vocabulary of the logits; "
                f"{IGNORE_INDEX} marks a token that is not learned"
            )
    return rows, kept
