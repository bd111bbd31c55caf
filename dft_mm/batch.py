"""What travels from data to the training step.

Axes: B samples, T positions, P image patches, I images, D patch dimension (1176 = 3 · 2 · 14 · 14).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

IGNORE_INDEX = -100
"""Label of a position that is not learned from."""


@dataclass(frozen=True)
class Example:
    """One rendered conversation."""

    id: str
    source: str
    ids: Tensor
    """(T,) int64 token ids, images expanded."""
    supervised: Tensor
    """(T,) bool: this token is learned."""
    pixel_values: Tensor | None = None
    """(P, D) float32, or None without images."""
    image_grid_thw: Tensor | None = None
    """(I, 3) int64: frames, rows and columns of patches of each image."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch, padded on the right."""

    input_ids: Tensor
    """(B, T) int64."""
    attention_mask: Tensor
    """(B, T) int64, 1 where there is a token, the blank picture's included."""
    labels: Tensor
    """(B, T) int64, aligned with input_ids (nothing is shifted), IGNORE_INDEX where nothing is learned."""
    example_ids: tuple[str, ...]
    tokens: int
    """Real tokens: without padding and blank pictures."""
    mm_token_type_ids: Tensor | None = None
    """(B, T) int64, 1 at image tokens; only for families with vision."""
    pixel_values: Tensor | None = None
    """(P, D) float32."""
    image_grid_thw: Tensor | None = None
    """(I, 3) int64."""

    @property
    def model_inputs(self) -> dict[str, Tensor]:
        """Keyword arguments of the decoder (without the labels)."""
        names = ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @property
    def supervised_tokens(self) -> int:
        """Tokens that the loss counts: the first position of a row has nothing before it to be predicted from."""
        return int((self.labels[:, 1:] != IGNORE_INDEX).sum())

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        moved = {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in vars(self).items()
        }
        return Batch(**moved)
