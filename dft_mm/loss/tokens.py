"""The token losses on logits. This is the readable definition; faster forms must give the same numbers.

    loss_t = sg(w_t) · nll_t + penalty_t + λ · KL(reference_t || model_t),    nll_t = -log softmax(logits_t)[target_t]
"""

from typing import NamedTuple

import torch
from torch import Tensor

from dft_mm.batch import IGNORE_INDEX
from dft_mm.config import LossConfig
from dft_mm.loss.family import Objective, Tokens


class TokenLoss(NamedTuple):
    """Values a token, in the shape of the targets; zero where nothing is learned."""

    loss: Tensor
    """weight · nll, and what the loss adds to it; carries the gradient."""
    nll: Tensor
    """Plain cross-entropy, -log p; carries its own gradient."""
    weight: Tensor
    """w, detached."""


def token_loss(
    logits: Tensor,
    targets: Tensor,
    loss: str | LossConfig | Objective,
    ref_logits: Tensor | None = None,
    sequences: Tensor | None = None,
    step: int | None = None,
) -> TokenLoss:
    """The loss of every token. Nothing is shifted, averaged or summed.

    Args:
        logits: (..., V), of any floating type; arithmetic is float32, float64 for float64.
        targets: (...) integers in [0, V), aligned with logits; IGNORE_INDEX where nothing is learned.
        loss: a name of `family.FORMS`, or the recipe's section.
        ref_logits: (..., V) of the reference, for losses that have one (asft, iw_sft).
        sequences: (...) integers, equal within an answer, for dft_sequence; default: one answer a row (last axis).
        step: the step, from 1, for a loss with warmup_steps or ramp_steps.

    Raises:
        ValueError: unknown loss, a missing reference or step, shapes that do not match, or a target outside the
            vocabulary.
    """
    objective = loss if isinstance(loss, Objective) else Objective(loss, step)
    if logits.ndim == 0 or logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} do not match: targets have one value "
            "where logits have a row over the vocabulary"
        )
    if ref_logits is not None and ref_logits.shape != logits.shape:
        raise ValueError(f"ref_logits {tuple(ref_logits.shape)} are not of the shape of logits {tuple(logits.shape)}")
    objective.check_inputs(ref_logits, targets)
    vocabulary = logits.shape[-1]
    # Rows that are ignored never meet the softmax, so not even a NaN in them reaches a gradient.
    rows, kept = supervised_rows(targets.reshape(-1), vocabulary)
    log_p = _log_softmax(logits, rows)
    nll = -log_p.gather(1, kept[:, None]).squeeze(1)
    top = log_p.detach().topk(min(objective.top_k, vocabulary), dim=1).values if objective.top_k else None
    ref_log_p = _log_softmax(ref_logits.detach(), rows) if objective.needs_reference else None
    ref_nll = -ref_log_p.gather(1, kept[:, None]).squeeze(1) if objective.needs_reference else None
    answers = answers_of(targets, sequences, rows) if objective.by_sequence else None
    weighted = objective(Tokens(nll.detach(), top, ref_nll, answers))
    # Of the value only its slope in nll is differentiated: the weight is a constant.
    value = weighted.value + weighted.slope * (nll - nll.detach())
    if objective.is_anchored:
        value = value + weighted.anchor * torch.nn.functional.kl_div(
            log_p, ref_log_p, reduction="none", log_target=True
        ).sum(1)

    def in_place(values: Tensor) -> Tensor:
        return values.new_zeros(targets.numel()).index_copy(0, rows, values).view(targets.shape)

    return TokenLoss(in_place(value), in_place(nll), in_place(weighted.weight))


def _log_softmax(logits: Tensor, rows: Tensor) -> Tensor:
    """(..., V) → (M, V) of the rows, in float32 or wider."""
    kept = logits.reshape(-1, logits.shape[-1])[rows]
    return torch.log_softmax(kept.to(torch.promote_types(kept.dtype, torch.float32)), dim=-1)


def answers_of(targets: Tensor, sequences: Tensor | None, rows: Tensor) -> Tensor:
    """(M,) int64 in [0, M): number of each supervised row's answer; without `sequences`, the targets along the last
    axis are one answer.
    """
    if sequences is None:
        length = targets.shape[-1] if targets.ndim else 1
        of_all = torch.arange(targets.numel(), device=targets.device) // max(1, length)
    elif sequences.shape != targets.shape:
        raise ValueError(f"sequences {tuple(sequences.shape)} are not of the shape of targets {tuple(targets.shape)}")
    else:
        of_all = sequences.reshape(-1)
    return torch.unique(of_all[rows], return_inverse=True)[1]


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
