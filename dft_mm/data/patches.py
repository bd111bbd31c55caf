"""RGB pictures → patches as bytes: resized once and cut, to be normalised on the device that needs the floats."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dft_mm.data.images import ImageSettings, image_grid

_GRAY = 128


def to_patches(
    pictures: Sequence[Image.Image], settings: ImageSettings | Sequence[ImageSettings]
) -> tuple[Tensor, Tensor]:
    """(P, D) uint8 patches and (I, 3) int64 grids of RGB pictures, resized as the image processor of transformers does.

    D = 3 · patch_size², channel by channel; `batch.normalise` makes the processor's floats of them, eight times the
    bytes.

    Args:
        pictures: one at least.
        settings: of all, or one for each; those may differ in their pixel limits only.
    """
    each = [settings] * len(pictures) if isinstance(settings, ImageSettings) else settings
    grids = [image_grid(*picture.size, own) for picture, own in zip(pictures, each, strict=True)]
    side = each[0].patch_size
    patches = np.empty((sum(rows * columns for _, rows, columns in grids), 3 * side * side), np.uint8)
    start = 0
    for picture, own, (_, rows, columns) in zip(pictures, each, grids):
        end = start + rows * columns
        _cut(picture.resize((columns * side, rows * side), Image.Resampling.BICUBIC), patches[start:end], own)
        start = end
    return torch.from_numpy(patches), torch.tensor(grids)


def _cut(picture: Image.Image, patches: np.ndarray, settings: ImageSettings) -> None:
    """Write a resized picture into its (P, D) patches: blocks in rows, and the patches of each block together."""
    side, merged = settings.patch_size, settings.merge_size
    down, across = picture.height // (side * merged), picture.width // (side * merged)
    pixels = np.asarray(picture).reshape(down, merged, side, across, merged, side, 3)
    patches.reshape(down, across, merged, merged, 3, side, side)[...] = pixels.transpose(0, 3, 1, 4, 6, 2, 5)


def blank_patches(grid: Sequence[int], settings: ImageSettings) -> Tensor:
    """(P, D) uint8 gray patches of the place of a picture that cannot be had; `grid` is frames, rows, columns."""
    frames, rows, columns = grid
    return torch.full((frames * rows * columns, 3 * settings.patch_size**2), _GRAY, dtype=torch.uint8)
