"""Oracles: pixel values worked out by hand, and transformers' own image processor called directly."""

import ast
import contextlib
import importlib.util
import json
import math
import os
import pickle
import socket
import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path
from typing import Optional

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageFile
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from dft_mm.data.images import (
    ImageError,
    ImageSettings,
    decode_image,
    image_grid,
    image_size,
    load_image,
)
from dft_mm.errors import InputError
from dft_mm.model.builtin import IMAGE_PROCESSOR

CONFIG = {
    "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
}  # fmt: skip
SETTINGS = ImageSettings.of(CONFIG, 3136, 100352)
WHITE = (255, 255, 255)


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


def png(width, height, depth, colour, data, *chunks, late=()):
    """The bytes of a PNG from its parts; `data` is one row after another, `late` chunks stand after the pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    rows = [b"\0" + data[start : start + len(data) // height] for start in range(0, len(data), len(data) // height)]
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"".join(rows))), *late, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    )


@pytest.mark.parametrize(
    ("depth", "packed", "expected"),
    [(1, 0b01_000000, [0, 255]), (2, 0b01_10_0000, [255, 170]), (4, 0x1A, [255, 170])],
)
def test_a_transparent_gray_is_told_in_the_depth_of_the_file(depth, packed, expected):
    """The transparent step is number 1: of two levels that is white, of four 85, of sixteen 17."""
    data = png(2, 1, depth, 0, bytes([packed]), (b"tRNS", b"\0\x01"))
    assert np.asarray(decode_image(data, "a.png"))[0, :, 0].tolist() == expected
    wide = png(2, 1, depth, 0, bytes([packed]), (b"tRNS", b"\0\xf1"))  # only the bits of the depth count
    assert np.array_equal(decode_image(wide, "a.png"), decode_image(data, "a.png"))


def test_a_transparent_colour_of_16_bits_is_refused_where_it_could_be_meant(tmp_path):
    colours = struct.pack(">6H", 1000, 2000, 3000, 1001, 2000, 3000)  # one of them transparent, in 8 bits the same
    assert outcome(png(2, 1, 16, 2, colours, (b"tRNS", struct.pack(">3H", 1000, 2000, 3000))), tmp_path) == (
        "transparency"
    )
    absent = png(2, 1, 16, 2, colours, (b"tRNS", struct.pack(">3H", 1000, 2000, 60000)))
    assert (np.asarray(decode_image(absent, "a.png")) == (3, 7, 11)).all()


def test_gray_without_a_known_scale_is_refused(tmp_path):
    for mode, value in (("F", 0.5), ("I", 70000), ("I", -1)):
        save(tmp_path, Image.new(mode, (2, 2), value), "a.tif")
        assert outcome("a.tif", tmp_path) == "brightness", (mode, value)
        if mode == "F":
            assert size_or_reason(image_size, (tmp_path / "a.tif").read_bytes()) == "brightness"


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


ROUND = ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "TGA", "PPM", "ICO", "JPEG2000"]


def encoded(kind, rng, orientation=None):
    """A picture of 33 x 20 pixels of noise as a file of this kind."""
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    target = BytesIO()
    options = {"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}
    Image.fromarray(rng.integers(0, 256, (20, 33, 3), dtype=np.uint8)).save(target, kind, **options)
    return target.getvalue()


def size_or_reason(function, data):
    try:
        found = function(data, "a picture")
    except ImageError as error:
        return error.reason
    return found if isinstance(found, tuple) else found.size


def test_the_size_in_the_header_is_that_of_the_upright_picture():
    rng = np.random.default_rng(3)
    for kind in ROUND:
        turning = range(1, 9) if kind in ("PNG", "JPEG", "WEBP", "TIFF") else [None]
        for orientation in turning:
            data = encoded(kind, rng, orientation)
            expected = (20, 33) if (orientation or 1) > 4 else (33, 20)
            if kind == "ICO":  # written at the usual sizes of icons only
                expected = (16, 10)
            assert decode_image(data, "a").size == image_size(data, "a") == expected, (kind, orientation)


def test_a_png_may_tell_its_orientation_after_its_pixels():
    exif = Image.Exif()
    exif[0x0112] = 6
    late = png(3, 1, 8, 0, b"abc", late=[(b"eXIf", exif.tobytes()[6:])])
    assert decode_image(late, "a").size == image_size(late, "a") == (1, 3)


def test_a_size_takes_no_pixel(monkeypatch):
    rng = np.random.default_rng(4)
    files = [encoded(kind, rng, 6) for kind in ROUND if kind != "ICO"]
    files.append(png(3, 1, 8, 0, b"abc", late=[(b"tEXt", b"Comment\0hello")]))

    decoded = []
    for kind in (Image.Image, ImageFile.ImageFile):
        monkeypatch.setattr(kind, "load", lambda self: decoded.append(self.format))
    assert all(isinstance(image_size(data, "a"), tuple) for data in files)
    assert not decoded


def test_an_icon_is_as_large_as_the_picture_in_it():
    inner = encoded("PNG", np.random.default_rng(7))
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22)  # its directory says otherwise
    icon = struct.pack("<HHH", 0, 1, 1) + entry + inner
    assert decode_image(icon, "a").size == image_size(icon, "a") == (33, 20)


def test_an_orientation_after_the_first_frame_of_a_moving_png_is_another_frames():
    exif = Image.Exif()
    exif[0x0112] = 6
    frame = struct.pack(">IIIIIHHBB", 0, 3, 1, 0, 0, 1, 1, 0, 0)
    second = [(b"fcTL", struct.pack(">I", 1) + frame[4:]), (b"fdAT", struct.pack(">I", 2) + zlib.compress(b"\0abc"))]
    moving = png(
        3, 1, 8, 0, b"abc", (b"acTL", struct.pack(">II", 2, 0)), (b"fcTL", frame),
        late=[*second, (b"eXIf", exif.tobytes()[6:])],
    )  # fmt: skip
    assert decode_image(moving, "a").size == image_size(moving, "a") == (3, 1)


def test_a_header_never_says_another_size_than_the_picture_has():
    """Of damaged files too; and what can be decoded is never refused for its header."""
    rng = np.random.default_rng(5)
    files = [encoded(kind, rng, orientation) for kind in ROUND for orientation in (None, 6)]
    both = 0
    for turn in range(800):
        data = bytearray(files[turn % len(files)])
        for place in rng.integers(0, min(len(data), 60 if turn % 3 else 10**6), 2):
            data[place] = rng.integers(256)
        told, found = (size_or_reason(function, bytes(data)) for function in (image_size, decode_image))
        assert told == found or (isinstance(told, tuple) and isinstance(found, str)), (turn, told, found)
        both += isinstance(found, tuple)
    assert both > 200


def test_a_file_that_runs_a_program_is_no_picture(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given, **more: started.append(given))
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    assert outcome("a.png", tmp_path) == "broken_image"
    assert not started


def test_size_is_checked_before_decoding_whatever_others_set(tmp_path, monkeypatch):
    assert size_or_reason(image_size, png(20000, 20000, 8, 0, bytes(20000))) == "too_many_pixels"
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


def _targets(node):
    return node.targets if isinstance(node, ast.Assign) else []


def qwen_vl_utils_resize():
    """The function of qwen-vl-utils from its source: the module itself wants torchvision."""
    folder = Path(importlib.util.find_spec("qwen_vl_utils").origin).parent
    tree = ast.parse((folder / "vision_process.py").read_text(encoding="utf-8"))
    wanted = {"MAX_RATIO", "IMAGE_MIN_TOKEN_NUM", "IMAGE_MAX_TOKEN_NUM"}
    wanted |= {"round_by_factor", "ceil_by_factor", "floor_by_factor", "smart_resize"}
    tree.body = [node for node in tree.body if wanted & {getattr(node, "name", ""), *map(ast.unparse, _targets(node))}]
    names = {"math": math, "Optional": Optional, "Tuple": tuple}
    exec(compile(tree, "vision_process.py", "exec"), names)
    return names["smart_resize"]


LIMITS = [(3136, 100352), (3136, 12845056), (784, 12544), (784, 50176), (200704, 1003520), (1003520, 1003520)]


@pytest.mark.parametrize("limits", LIMITS)
def test_grids_are_those_of_transformers_and_qwen_vl_utils(limits):
    """2,000 sizes for each pair of limits. Of strips thinner than 15 pixels, and of those that would get no pixels at
    all, qwen-vl-utils thinks otherwise; the processor, which has the last word with vLLM and transformers, decides."""
    rng, other, compared = np.random.default_rng(limits), qwen_vl_utils_resize(), 0
    oracle = Qwen2VLImageProcessorPil(**(CONFIG | dict(zip(("min_pixels", "max_pixels"), limits))))
    settings = SETTINGS.limited(*limits)
    sizes = np.exp(rng.uniform(0, np.log(5000), (2000, 2))).round().astype(int).tolist()
    for width, height in sizes:
        if max(width, height) > 200 * min(width, height):
            continue
        rows, columns = smart_resize(height, width, 28, *limits)
        grid = image_grid(width, height, settings)
        assert grid == (1, rows // 14, columns // 14)
        assert math.prod(grid) == oracle.get_number_of_image_patches(height, width, {})
        theirs = other(height, width, 28, *limits)
        if min(width, height) >= 15 and all(theirs):
            assert (rows, columns) == theirs
            compared += 1
    assert compared > 600


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ((783, None), "min_pixels is 783"), ((None, 100), "max_pixels is 100"), ((5000, 4000), "5000 is above"),
        ((None, 1000), "min_pixels 3136 is above max_pixels 1000"), ((200000, None), "200000 is above"),
        (("3136", None), "'3136'"), ((3136.5, None), "3136.5"), ((math.nan, None), "nan"), ((None, math.inf), "inf"),
        ((True, None), "True"), ((None, -5), "-5"), ((None, [3136]), "3136"),
    ],
)  # fmt: skip
def test_limits_that_are_none_are_refused(limits, told):
    with pytest.raises(ImageError) as error:
        SETTINGS.limited(*limits)
    assert error.value.reason == "pixel_limits"
    assert told in error.value.detail


def test_too_long_a_strip_is_refused():
    assert image_grid(2000, 10, SETTINGS)[0] == 1
    with pytest.raises(ImageError) as error:
        image_grid(2001, 10, SETTINGS)
    assert error.value.reason == "aspect_ratio"
    with pytest.raises(ImageError):
        image_grid(10, 2001, SETTINGS)


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
