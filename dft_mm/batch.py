"""What travels from data to the training step.

Axes: B samples, T positions, P image patches, I images, C channels, D bytes of a patch (588 = 3 · 14 · 14).
"""

from collections.abc import Sequence
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
    patches: Tensor | None = None
    """(P, D) uint8, or None without images."""
    image_grid_thw: Tensor | None = None
    """(I, 3) int64: frames, rows and columns of patches of each image."""
    policy: int = 0
    """Number of its loss among those of the run."""
    lost: str | None = None
    """Why its picture is not there any more; nothing of it is supervised then."""
    lost_tokens: int = 0
    """Tokens of it that would be supervised."""


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
    patches: Tensor | None = None
    """(P, D) uint8: an eighth of what the model is given, so that queues and transfers carry little."""
    image_grid_thw: Tensor | None = None
    """(I, 3) int64."""
    image_mean: tuple[float, ...] = ()
    image_std: tuple[float, ...] = ()
    """What the channels are normalised with, C numbers each; there wherever patches are."""
    temporal_patch_size: int = 1
    """Frames of a patch; a picture is repeated to fill them."""

    policy: Tensor | None = None
    """(B, T) uint8: number of each position's loss among those of the run; None: the first for all."""
    lost: tuple[str, ...] = ()
    """Id and reason of each example whose picture is not there any more."""
    lost_tokens: int = 0
    """Tokens of these that would be supervised."""

    @property
    def model_inputs(self) -> dict[str, Tensor]:
        """Keyword arguments of the decoder (without the labels); the pixel values are made here, on the device."""
        names = ("input_ids", "attention_mask", "mm_token_type_ids", "image_grid_thw")
        inputs = {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.patches is not None:
            inputs["pixel_values"] = normalise(
                self.patches, self.image_mean, self.image_std, self.temporal_patch_size
            )
        return inputs

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


def normalise(
    patches: Tensor, image_mean: Sequence[float], image_std: Sequence[float], temporal_patch_size: int
) -> Tensor:
    """(P, D) uint8 → (P, temporal_patch_size · D) float32: what vision towers take, bit by bit the image processor's.

    A row holds channel by channel, and in each the same pixels once a frame.
    """
    mean, std = (patches.new_tensor(numbers, dtype=torch.float32)[:, None] for numbers in (image_mean, image_std))
    # By tensors: CUDA would divide by a plain number as by its rounded reciprocal. The processor multiplies by 1/255 in
    # float64 and rounds, which for each of the 256 bytes is the same.
    values = patches.view(len(patches), len(mean), patches.shape[1] // len(mean)).float()
    values.div_(torch.full_like(mean, 255)).sub_(mean).div_(std)
    return values[:, :, None].expand(-1, -1, temporal_patch_size, -1).flatten(1)
