"""Floating-point operations of a training step, for the share of a GPU's peak that it reaches (MFU).

Counted is what the mathematics needs, whoever computes it: multiplications and additions of matrix products, the real
tokens (no padding), the output layer for supervised tokens only, half of the causal attention's square, nothing that is
computed again in the backward pass. A matrix of n elements costs a token 2 n forward; backward 4 n where it learns, 2 n
where it is frozen and something before it learns, nothing where nothing before it does: 6 n, 4 n and 2 n in all.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "4090": 165e12}
"""Dense bfloat16 operations a second by the makers' data sheets, by a part of the device's name."""


class Shape(NamedTuple):
    """What of an example decides the work."""

    tokens: int
    """Pictures included."""
    supervised: int
    pictures: Sequence[tuple[int, int, int]] = ()
    """Frames, rows and columns of patches of each."""


def peak(device: torch.device) -> float | None:
    """Operations a second; None for a device that is not listed."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((value for part, value in PEAKS.items() if part in name), None)


def step_operations(model: PreTrainedModel, shapes: Sequence[Shape]) -> dict[str, float]:
    """Part of the model → operations of forward and backward over the examples."""
    text = model.config.get_text_config()
    language = getattr(model.model, "language_model", model.model)
    tower = getattr(model.model, "visual", None)
    tokens = sum(shape.tokens for shape in shapes)
    before = learns(language.embed_tokens)
    found: dict[str, float] = {}
    if tower is not None:
        pictures = [picture for shape in shapes for picture in shape.pictures]
        patches = sum(frames * rows * columns for frames, rows, columns in pictures)
        learning, merging = learns(tower.patch_embed) or learns(tower.blocks), learns(tower.merger)
        pixels = 4 if learning else 2  # nobody wants the gradient of pixels
        found["vision"] = patches * (pixels * matrices(tower.patch_embed) + factor(learning) * matrices(tower.blocks))
        found["vision attention"] = factor(learning) * _tower_attention(tower.config, pictures)
        found["projector"] = factor(merging, learning) * matrices(tower.merger) * patches / tower.spatial_merge_unit
        before = before or learning or merging
    learning = learns(language.layers)
    width = text.num_attention_heads * (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    squares = sum(shape.tokens**2 for shape in shapes)
    found["language"] = _products(language.layers, before) * tokens
    # Two products, of queries with keys and of weights with values, each half of the square.
    found["attention"] = factor(learning or before) * text.num_hidden_layers * width * squares
    head = model.get_output_embeddings().weight
    learning, before = head.requires_grad, before or learning
    found["head"] = factor(learning, before) * head.numel() * sum(shape.supervised for shape in shapes)
    return found


def factor(learning: bool, before: bool = False) -> int:
    """Operations of one multiply-and-add over forward and backward; `before`: something before it learns."""
    return 6 if learning else 4 if before else 2


def _products(module: nn.Module, before: bool) -> int:
    """Operations that a token costs over forward and backward; beside what learns, frozen weights pass gradients on."""
    before = before or learns(module)
    return sum(
        factor(parameter.requires_grad, before) * parameter.numel()
        for parameter in module.parameters()
        if parameter.dim() > 1
    )


def matrices(module: nn.Module) -> int:
    """Elements of all weights that rows are multiplied with."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.dim() > 1)


def learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _tower_attention(config: Any, pictures: Sequence[tuple[int, int, int]]) -> int:
    """Multiply-and-adds of the two products: of whole frames in some blocks, of windows in the others."""
    side, full = config.window_size // config.patch_size, len(config.fullatt_block_indexes)
    squares = 0
    for frames, rows, columns in pictures:
        windows = _squares(rows, side) * _squares(columns, side)
        squares += frames * (full * (rows * columns) ** 2 + (config.depth - full) * windows)
    return 2 * config.hidden_size * squares


def _squares(length: int, side: int) -> int:
    """Sum of the squares of the pieces that windows cut a side of a picture into."""
    whole, rest = divmod(length, side)
    return whole * side**2 + rest**2
