"""The losses for other people's trainers: `Trainer(..., compute_loss_func=loss_func("dft"))`, also of TRL."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dft_mm.batch import IGNORE_INDEX
from dft_mm.config import LossConfig
from dft_mm.loss.family import FORMS, Objective, config_of
from dft_mm.loss.tokens import token_loss


def loss_func(loss: str | LossConfig, step: Callable[[], int] | None = None) -> Callable[..., Tensor]:
    """A `compute_loss_func` for transformers.Trainer, which calls it as (outputs, labels, num_items_in_batch=…).

    Of a causal language model: position t is scored on label t + 1. The sum is divided by `num_items_in_batch`, the
    supervised tokens of all micro-batches of the step (the trainer counts them, over all ranks too, and undoes the
    averaging over ranks itself); without it, by the supervised tokens at hand. For dft_sequence a row of the batch is
    one answer, so rows must not be packed.

    Args:
        loss: a name of `family.FORMS`, or the recipe's section.
        step: tells the step under way, from 1, to a loss with warmup_steps or ramp_steps:
            `lambda: trainer.state.global_step + 1`.

    Raises:
        ValueError: at once for an unknown loss, for one that compares with a reference model (a trainer hands no
            reference over), and for one that sets in over steps without `step`; for missing labels or logits when
            called: without them another loss would run under this one's name.
    """
    config = config_of(loss)
    Objective(config, 1 if step else None)
    if FORMS[config.name].needs_reference:
        raise ValueError(
            f"loss {config.name} compares with a reference model, which a trainer does not hand over to "
            "compute_loss_func; use `dft-mm train`, or token_loss(…, ref_logits=…) in a trainer of your own"
        )

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
        out = token_loss(logits[..., :-1, :], targets, config, step=step() if step else None)
        if num_items_in_batch is None:
            count = (targets != IGNORE_INDEX).sum()
        else:
            # torch.nn.DataParallel gets one copy of the count a device, and the trainer multiplies by their number.
            count = torch.as_tensor(num_items_in_batch, device=logits.device).sum()
        return out.loss.sum() / count.clamp(min=1)

    return compute
