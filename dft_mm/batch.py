"""What travels from data to the training step.

Axes: B samples, T positions, P image patches, I images, C channels, D bytes of a patch (588 = 3 · 14 · 14).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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
    """One micro-batch: examples padded on the right, or packed one behind the other into one row."""

    input_ids: Tensor
    """(B, T) int64; B is 1 when packed."""
    rows: Tensor
    """(M,) int64, rising: positions of the flattened (B · T) hidden states that predict a supervised token."""
    targets: Tensor
    """(M,) int64: the token that each of them predicts. Found on the CPU, where it costs no synchronisation."""
    sequences: Tensor
    """(M,) int64: number of the example that each belongs to, among those with supervised tokens."""
    example_ids: tuple[str, ...]
    tokens: int
    """Real tokens: without padding and blank pictures."""
    attention_mask: Tensor | None = None
    """(B, T) int64, 1 where there is a token, the blank picture's included; None when packed."""
    position_ids: Tensor | None = None
    """Positions, where the model is not to number them itself: (3, B, T) M-RoPE padded, (4, 1, T) with text positions
    before them packed; (1, T) of packed text models."""
    cu_seqlens: Tensor | None = None
    """(S + 1,) int32: where the packed segments begin and end; None when padded."""
    seqlens: tuple[int, ...] = ()
    """Lengths of the packed segments."""
    patches: Tensor | None = None
    """(P, D) uint8: an eighth of what the model is given, so that queues and transfers carry little."""
    image_grid_thw: Tensor | None = None
    """(I, 3) int64. It stays on the CPU, where reading it costs no synchronisation."""
    vision_layout: Mapping[str, Tensor | int] = field(default_factory=dict)
    """What the vision tower would otherwise work out from the grids, under the names that the model takes."""
    image_mean: Tensor | None = None
    image_std: Tensor | None = None
    """(C,) float32 that the channels are normalised with; there wherever patches are, and on their device."""
    temporal_patch_size: int = 1
    """Frames of a patch; a picture is repeated to fill them."""

    policy: Tensor | None = None
    """(M,) uint8: number of each target's loss among those of the run; None: the first for all."""
    lost: tuple[str, ...] = ()
    """Id and reason of each example whose picture is not there any more."""
    lost_tokens: int = 0
    """Tokens of these that would be supervised."""

    @property
    def model_inputs(self) -> dict[str, Any]:
        """Keyword arguments of the decoder (without the labels); the pixel values are made here, on the device."""
        names = ("input_ids", "attention_mask", "position_ids", "image_grid_thw")
        inputs = {name: value for name in names if (value := getattr(self, name)) is not None} | self.vision_layout
        if self.cu_seqlens is not None:
            longest = max(self.seqlens)
            inputs |= {"cu_seq_lens_q": self.cu_seqlens, "cu_seq_lens_k": self.cu_seqlens}
            inputs |= {"max_length_q": longest, "max_length_k": longest}
        if self.patches is not None:
            inputs["pixel_values"] = normalise(
                self.patches, self.image_mean, self.image_std, self.temporal_patch_size
            )
        return inputs

    @property
    def labels(self) -> Tensor:
        """(B, T) int64, aligned with input_ids (nothing is shifted), IGNORE_INDEX where nothing is learned."""
        labels = torch.full_like(self.input_ids, IGNORE_INDEX)
        labels.view(-1)[self.rows + 1] = self.targets
        return labels

    @property
    def supervised_tokens(self) -> int:
        """M."""
        return len(self.targets)

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        return self._with_each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The same batch in memory that is copied to a GPU while both work; torch's DataLoader asks for it."""
        return self._with_each(Tensor.pin_memory)

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory of its tensors until the stream is done with them, where another one made them."""
        self._with_each(lambda tensor: tensor.record_stream(stream) or tensor)

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The same batch with each tensor changed that the device needs."""

        def changed(values: Mapping[str, Any]) -> dict[str, Any]:
            return {name: change(value) if isinstance(value, Tensor) else value for name, value in values.items()}

        stays = {"image_grid_thw": self.image_grid_thw, "vision_layout": changed(self.vision_layout)}
        return Batch(**changed(vars(self)) | stays)


def normalise(
    patches: Tensor, image_mean: Sequence[float] | Tensor, image_std: Sequence[float] | Tensor, temporal_patch_size: int
) -> Tensor:
    """(P, D) uint8 → (P, temporal_patch_size · D) float32: what vision towers take, bit by bit the image processor's.

    A row holds channel by channel, and in each the same pixels once a frame.
    """
    wanted = {"dtype": torch.float32, "device": patches.device}
    mean, std = (torch.as_tensor(numbers, **wanted)[:, None] for numbers in (image_mean, image_std))
    # By tensors: CUDA would divide by a plain number as by its rounded reciprocal. The processor multiplies by 1/255 in
    # float64 and rounds, which for each of the 256 bytes is the same.
    values = patches.view(len(patches), len(mean), patches.shape[1] // len(mean)).float()
    values.div_(torch.full_like(mean, 255)).sub_(mean).div_(std)
    return values[:, :, None].expand(-1, -1, temporal_patch_size, -1).flatten(1)
