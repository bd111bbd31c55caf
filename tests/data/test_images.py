"""Oracles: pixel values worked out by hand, and transformers' own image processor called directly."""

import contextlib
import json
import os
import pickle
import socket
import warnings

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, ImageFile
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from dft_mm.batch import normalise
from dft_mm.data.images import ImageError, ImageSettings, image_grid, load_image, pixel_table, to_patches
from dft_mm.errors import InputError
from dft_mm.model.builtin import IMAGE_PROCESSOR

CONFIG = {
    "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
}  # fmt: skip
SETTINGS = ImageSettings.of(CONFIG, 3136, 100352)
WHITE = (255, 255, 255)

# What each awkward picture becomes: its size when it stands upright, or the reason why it is refused.
AWKWARD = {
    "1_trns.png": (64, 64),
    "apng_mode_16bit.png": (128, 64),
    "avif_transparency.avif": (64, 64),
    "broken.png": "broken_image",
    "broken_data_stream.png": "broken_image",
    "chi.gif": (320, 240),
    "decompression_bomb.gif": "too_many_pixels",
    "exif_imagemagick_orientation.png": (512, 512),
    "frozenpond.mpo": (640, 480),
    "high_ascii_chars.png": (750, 30),
    "hopper.Lab.tif": (128, 128),
    "hopper_bad_exif.jpg": (500, 500),
    "hopper_orientation_6.jpg": (128, 128),
    "hopper_orientation_8.webp": (128, 128),
    "i_trns.png": (64, 64),
    "iss634.webp": (245, 245),
    "itxt_chunks.png": (2400, 2000),
    "jfif_unit_cm.jpg": (1, 1),
    "mathvision_1504_wide.jpg": (1638, 134),
    "mathvision_2935_tall.jpg": (2520, 8526),
    "orientation_rectangle.jpg": (1, 2),
    "p_trns_single.png": (64, 64),
    "pil123p.png": (162, 150),
    "pil_sample_cmyk.jpg": (100, 100),
    "rgb_trns.png": (64, 64),
    "tRNS_null_1x1.png": (1, 1),
    "tga_common_200x32_la.png": (200, 32),
    "wemath_103-2_jpeg_named.png": (426, 308),
    "wemath_304-1.png": (2874, 1021),
}


def outcome(source, root):
    try:
        return load_image(source, root).size
    except ImageError as error:
        return error.reason


def save(folder, picture, name="a.png", **options):
    picture.save(folder / name, **options)
    return name


def pixels(folder, picture, name="a.png", **options):
    loaded = load_image(save(folder, picture, name, **options), folder)
    assert loaded.mode == "RGB"
    return np.asarray(loaded)


def pixel_values(patches, settings=SETTINGS):
    return normalise(patches, pixel_table(settings), settings.temporal_patch_size)


def test_every_awkward_picture_has_its_stated_outcome(shared):
    folder = shared / "data/awkward_images"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = {path.name: outcome(path.name, folder) for path in folder.iterdir() if path.suffix != ".md"}
    assert found == AWKWARD


@pytest.mark.parametrize("name", ["hopper_orientation_6.jpg", "hopper_orientation_8.webp", "hopper.Lab.tif"])
def test_the_same_portrait_looks_the_same_in_every_disguise(shared, name):
    """Three files of one portrait: turned by EXIF two ways, and in another colour space."""
    folder = shared / "data/awkward_images"
    one = np.asarray(load_image("hopper_orientation_6.jpg", folder), dtype=float)
    other = np.asarray(load_image(name, folder), dtype=float)
    assert np.abs(one - other).mean() < 12
    assert np.abs(one - other[::-1]).mean() > 30


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_puts_the_red_corner_where_it_belongs(tmp_path, orientation):
    # Upright: 3 wide, 2 high, red at the top left, green at the top right.
    upright = np.full((2, 3, 3), 255, dtype=np.uint8)
    upright[0, 0], upright[0, 2] = (255, 0, 0), (0, 255, 0)
    # Rows and columns of the stored array, as the EXIF standard defines each orientation.
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1], 7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert (pixels(tmp_path, Image.fromarray(np.ascontiguousarray(stored)), exif=exif) == upright).all()


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGBA", (200, 0, 0, 0), WHITE),
        ("RGBA", (200, 0, 0, 255), (200, 0, 0)),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
        ("LA", (0, 51), (204, 204, 204)),
        ("L", 9, (9, 9, 9)),
        ("1", 1, WHITE),
        ("I;16", 65535, WHITE),
        ("I;16", 257 * 100, (100, 100, 100)),
        ("I;16", 256, (1, 1, 1)),
        ("I;16", 255, (0, 0, 0)),
    ],
)
def test_alpha_lies_on_white_and_deep_gray_keeps_its_scale(tmp_path, mode, colour, expected):
    assert (pixels(tmp_path, Image.new(mode, (5, 4), colour)) == expected).all()


def test_transparent_colours_of_palettes_and_keys_lie_on_white(tmp_path):
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert pixels(tmp_path, palette, transparency=0).tolist() == [[list(WHITE), [40, 50, 60]]]
    keyed = Image.new("RGB", (2, 1), (1, 2, 3))
    keyed.putpixel((1, 0), (4, 5, 6))
    assert pixels(tmp_path, keyed, transparency=(1, 2, 3)).tolist() == [[list(WHITE), [4, 5, 6]]]
    deep = Image.new("I;16", (2, 1), 2570)
    deep.putpixel((1, 0), 5140)
    assert pixels(tmp_path, deep, transparency=2570).tolist() == [[list(WHITE), [20, 20, 20]]]


def test_gray_without_a_known_scale_is_refused(tmp_path):
    for mode, value in (("F", 0.5), ("I", 70000), ("I", -1)):
        save(tmp_path, Image.new(mode, (2, 2), value), "a.tif")
        assert outcome("a.tif", tmp_path) == "brightness", (mode, value)


def test_cmyk_becomes_rgb(tmp_path):
    cyan = pixels(tmp_path, Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "a.jpg", quality=95)
    assert np.abs(cyan.astype(int) - (0, 255, 255)).max() < 6


def test_of_a_moving_picture_the_first_frame_counts(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    for name in ("a.gif", "a.webp", "a.png", "a.tif"):
        options = {"lossless": True} if name == "a.webp" else {}
        loaded = pixels(tmp_path, frames[0], name, save_all=True, append_images=frames[1:], **options)
        assert (loaded == (255, 0, 0)).all(), name


def test_a_damaged_picture_is_refused_wherever_it_breaks_off(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    for name in ("a.png", "a.jpg", "a.webp", "a.bmp", "a.gif"):
        save(tmp_path, noise, name)
        whole = (tmp_path / name).read_bytes()
        for share in (0, 0.02, 0.3, 0.9):
            (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
            assert outcome(name, tmp_path) == "broken_image", (name, share)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_random_bytes_in_a_picture_never_raise_anything_else(tmp_path):
    rng = np.random.default_rng(1)
    noise = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    for name in ("a.png", "a.jpg", "a.webp", "a.gif", "a.tif"):
        save(tmp_path, noise, name)
        whole = bytearray((tmp_path / name).read_bytes())
        for _ in range(60):
            broken = bytearray(whole)
            for place in rng.integers(0, len(broken), 4):
                broken[place] = rng.integers(256)
            with contextlib.suppress(ImageError):
                assert load_image(bytes(broken), tmp_path).mode == "RGB"


def test_a_file_that_runs_a_program_is_no_picture(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given, **more: started.append(given))
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    assert outcome("a.png", tmp_path) == "broken_image"
    assert not started


def test_size_is_checked_before_decoding_whatever_others_set(tmp_path, monkeypatch):
    bomb = b"GIF89a" + bytes.fromhex("ffff ffff 80 00 00 000000ffffff 2c 0000 0000 ffff ffff 00 02 02 4401 00 3b")
    assert outcome(bomb, tmp_path) == "too_many_pixels"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert outcome(bomb, tmp_path) == "too_many_pixels"


def test_no_warning_leaks(tmp_path, monkeypatch):
    name = save(tmp_path, Image.new("RGB", (12, 12)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow warns above it
    filters = list(warnings.filters)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert outcome(name, tmp_path) == (12, 12)
    assert not caught
    assert warnings.filters == filters


def test_only_files_below_the_folder_are_read(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "sub").mkdir(parents=True)
    outside.mkdir()
    picture = Image.new("RGB", (30, 30))
    save(outside, picture)
    save(root / "sub", picture)
    (root / "link.png").symlink_to(outside / "a.png")
    (root / "linked").symlink_to(outside)
    (root / "inner.png").symlink_to(root / "sub/a.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    os.mkfifo(root / "pipe.png")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(root / "socket.png"))
    expected = {
        "sub/a.png": (30, 30), "inner.png": (30, 30), "./sub/a.png": (30, 30),
        "../outside/a.png": "outside", "sub/../sub/a.png": "outside",
        "sub/../../outside/a.png": "outside", str(outside / "a.png"): "outside",
        str(root / "sub/a.png"): "outside", "/dev/zero": "outside", "link.png": "outside", "linked/a.png": "outside",
        "loop.png": "unreadable", "pipe.png": "not_a_file", "socket.png": "not_a_file", "sub": "not_a_file",
        ".": "not_a_file", "sub/a.png/b.png": "unreadable", "gone.png": "missing_image", "a\0.png": "unreadable",
        "x" * 5000 + ".png": "unreadable", "https://example.org/a.png": "url", "file:///etc/passwd": "url",
    }  # fmt: skip
    assert {name: outcome(name, root) for name in expected} == expected
    server.close()


def test_the_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    save(tmp_path / "real", Image.new("RGB", (3, 3)))
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert outcome("a.png", tmp_path / "link") == (3, 3)


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


def test_grids_keep_to_the_limits_for_every_size():
    rng = np.random.default_rng(2)
    for width, height in rng.integers(1, 3000, (500, 2)).tolist():
        if max(width, height) > 200 * min(width, height):
            continue
        rows, columns = smart_resize(height, width, 28, 3136, 100352)
        assert image_grid(width, height, SETTINGS) == (1, rows // 14, columns // 14)


def test_too_long_a_strip_is_refused():
    assert image_grid(2000, 10, SETTINGS)[0] == 1
    with pytest.raises(ImageError) as error:
        image_grid(2001, 10, SETTINGS)
    assert error.value.reason == "aspect_ratio"
    with pytest.raises(ImageError):
        image_grid(10, 2001, SETTINGS)


def test_several_pictures_are_one_after_another():
    pictures = [Image.new("RGB", size, colour) for size, colour in (((56, 56), "red"), ((84, 56), "blue"))]
    patches, grid = to_patches(pictures, SETTINGS)
    assert grid.tolist() == [[1, 4, 4], [1, 4, 6]]
    assert torch.equal(patches, torch.cat([to_patches([picture], SETTINGS)[0] for picture in pictures]))


def test_settings_are_read_from_old_and_new_processor_files():
    new = {k: v for k, v in CONFIG.items() if "pixels" not in k}
    new["size"] = {"shortest_edge": 3136, "longest_edge": 12845056}
    assert ImageSettings.of(new) == ImageSettings.of(CONFIG)
    assert (ImageSettings.of(new).min_pixels, ImageSettings.of(new).max_pixels) == (3136, 12845056)
    assert (SETTINGS.min_pixels, SETTINGS.max_pixels) == (3136, 100352)
    saved = Qwen2VLImageProcessorPil(**CONFIG).to_dict()  # as transformers 5 writes it
    assert ImageSettings.of(saved) == ImageSettings.of(CONFIG)
    assert pickle.loads(pickle.dumps(SETTINGS)) == SETTINGS


@pytest.mark.parametrize(
    "change",
    [{"resample": 2}, {"do_normalize": False}, {"rescale_factor": 1.0}, {"patch_size": None}, {"image_std": [1]}],
)
def test_a_processor_file_that_means_something_else_is_refused(change):
    with pytest.raises(InputError, match=r"preprocessor_config\.json"):
        ImageSettings.of(CONFIG | change)


def test_the_built_in_numbers_are_those_of_the_hub(shared):
    hub = json.loads((shared / "models/qwen2.5-vl/preprocessor_config.json").read_text())
    assert ImageSettings.of(IMAGE_PROCESSOR) == ImageSettings.of(hub)
