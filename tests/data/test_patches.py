"""Oracle: the image processor of transformers, called directly."""


import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from dft_mm.batch import normalise
from dft_mm.data.images import (
    ImageSettings,
    image_grid,
)
from dft_mm.data.patches import blank_patches, to_patches

CONFIG = {
    "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
}  # fmt: skip
SETTINGS = ImageSettings.of(CONFIG, 3136, 100352)


def pixel_values(patches, settings=SETTINGS):
    return normalise(patches, settings.image_mean, settings.image_std, settings.temporal_patch_size)


@pytest.mark.parametrize(
    "size",
    [(1, 1), (3, 1), (1, 3), (28, 28), (41, 43), (200, 1), (1, 200), (640, 480), (1638, 134), (599, 3), (999, 7)],
)
def test_grid_and_patches_are_those_of_transformers(size):
    rng = np.random.default_rng(size)
    picture = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    oracle = Qwen2VLImageProcessorPil(**(CONFIG | {"max_pixels": 100352}))
    expected = oracle(images=[picture], return_tensors="pt")
    patches, grid = to_patches([picture], SETTINGS)
    assert (patches.dtype, patches.shape[1]) == (torch.uint8, 588)
    assert torch.equal(pixel_values(patches), expected["pixel_values"])
    assert pixel_values(patches).dtype == expected["pixel_values"].dtype == torch.float32
    assert grid.tolist() == expected["image_grid_thw"].tolist() == [list(image_grid(*size, SETTINGS))]
    assert grid.dtype == torch.int64


def test_patches_are_the_normalised_pixels_in_the_documented_order():
    """A picture that needs no resizing: patches of 14 x 14, in blocks of 2 x 2, each channel by channel, twice."""
    rng = np.random.default_rng(5)
    array = rng.integers(0, 256, (56, 84, 3), dtype=np.uint8)
    patches, grid = to_patches([Image.fromarray(array)], SETTINGS)
    assert grid.tolist() == [[1, 4, 6]]
    assert np.array_equal(patches[6].reshape(3, 14, 14), array[14:28, 28:42].transpose(2, 0, 1))
    normal = (array / 255 - CONFIG["image_mean"]) / CONFIG["image_std"]
    # The seventh patch (number 6): block 1 of the first row of blocks, third of its four: second row, first column.
    expected = normal[14:28, 28:42].transpose(2, 0, 1)
    values = pixel_values(patches)[6].reshape(3, 2, 14, 14)
    assert np.allclose(values[:, 0], expected, atol=1e-5)
    assert np.allclose(values[:, 1], expected, atol=1e-5)


def test_every_byte_becomes_what_the_processor_of_transformers_makes_of_it():
    """All 256 values of all channels, through the processor itself: no pixel can differ."""
    array = np.arange(256, dtype=np.uint8).repeat(28 * 28).reshape(16 * 28, 16 * 28, 1).repeat(3, -1)
    array = array.reshape(256, 28, 28, 3).reshape(16, 16, 28, 28, 3).transpose(0, 2, 1, 3, 4).reshape(448, 448, 3)
    oracle = Qwen2VLImageProcessorPil(**(CONFIG | {"max_pixels": 448 * 448}))
    values = oracle(images=[Image.fromarray(array)], return_tensors="np")["pixel_values"].reshape(256, 4, 3, 2 * 196)
    assert (values == values[:, :1, :, :1]).all()
    patches = torch.arange(256, dtype=torch.uint8)[:, None].repeat(1, 3)  # one pixel each
    ours = normalise(patches, SETTINGS.image_mean, SETTINGS.image_std, 1)
    assert np.array_equal(ours.numpy(), values[:, 0, :, 0])


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_a_picture_is_repeated_to_fill_the_frames_of_its_patches(frames):
    patches = torch.tensor([[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]], dtype=torch.uint8)  # 2 pixels a channel
    values = normalise(patches, (0, 1, 2), (1 / 255, 1 / 255, 1 / 255), frames).round().int().tolist()
    assert values[0] == [0, 1] * frames + [2 - 255, 3 - 255] * frames + [4 - 510, 5 - 510] * frames
    assert values[1] == [6, 7] * frames + [8 - 255, 9 - 255] * frames + [10 - 510, 11 - 510] * frames
    assert normalise(patches[:0], (0, 1, 2), (1, 1, 1), frames).shape == (0, 6 * frames)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_makes_the_same_bits():
    every = torch.arange(256, dtype=torch.uint8)[:, None].repeat(1, 588)
    assert torch.equal(pixel_values(every.cuda()).cpu(), pixel_values(every))


def test_a_picture_may_have_limits_of_its_own():
    assert SETTINGS.limited() is SETTINGS
    few, many = SETTINGS.limited(None, 3136.0), SETTINGS.limited(min_pixels=50176)
    assert (few.min_pixels, few.max_pixels, many.min_pixels, many.max_pixels) == (3136, 3136, 50176, 100352)
    rng = np.random.default_rng(6)
    pictures = [Image.fromarray(rng.integers(0, 256, (120, 150, 3), dtype=np.uint8)) for _ in range(3)]
    patches, grids = to_patches(pictures, [few, SETTINGS, many])
    assert grids.tolist() == [[1, 2, 4], [1, 8, 10], [1, 16, 18]]
    start = 0
    for picture, limits in zip(pictures, ({"max_pixels": 3136}, {"max_pixels": 100352},
                                          {"min_pixels": 50176, "max_pixels": 100352})):  # fmt: skip
        expected = Qwen2VLImageProcessorPil(**(CONFIG | limits))(images=[picture], return_tensors="pt")["pixel_values"]
        assert torch.equal(pixel_values(patches[start : start + len(expected)]), expected)
        start += len(expected)
    assert start == len(patches)
    with pytest.raises(ValueError, match="zip"):
        to_patches(pictures, [few, many])


def test_the_place_of_a_lost_picture_is_gray():
    patches = blank_patches([1, 4, 6], SETTINGS)
    assert (patches.shape, patches.dtype) == ((24, 588), torch.uint8)
    assert set(patches.flatten().tolist()) == {128}
    assert pixel_values(patches).abs().max() < 0.4  # about the middle of what the model knows


def test_several_pictures_are_one_after_another():
    pictures = [Image.new("RGB", size, colour) for size, colour in (((56, 56), "red"), ((84, 56), "blue"))]
    patches, grid = to_patches(pictures, SETTINGS)
    assert grid.tolist() == [[1, 4, 4], [1, 4, 6]]
    assert torch.equal(patches, torch.cat([to_patches([picture], SETTINGS)[0] for picture in pictures]))
