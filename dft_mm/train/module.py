"""The model as the engine sees it: tokens and labels in, the summed loss out. The loss head is the model's own output
layer, so that DeepSpeed's hooks on it gather its weight, tied or untied, at every stage.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from dft_mm.batch import IGNORE_INDEX
from dft_mm.config import LossConfig
from dft_mm.loss.head import linear_token_loss


class LossHead(nn.Linear):
    """An output layer that can also return the loss of its logits without holding them."""

    def forward(
        self,
        hidden: Tensor,
        labels: Tensor | None = None,
        losses: Sequence[LossConfig] = (),
        policy: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor, Tensor, Tensor]:
        """hidden (B, T, D), labels (B, T) → loss () and nll, weight, target (M,) of the M supervised tokens.

        `policy` (B, T): number in `losses` of each position's loss; None: the first for all. With several, the M tokens
        come loss by loss.
        """
        if labels is None:
            return F.linear(hidden, self.weight, self.bias)
        targets = labels[:, 1:]
        supervised = targets != IGNORE_INDEX
        hidden, targets = hidden[:, :-1][supervised], targets[supervised]
        kinds = None if policy is None else policy[:, 1:][supervised]
        outs = []
        for number, loss in enumerate(losses if kinds is not None else losses[:1]):
            rows = slice(None) if kinds is None else kinds == number
            outs.append(linear_token_loss(hidden[rows], self.weight, targets[rows], loss, bias=self.bias))
        total = torch.stack([out.loss for out in outs]).sum()
        return total, *(
            torch.cat([getattr(out, name) for out in outs]) for name in ("token_nll", "token_weight", "token_targets")
        )


class Trainable(nn.Module):
    """A causal language model, with or without adapters, whose forward pass ends in the loss."""

    def __init__(self, model: PreTrainedModel | PeftModel) -> None:
        super().__init__()
        self.model = model
        # Changing the class keeps the parameter, its name and its tie to the embedding.
        self.core.lm_head.__class__ = LossHead

    @property
    def core(self) -> PreTrainedModel:
        """The transformers model inside."""
        return self.model.base_model.model if isinstance(self.model, PeftModel) else self.model

    def forward(
        self, labels: Tensor, losses: Sequence[LossConfig], policy: Tensor | None = None, **inputs: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """labels and policy (B, T), `Batch.model_inputs` → the head's tuple; the loss is a float32 sum over supervised
        tokens.
        """
        hidden = self.core.model(**inputs, use_cache=False).last_hidden_state
        return self.core.lm_head(hidden, labels, losses, policy)
