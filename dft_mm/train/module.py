"""The model as the engine sees it: tokens and labels in, the summed loss out. The loss head is the model's own output
layer, so that DeepSpeed's hooks on it gather its weight, tied or untied, at every stage.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from dft_mm.dist import log
from dft_mm.loss.check import check_head
from dft_mm.loss.family import Objective
from dft_mm.loss.head import HeadOptions, Reference, supervised_loss, tile_functions
from dft_mm.model.lora import has_adapters

if TYPE_CHECKING:
    from peft import PeftModel

T = TypeVar("T")


class LossHead(nn.Linear):
    """An output layer that can also return the loss of its logits without holding them."""

    options = HeadOptions()
    checked = False
    """Whether the first batch has shown that the head computes the formula on this device."""

    def forward(
        self,
        hidden: Tensor,
        rows: Tensor | None = None,
        targets: Tensor | None = None,
        objective: Objective | None = None,
        kinds: Tensor | None = None,
        sequences: Tensor | None = None,
        reference: Reference | Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """hidden (B, T, D) → loss () and nll, weight, entropy, of the M supervised tokens, and how many were skipped.

        Args:
            rows, targets, sequences: `Batch`'s (M,); without them the logits are returned, as by any output layer.
            kinds: (M,) number of each token's loss in the objective; None: the first for all.
            reference: its hidden states (B · T, D) and output layer, where the objective compares with one; hidden
                states alone go through this layer.
        """
        if rows is None:
            return F.linear(hidden, self.weight, self.bias)
        flat = hidden.reshape(-1, hidden.shape[-1])
        of_answers = sequences if objective.by_sequence else None
        if isinstance(reference, Tensor):
            reference = Reference(reference, self.weight.detach(), self.bias)
        if not self.checked and len(rows):
            self._check(flat, rows, targets, objective, kinds, of_answers, reference)
        out = supervised_loss(
            flat, self.weight, self.bias, rows, targets, objective, kinds, of_answers, None, reference, self.options
        )
        return out.loss, out.token_nll, out.token_weight, out.token_entropy, out.skipped


    def _check(self, hidden: Tensor, rows: Tensor, targets: Tensor, objective: Objective, *others: Any) -> None:
        self.checked = True
        error = check_head(hidden, self.weight, self.bias, rows, targets, objective, *others, self.options)
        log.info(
            "loss head: %s on %s, %s, vocabulary %d; %s agrees with its formula to %.0e on the first rows",
            tile_functions(hidden.device, objective).__name__.rsplit(".", 1)[-1], hidden.device.type,
            str(self.weight.dtype).removeprefix("torch."), len(self.weight), objective.name, error,
        )  # fmt: skip


class ReferenceHead(nn.Linear):
    """An output layer that lends its weight, which under ZeRO-3 is whole only while the layer runs."""

    def forward(self, use: Callable[[Tensor, Tensor | None], T]) -> T:
        return use(self.weight, self.bias)


class Trainable(nn.Module):
    """A causal language model, with or without adapters, whose forward pass ends in the loss.

    Args:
        model: what is trained.
        reference: a frozen model that losses compare with; None: with adapters the model without them.
        entropy, skip_budget: of `HeadOptions`.
    """

    def __init__(
        self,
        model: "PreTrainedModel | PeftModel",
        reference: PreTrainedModel | None = None,
        entropy: bool = False,
        skip_budget: float = 0.0,
    ) -> None:
        super().__init__()
        self.model = model
        # Changing the class keeps the parameter, its name and its tie to the embedding.
        self.core.lm_head.__class__ = LossHead
        self.core.lm_head.options = HeadOptions(*_logit_numbers(self.core), entropy, skip_budget)
        self.reference = reference
        if reference is not None:
            reference.requires_grad_(False)
            reference.lm_head.__class__ = ReferenceHead

    @property
    def core(self) -> PreTrainedModel:
        """The transformers model inside."""
        return self.model.base_model.model if has_adapters(self.model) else self.model

    def forward(
        self,
        rows: Tensor,
        targets: Tensor,
        objective: Objective,
        kinds: Tensor | None = None,
        sequences: Tensor | None = None,
        **inputs: Any,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """`Batch`'s rows, targets, policy, sequences and model_inputs → the head's tuple; its loss is a float32 sum."""
        # First, so that its activations are gone before the model's are made.
        compared = self._reference_hidden(inputs) if objective.needs_reference else None
        hidden = self.core.model(**inputs, use_cache=False).last_hidden_state
        head = self.core.lm_head
        if self.reference is None:
            return head(hidden, rows, targets, objective, kinds, sequences, compared)
        if compared is None:
            return head(hidden, rows, targets, objective, kinds, sequences)

        def loss(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
            return head(hidden, rows, targets, objective, kinds, sequences, Reference(compared, weight, bias))

        return self.reference.lm_head(loss)

    @torch.no_grad()
    def _reference_hidden(self, inputs: dict[str, Any]) -> Tensor:
        """(B · T, D): the last hidden states of the reference."""
        if self.reference is not None:
            hidden = self.reference.model(**inputs, use_cache=False).last_hidden_state
        elif has_adapters(self.model):
            with self.model.disable_adapter():
                hidden = self.core.model(**inputs, use_cache=False).last_hidden_state
        else:
            raise ValueError("the loss compares with a reference model, and there is none")
        return hidden.reshape(-1, hidden.shape[-1])


def _logit_numbers(model: PreTrainedModel) -> tuple[float, float | None]:
    """Scale and cap of a model's logits, under the names that configs of transformers have for them."""
    config = model.config.get_text_config()
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    return scale, getattr(config, "final_logit_softcapping", None)
