"""The module that a recipe trains: a model with its loss head, frozen parts, adapters and reference."""

from typing import Any

import torch
from transformers import PreTrainedModel

from dft_mm.config import Recipe
from dft_mm.errors import InputError
from dft_mm.families import Family
from dft_mm.loss.family import FORMS
from dft_mm.model.freeze import freeze
from dft_mm.model.load import load_model
from dft_mm.model.lora import add_lora
from dft_mm.train.deepspeed_config import zero_stage
from dft_mm.train.engine import checkpoint_activations
from dft_mm.train.feed import losses_of
from dft_mm.train.module import Trainable


def build_module(recipe: Recipe, family: Family, config: dict[str, Any]) -> Trainable:
    """The module with the weights of the recipe's model, in training mode."""
    partition = config if zero_stage(config) == 3 else None
    quantize = recipe.model.lora.quantize if recipe.model.lora else None

    def load(path: str, **held: Any) -> PreTrainedModel:
        dtype, attention = recipe.model.dtype, recipe.model.attention
        return load_model(path, dtype, attention, partition, packed=recipe.data.pack, **held)

    path = reference_path(recipe)
    model, reference = load(recipe.model.path, quantize=quantize), load(path) if path else None
    torch.manual_seed(recipe.seed)  # adapters start from random numbers
    return assemble(model, reference, recipe, family, config)


def assemble(
    model: Any, reference: PreTrainedModel | None, recipe: Recipe, family: Family, config: dict[str, Any]
) -> Trainable:
    """The module around a model that is there, and the one that its losses compare with."""
    if recipe.model.lora:
        model = add_lora(model, family, recipe.model.lora)
    if recipe.model.freeze:
        freeze(model, family, recipe.model.freeze)
    wanted = {"entropy": recipe.train.log_entropy, "skip_budget": recipe.train.skip_budget}
    module = Trainable(model, reference, **wanted).train()
    if recipe.model.gradient_checkpointing:
        checkpoint_activations(module.core, family, config)
    return module


def reference_path(recipe: Recipe) -> str | None:
    """The model that the recipe's losses compare with; None where none does, or adapters can be taken off for it."""
    losses = [loss for loss in losses_of(recipe) if FORMS[loss.name].needs_reference]
    paths = {loss.reference for loss in losses}
    if len(paths) > 1:
        named = ", ".join(sorted(str(path or recipe.model.path) for path in paths))
        raise InputError(f"loss.reference: all losses of a run share one reference; these have {named}")
    if not losses or (paths == {None} and recipe.model.lora):
        return None
    return paths.pop() or recipe.model.path
