"""The losses for other people's trainers: `Trainer(..., compute_loss_func=loss_func("dft"))`, also of TRL."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dft_mm.batch import IGNORE_INDEX
from dft_mm.config import LossConfig
from dft_mm.loss.family import Objective
from dft_mm.loss.tokens import token_loss


def loss_func(loss: str | LossConfig) -> Callable[..., Tensor]:
    """A `compute_loss_func` for transformers.Trainer, which calls it as (outputs, labels, num_items_in_batch=…).

    Of a causal language model: position t is scored on label t + 1. The sum is divided by `num_items_in_batch`, the
    supervised tokens of all micro-batches of the step (the trainer counts them, over all ranks too, and undoes the
    averaging over ranks itself); without it, by the supervised tokens at hand.

    Raises ValueError for an unknown loss at once, and for missing labels or logits when called: without them another
    loss would run under this one's name.
    """
    objective = Objective(loss)

    def compute(outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
        if logits is None:
            raise ValueError(
                "the model's output has no logits to compute the loss from; switch off what leaves them out "
                "(a fused loss such as use_liger_kernel, return_dict=False)"
            )
        if labels is None:
            raise ValueError("the batch has no labels to compute the loss from; the collator must supply `labels`")
        targets = labels[..., 1:].to(logits.device)
        out = token_loss(logits[..., :-1, :], targets, objective)
        if num_items_in_batch is None:
            count = (targets != IGNORE_INDEX).sum()
        else:
            # torch.nn.DataParallel gets one copy of the count a device, and the trainer multiplies by their number.
            count = torch.as_tensor(num_items_in_batch, device=logits.device).sum()
        return out.loss.sum() / count.clamp(min=1)

    return compute
