"""A module → its DeepSpeed engine, with AdamW and with activations that are recomputed."""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint
from transformers import GradientCheckpointingLayer, PreTrainedModel

from dft_mm.config import Recipe
from dft_mm.families import Family, part_of
from dft_mm.model.freeze import parameter_groups
from dft_mm.train.module import Trainable


def checkpoint_activations(model: PreTrainedModel, family: Family, config: dict[str, Any]) -> None:
    """Recompute each layer's activations in the backward pass from its input (arXiv 1604.06174), which waits on the CPU
    where the DeepSpeed config says so. Called when it is known what learns.
    """
    on_cpu = config.get("activation_checkpointing", {}).get("cpu_checkpointing")
    # transformers' public switch knows torch's function only, and makes embeddings ask for gradients that nobody needs.
    model._set_gradient_checkpointing(
        enable=True, gradient_checkpointing_func=_checkpoint_on_cpu if on_cpu else _checkpoint
    )
    for name, layer in model.named_modules():
        # No gradient passes through a vision tower that does not learn, so none of its inputs is to be kept.
        if isinstance(layer, GradientCheckpointingLayer) and part_of(family, f"{name}.") == "vision":
            layer.gradient_checkpointing = any(parameter.requires_grad for parameter in layer.parameters())


def _checkpoint(layer: Callable[..., Any], *inputs: Any) -> Any:
    return checkpoint(layer, *inputs, use_reentrant=False)


def _checkpoint_on_cpu(layer: Callable[..., Any], *inputs: Any) -> Any:
    """The same with inputs[0], the hidden states, on the CPU in between.

    DeepSpeed's own function empties tensors in place, keeps the inputs of layers without gradients for ever, and on the
    CPU loses them (0.19.8); this one is torch's.
    """
    with save_on_cpu(pin_memory=inputs[0].is_cuda):
        return _checkpoint(layer, *inputs)


def build_engine(module: Trainable, family: Family, recipe: Recipe, config: dict[str, Any]) -> Any:
    """A DeepSpeedEngine around the module with AdamW (arXiv 1711.05101) over its learning parameters."""
    import deepspeed

    groups = parameter_groups(module.model, family, recipe.optim)
    arguments = {"lr": recipe.optim.lr, "betas": recipe.optim.betas, "eps": recipe.optim.eps}
    offload = config.get("zero_optimization", {}).get("offload_optimizer", {})
    if offload.get("device", "none") != "none":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        optimizer: torch.optim.Optimizer = DeepSpeedCPUAdam(groups, adamw_mode=True, **arguments)
    else:
        optimizer = torch.optim.AdamW(groups, fused=True, **arguments)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
    return engine
