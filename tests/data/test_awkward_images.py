"""29 awkward pictures that people really have: each is either shown exactly as it was meant, or refused with a reason.

Oracles share no code with the loader: PNG and GIF are decoded here from their bytes; of the other formats the decoder's
raw planes are taken, and colours, transparency and orientation are worked out in float64.
"""

import struct
import warnings
import zlib
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from dft_mm.batch import Example
from dft_mm.data.collate import Collator
from dft_mm.data.images import ImageError, ImageSettings, decode_image, image_size, load_image
from dft_mm.data.patches import to_patches
from dft_mm.evaluate.backends.hf import HuggingFace
from dft_mm.evaluate.backends.prompts import Prompt
from dft_mm.evaluate.requests import BackendOptions, Request
from dft_mm.evaluate.suite import SamplingConfig
from dft_mm.evaluate.task import Question
from dft_mm.model.builtin import IMAGE_PROCESSOR
from dft_mm.model.folder import resolve

WHITE = 255.0
BROKEN = {
    "broken.png": "broken_image",
    "broken_data_stream.png": "broken_image",
    "decompression_bomb.gif": "too_many_pixels",
}


def on_white(colour, alpha):
    """colour (..., 3) in 0..255 and alpha (...) in 0..1 → what is seen on white paper."""
    return colour * alpha[..., None] + WHITE * (1 - alpha[..., None])


def gray(values):
    return np.repeat(values[..., None], 3, -1)


# PNG, by its specification (ISO/IEC 15948).

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]


def unfiltered(data, place, height, width_bytes, step):
    """One pass: (rows (height, width_bytes) uint8, where the next pass begins)."""
    rows, above = np.zeros((height, width_bytes), np.uint8), [0] * width_bytes
    for y in range(height):
        kind, line = data[place], list(data[place + 1 : place + 1 + width_bytes])
        place += 1 + width_bytes
        for x in range(width_bytes if kind else 0):
            a, b, c = (line[x - step], above[x], above[x - step]) if x >= step else (0, above[x], 0)
            if kind == 4:
                p = a + b - c
                add = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
            else:
                add = {1: a, 2: b, 3: (a + b) // 2}[kind]
            line[x] = (line[x] + add) & 255
        rows[y], above = line, line
    return rows, place


def png(data):
    """(samples (H, W, channels) as stored, depth, colour type, other chunks by kind)."""
    chunks, place = {}, 8
    while b"IEND" not in chunks:
        length, kind = struct.unpack_from(">I4s", data, place)
        chunks[kind] = chunks.get(kind, b"") + data[place + 8 : place + 8 + length]
        place += 12 + length
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    bits, pixels = CHANNELS[colour] * depth, zlib.decompress(chunks[b"IDAT"])
    samples, place = np.zeros((height, width, CHANNELS[colour]), np.int64), 0
    for top, left, down, across in ADAM7 if interlaced else [(0, 0, 1, 1)]:
        h, w = -(-(height - top) // down), -(-(width - left) // across)
        rows, place = unfiltered(pixels, place, h, (w * bits + 7) // 8, max(1, bits // 8))
        if depth == 16:
            values = rows.reshape(h, -1, 2) @ np.array([256, 1])
        elif depth == 8:
            values = rows
        else:
            values = np.unpackbits(rows, axis=1).reshape(h, -1, depth) @ (1 << np.arange(depth)[::-1])
        samples[top::down, left::across] = values[:, : w * CHANNELS[colour]].reshape(h, w, -1)
    return samples, depth, colour, chunks


def from_png(data):
    samples, depth, colour, chunks = png(data)
    key = chunks.get(b"tRNS")
    if colour == 3:
        palette = np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(-1, 3).astype(float)
        alpha = np.full(len(palette), 255)
        alpha[: len(key or b"")] = list(key or b"")
        return on_white(palette[samples[..., 0]], alpha[samples[..., 0]] / 255)
    scaled = samples >> 8 if depth == 16 else samples * 255 // (2**depth - 1)
    if colour in (4, 6):
        shown = scaled[..., :-1].astype(float)
        return on_white(gray(shown[..., 0]) if colour == 4 else shown, scaled[..., -1] / 255)
    shown = gray(scaled[..., 0].astype(float)) if colour == 0 else scaled.astype(float)
    if key is None:
        return shown
    wanted = np.array(struct.unpack(f">{len(key) // 2}H", key)) & (2**depth - 1)
    return on_white(shown, 1.0 - (samples == wanted).all(-1))


def from_turned_png(data):
    """Orientation 3: stored upside down."""
    return np.rot90(from_png(data), 2)


def from_gif(data):
    """The first frame of GIF89a, here as large as the screen and without interlacing."""
    flags = data[10]
    palette = np.frombuffer(data[13 : 13 + 3 * 2 ** (flags % 8 + 1)], np.uint8).reshape(-1, 3).astype(float)
    place, transparent = 13 + palette.size, None
    while data[place] == 0x21:
        if data[place + 1] == 0xF9 and data[place + 3] & 1:
            transparent = data[place + 6]
        place += 2
        while data[place]:
            place += data[place] + 1
        place += 1
    left, top, width, height, flags = struct.unpack_from("<HHHHB", data, place + 1)
    assert (left, top, flags) == (0, 0, 0)
    first, place, packed = data[place + 10], place + 11, b""
    while data[place]:
        packed += data[place + 1 : place + 1 + data[place]]
        place += data[place] + 1
    # Lempel-Ziv-Welch: codes of growing width, the lowest bits first.
    clear, out, codes = 1 << first, bytearray(), "".join(f"{byte:08b}"[::-1] for byte in packed)
    place, table, width_bits, last = 0, [], first + 1, b""
    while True:
        code = int(codes[place : place + width_bits][::-1], 2)
        place += width_bits
        if code == clear:
            table, width_bits, last = [bytes([n]) for n in range(clear)] + [b"", b""], first + 1, b""
            continue
        if code == clear + 1:
            break
        word = table[code] if code < len(table) else last + last[:1]
        if last and len(table) < 4096:
            table.append(last + word[:1])
        out += word
        last = word
        if len(table) == 1 << width_bits and width_bits < 12:
            width_bits += 1
    index = np.frombuffer(bytes(out), np.uint8).reshape(height, width)
    return on_white(palette[index], (index != transparent).astype(float))


# The rest: raw planes of the decoder, everything after them here.


def raw(data, mode):
    with Image.open(BytesIO(data)) as image:
        if mode == "YCbCr":
            image.draft(mode, None)
        assert image.mode == mode
        return np.asarray(image).astype(float)


def from_gray(data):
    return gray(raw(data, "L"))


def from_ycbcr(data):
    """JFIF 1.02."""
    y, cb, cr = np.moveaxis(raw(data, "YCbCr") - [0, 128, 128], -1, 0)
    return np.clip(np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1), 0, 255)


def from_jpeg_turned_right(data):
    """Orientation 6: the first stored row is the right side."""
    return np.rot90(from_ycbcr(data), -1)


def from_jpeg_turned_left(data):
    """Orientation 8: the first stored row is the left side."""
    return np.rot90(from_ycbcr(data), 1)


def from_webp_turned_left(data):
    return np.rot90(raw(data, "RGB"), 1)


def from_rgba(data):
    values = raw(data, "RGBA")
    return on_white(values[..., :3], values[..., 3] / 255)


def from_cmyk(data):
    inks = raw(data, "CMYK") / 255
    return 255 * (1 - inks[..., :3]) * (1 - inks[..., 3:])


def from_lab(data):
    """CIE L*a*b* under D50, adapted to D65 (Bradford), to sRGB."""
    with Image.open(BytesIO(data)) as image:
        start, (width, height) = image.tile[0].offset, image.size
    stored = np.frombuffer(data, np.uint8, 3 * width * height, start).reshape(height, width, 3)
    lightness, (a, b) = stored[..., 0] / 2.55, np.moveaxis(stored[..., 1:].astype(np.int8).astype(float), -1, 0)
    fy = (lightness + 16) / 116
    f = np.stack([fy + a / 500, fy, fy - b / 200], -1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.9642, 1.0, 0.8249]
    to_linear = [
        [3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540], [0.0719453, -0.2289914, 1.4052427],
    ]  # fmt: skip
    linear = np.clip(xyz @ np.transpose(to_linear), 0, 1)
    return 255 * np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)


# name: (oracle, width and height, greatest difference from the oracle, of 255; where there is one, it is rounding)
RIGHT = {
    "1_trns.png": (from_png, (64, 64), 0),
    "apng_mode_16bit.png": (from_png, (128, 64), 0),
    "avif_transparency.avif": (from_rgba, (64, 64), 0),
    "chi.gif": (from_gif, (320, 240), 0),
    "exif_imagemagick_orientation.png": (from_turned_png, (512, 512), 0),
    "frozenpond.mpo": (from_ycbcr, (640, 480), 0.501),
    "high_ascii_chars.png": (from_png, (750, 30), 0),
    "hopper.Lab.tif": (from_lab, (128, 128), 0.56),
    "hopper_bad_exif.jpg": (from_gray, (500, 500), 0),
    "hopper_orientation_6.jpg": (from_jpeg_turned_right, (128, 128), 0.501),
    "hopper_orientation_8.webp": (from_webp_turned_left, (128, 128), 0),
    "i_trns.png": (from_png, (64, 64), 0),
    "iss634.webp": (from_rgba, (245, 245), 0),
    "itxt_chunks.png": (from_png, (2400, 2000), 0),
    "jfif_unit_cm.jpg": (from_gray, (1, 1), 0),
    "mathvision_1504_wide.jpg": (from_ycbcr, (1638, 134), 0),
    "mathvision_2935_tall.jpg": (from_ycbcr, (2520, 8526), 0),
    "orientation_rectangle.jpg": (from_jpeg_turned_left, (1, 2), 0.11),
    "p_trns_single.png": (from_png, (64, 64), 0),
    "pil123p.png": (from_png, (162, 150), 0.5),
    "pil_sample_cmyk.jpg": (from_cmyk, (100, 100), 0.5),
    "rgb_trns.png": (from_png, (64, 64), 0),
    "tRNS_null_1x1.png": (from_png, (1, 1), 0),
    "tga_common_200x32_la.png": (from_png, (200, 32), 0.5),
    "wemath_103-2_jpeg_named.png": (from_ycbcr, (426, 308), 0),
    "wemath_304-1.png": (from_png, (2874, 1021), 0),
}


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "data/awkward_images"


@pytest.mark.parametrize("name", RIGHT)
def test_an_awkward_picture_is_shown_as_it_was_meant(folder, name):
    oracle, size, tolerance = RIGHT[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shown = load_image(name, folder)
    expected = oracle((folder / name).read_bytes())
    assert (shown.mode, shown.size) == ("RGB", size)
    assert np.abs(np.asarray(shown) - expected).max() <= tolerance


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_shown_is_refused_with_its_reason(folder, name):
    with pytest.raises(ImageError) as error:
        load_image(name, folder)
    assert error.value.reason == BROKEN[name]
    assert name in error.value.detail


def test_every_file_is_in_one_of_the_tables(folder):
    assert {path.name for path in folder.iterdir()} - {"SOURCE.md"} == {*RIGHT, *BROKEN}


def test_the_size_is_known_from_the_header(folder):
    for name, (_, size, _) in RIGHT.items():
        assert image_size((folder / name).read_bytes(), name) == size
    for name in ("broken.png", "decompression_bomb.gif"):
        with pytest.raises(ImageError) as error:
            image_size((folder / name).read_bytes(), name)
        assert error.value.reason == BROKEN[name]
    name = "broken_data_stream.png"  # only its pixels are damaged
    assert image_size((folder / name).read_bytes(), name) == (128, 128)


def test_the_same_portrait_looks_the_same_in_every_disguise(folder):
    """Three files of one portrait: turned by EXIF two ways, and in another colour space."""
    one, *others = (
        np.asarray(load_image(name, folder), dtype=float)
        for name in ("hopper_orientation_6.jpg", "hopper_orientation_8.webp", "hopper.Lab.tif")
    )
    for other in others:
        assert np.abs(one - other).mean() < 12
        assert np.abs(one - other[::-1]).mean() > 30


def test_training_and_evaluation_see_the_same_pixels(folder):
    settings = ImageSettings.of(IMAGE_PROCESSOR, 3136, 200704)
    backend = HuggingFace(BackendOptions(str(resolve("builtin:tiny-vl")), SamplingConfig()))
    backend.prompts.images = settings
    processing = backend.prompts.processing
    collate = Collator(0, processing.image_token_id, settings, processing.window_size)
    for name in RIGHT:
        question = Question("q", [], "", (name,), str(folder))
        asked = backend._inputs([Request("b", question, 0, 0)], [Prompt([1], "")])
        patches, grid = to_patches([decode_image((folder / name).read_bytes(), name)], settings)
        ids = torch.full((len(patches) // settings.merge_size**2,), processing.image_token_id)
        example = Example("e", "s", ids, torch.zeros(len(ids), dtype=torch.bool), patches, grid)
        learned = collate([example]).model_inputs
        for key in ("pixel_values", "image_grid_thw"):
            assert torch.equal(learned[key], asked[key]), name
