"""Which parameters learn, and at which rate."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from dft_mm.config import OptimConfig, Part
from dft_mm.errors import InputError
from dft_mm.families import Family, part_of

_ADAPTER_PREFIX = "base_model.model."  # what peft puts before every name


def check_parts(parts: Sequence[Part], family: Family, key: str) -> None:
    """Raise InputError, naming the recipe's key, for a part that the family does not have."""
    for part in parts:
        if part not in family.parts:
            raise InputError(f"{key}: {family.name} has no part {part!r}; it has {', '.join(family.parts)}")


def freeze(model: nn.Module, family: Family, parts: Sequence[Part]) -> None:
    """Switch off the gradients of the named parts.

    Raises InputError for a part that the family does not have, or when nothing is left to learn.
    """
    check_parts(parts, family, "model.freeze")
    for name, parameter in model.named_parameters():
        if part_of(family, name.removeprefix(_ADAPTER_PREFIX)) in parts:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(f"model.freeze: {', '.join(parts)} leaves nothing to learn")


def parameter_groups(model: nn.Module, family: Family, optim: OptimConfig) -> list[dict[str, Any]]:
    """AdamW groups of the learning parameters: one for each peak rate and decay.

    `peak_lr` is the highest rate of the group's schedule. Vectors (norms, biases) are not decayed.
    """
    rates = {"vision": optim.vision_lr or optim.lr, "projector": optim.projector_lr or optim.lr}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            lr = rates.get(part_of(family, name.removeprefix(_ADAPTER_PREFIX)), optim.lr)
            # Under ZeRO-3 a parameter is a flat shard; its real shape is ds_shape.
            matrix = len(getattr(parameter, "ds_shape", parameter.shape)) > 1
            groups.setdefault((lr, optim.weight_decay if matrix else 0.0), []).append(parameter)
    return [
        {"params": parameters, "lr": lr, "peak_lr": lr, "weight_decay": decay}
        for (lr, decay), parameters in groups.items()
    ]
