"""Where tokens and patches stand: what Qwen2.5-VL would otherwise work out during the step, from tensors on the device,
with a synchronisation each. Here it is made on the CPU, by the workers that make the batches.
"""

import numpy as np
import torch
from torch import Tensor


def mrope_positions(ids: Tensor, image_token_id: int, grids: Tensor | None, merge_size: int) -> Tensor:
    """(3, T) int64: frame, row and column of each token of one sample (M-RoPE, arXiv:2409.12191, section 2.1).

    Text counts on in all three; the tokens of a picture count from where it begins along its own three axes, and the
    text after it goes on behind the largest of its rows and columns.

    Args:
        ids: (T,) int64 of one sample, pictures expanded to one `image_token_id` for each merged patch.
        grids: (I, 3) int64 frames, rows and columns of patches of its pictures, in order; None without pictures.
        merge_size: patches along a side of a merged patch.

    Raises:
        ValueError: the pictures' tokens are not those of `grids`.
    """
    positions = torch.arange(len(ids)).repeat(3, 1)
    places = (ids == image_token_id).nonzero()[:, 0]
    merged = [] if grids is None else [(t, h // merge_size, w // merge_size) for t, h, w in grids.tolist()]
    counts = [t * h * w for t, h, w in merged]
    if sum(counts) != len(places):
        raise ValueError(f"{len(places)} tokens of pictures, {sum(counts)} merged patches in the grids {merged}")
    for (frames, rows, columns), of_picture in zip(merged, places.split(counts)):
        start, end = int(of_picture[0]), int(of_picture[-1]) + 1
        if end - start != len(of_picture):
            raise ValueError(f"other tokens stand between those of the picture at {start} to {end}")
        first = positions[0, start].item()
        positions[:, end:] += max(rows, columns) - len(of_picture)
        axes = np.indices((frames, rows, columns)).reshape(3, -1)
        positions[:, start:end] = first + torch.from_numpy(axes)
    return positions


def vision_layout(grids: Tensor, merge_size: int, window_size: int, patch_size: int) -> dict[str, Tensor | int]:
    """How the vision tower goes through the patches of all pictures at once: its own arguments, precomputed.

    Args:
        grids: (I, 3) int64 frames, rows and columns of patches.
        window_size: side of a window of attention, in pixels.
        patch_size: side of a patch, in pixels.

    Returns:
        Arguments of the whole model, which hands what is called image_NAME to its tower as NAME: position_ids (P, 2),
        cu_seqlens and max_seqlen of whole pictures, window_index, cu_window_seqlens and max_window_seqlen of windows.
    """
    # A second, that workers which make batches of text alone need not take before the first of them.
    from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids, get_vision_window_index

    cu_seqlens = get_vision_cu_seqlens(grids)
    window_index, cu_window_seqlens = get_vision_window_index(grids, merge_size, window_size, patch_size)
    return {
        "image_position_ids": get_vision_position_ids(grids, merge_size),
        "image_cu_seqlens": cu_seqlens,
        "image_max_seqlen": int(cu_seqlens.diff().max()),
        "image_window_index": window_index,
        "image_cu_window_seqlens": cu_window_seqlens,
        "image_max_window_seqlen": int(cu_window_seqlens.diff().max()),
    }
