"""Picture files → RGB pictures: the one loader of training and evaluation. What cannot be shown to the model exactly as
it was meant raises ImageError with a reason; nothing is guessed and nothing is replaced.
"""

import functools
import hashlib
import io
import math
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms

from dft_mm.errors import InputError

MAX_PIXELS = 178_956_970
"""More are refused before they are decoded: a file of a few bytes can claim billions (Pillow's own limit)."""
# Formats that are pictures and nothing else; Pillow hands some others, such as EPS, to outside programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF", "PPM", "TGA", "ICO")
_FIXED = {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3, "rescale_factor": 1 / 255}
_MOST_ASPECT = 200
_GRAY_STEP = {"L;2": 85, "L;4": 17}
"""Brightness of one step of gray in pictures of 4 and 16 levels."""
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_SWAPPING = (5, 6, 7, 8)
"""Orientations of which the stored width is the upright height."""


class ImageError(Exception):
    """A picture that cannot be used; `reason` is a short slug, `detail` a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class ImageSettings:
    """The numbers that decide what a picture becomes."""

    patch_size: int
    """Pixels of a patch's side."""
    merge_size: int
    """Patches of a side that are merged into one token."""
    temporal_patch_size: int
    """Frames of a patch; a picture is repeated to fill them."""
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    min_pixels: int
    max_pixels: int

    @classmethod
    def of(
        cls, processor_config: Mapping[str, Any], min_pixels: int | None = None, max_pixels: int | None = None
    ) -> "ImageSettings":
        """From preprocessor_config.json: limits of transformers 5 (`size`) or of the hub's files (`min_pixels`,
        `max_pixels`), unless they are given.

        Raises InputError where the file says something that is not done here.
        """
        for key, value in _FIXED.items():
            if processor_config.get(key, value) != value:
                raise InputError(
                    f"preprocessor_config.json: {key} is {processor_config[key]!r}; supported is {value!r}"
                )
        try:
            size = processor_config.get("size") or {}
            least = processor_config.get("min_pixels") or size.get("min_pixels") or size["shortest_edge"]
            most = processor_config.get("max_pixels") or size.get("max_pixels") or size["longest_edge"]
            return cls(
                patch_size=int(processor_config["patch_size"]),
                merge_size=int(processor_config["merge_size"]),
                temporal_patch_size=int(processor_config["temporal_patch_size"]),
                image_mean=_three(processor_config["image_mean"]),
                image_std=_three(processor_config["image_std"]),
                min_pixels=int(least if min_pixels is None else min_pixels),
                max_pixels=int(most if max_pixels is None else max_pixels),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"preprocessor_config.json is not that of a Qwen2.5-VL processor: {error!r}") from error

    def limited(self, min_pixels: Any = None, max_pixels: Any = None) -> "ImageSettings":
        """The same with the limits that a row gives one of its pictures, each None where it gives none.

        Raises ImageError where they are no limits, or where they contradict each other or those that they leave.
        """
        if min_pixels is None and max_pixels is None:
            return self
        given = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        limits = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        least = (self.patch_size * self.merge_size) ** 2
        for name, value in given.items():
            if value is None:
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or value % 1 != 0 or value < least:  # a table with gaps holds 3136 as 3136.0
                raise ImageError("pixel_limits", f"{name} is {value!r}: a whole number from {least} on is wanted")
            limits[name] = int(value)
        if limits["min_pixels"] > limits["max_pixels"]:
            raise ImageError(
                "pixel_limits", "min_pixels {min_pixels} is above max_pixels {max_pixels}".format(**limits)
            )
        return replace(self, **limits)


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def read_image(source: str | Path, root: Path) -> bytes:
    """The bytes of a picture file; `source` is relative to `root` and may not leave it, by a link neither.

    Raises ImageError.
    """
    text = str(source)
    if "://" in text[:16]:
        raise ImageError("url", f"{text}: pictures are read from files; fetch it first")
    if Path(text).is_absolute() or ".." in Path(text).parts:
        raise ImageError("outside", f"{text} is not below {root}; set `images` to a folder above all pictures")
    try:
        base = root.resolve()
        path = (base / text).resolve()
        if not path.is_relative_to(base):
            raise ImageError("outside", f"{text} is a link to {path}, which is not below {root}")
        if not stat.S_ISREG(path.stat().st_mode):
            raise ImageError("not_a_file", f"{text} is a folder, device or pipe")
        return path.read_bytes()
    except FileNotFoundError:
        raise ImageError("missing_image", f"{text} is not in {root}") from None
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links is a RuntimeError, a NUL a ValueError
        raise ImageError("unreadable", f"{text!r}: {error}") from error


def load_image(source: str | Path | bytes, root: Path) -> Image.Image:
    """A picture as RGB, upright, on white where it is transparent, its first frame where it moves.

    Args:
        source: a path relative to `root`, or the bytes of a picture file.

    Raises ImageError.
    """
    if isinstance(source, bytes):
        return decode_image(source, "the embedded picture")
    return decode_image(read_image(source, root), str(source))


def decode_image(data: bytes, name: str) -> Image.Image:
    """The same for the bytes of a picture file; `name` is what an error calls it."""
    with _opened(data, name) as image:
        stored = image.tile[0].args if image.format == "PNG" and image.tile else None  # not known after decoding
        image.load()
        _mend_transparency(image, stored, name)
        return _rgb(_upright(image), name)


def image_size(data: bytes, name: str) -> tuple[int, int]:
    """(width, height) of the upright picture, from its header: its pixels are not decoded.

    Raises ImageError for what can be seen there; damage further on is left to `decode_image`.
    """
    with _opened(data, name, pixels=False) as image:
        if image.mode == "F":
            raise _unknown_brightness(image, name)
        width, height = image.size
        turned = image.format != "TIFF" and _orientation(image) in _SWAPPING  # of a TIFF Pillow tells the upright size
        return (height, width) if turned else (width, height)


@contextmanager
def _opened(data: bytes, name: str, pixels: bool = True) -> Iterator[Image.Image]:
    """The picture before it is decoded; whatever Pillow raises inside becomes an ImageError."""
    with warnings.catch_warnings():  # Pillow warns of what is refused, or healed, here
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data if pixels else _without_pixels(data)), formats=_formats()) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ImageError(
                        "too_many_pixels", f"{name} has {image.width} x {image.height}: above {MAX_PIXELS}"
                    )
                yield image
        except ImageError:
            raise
        except Image.DecompressionBombError as error:
            raise ImageError("too_many_pixels", f"{name}: {error}") from error
        except Image.UnidentifiedImageError:
            raise ImageError("broken_image", f"{name} is no picture of a known format ({len(data)} bytes)") from None
        except Exception as error:  # decoders raise nearly anything on damaged data
            raise ImageError("broken_image", f"{name} cannot be decoded: {error!r}") from error


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of _FORMATS that this build of Pillow knows; it stumbles over the others when it is asked for them."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _without_pixels(data: bytes) -> bytes:
    """A PNG's header, with what is told about its first frame after the pixels; other formats as they are.

    A PNG may tell its orientation there, and Pillow decodes the pixels to get so far.
    """
    if not data.startswith(_PNG):
        return data
    kept, place, pixels = [_PNG], len(_PNG), False
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length  # length, kind and checksum are four bytes each
        if pixels and kind == b"fcTL":  # a second frame begins
            break
        if pixels and kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):  # their checksums are not looked at there
            kept += [data[place : end - 4], struct.pack(">I", zlib.crc32(data[place + 4 : end - 4]))]
        elif not pixels and kind not in (b"IDAT", b"fcTL", b"acTL"):
            kept.append(data[place:end])
        pixels |= kind == b"IDAT"
        place = end
    return b"".join([*kept, _PNG_END])


def _orientation(image: Image.Image) -> int | None:
    try:
        return Image.Image.getexif(image).get(ExifTags.Base.Orientation)  # a PNG's own would decode it
    except Exception:  # damaged EXIF takes no pixel away: the picture counts as it stands
        return None


def _upright(image: Image.Image) -> Image.Image:
    orientation = _orientation(image)
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _mend_transparency(image: Image.Image, stored: Any, name: str) -> None:
    """A PNG tells its transparent colour in the depth that it is `stored` in; Pillow holds it against whole bytes."""
    key = image.info.get("transparency")
    if (step := _GRAY_STEP.get(stored)) and isinstance(key, int):
        image.info["transparency"] = (key & 255 // step) * step
    if stored == "RGB;16B" and key is not None:
        del image.info["transparency"]
        if (np.asarray(image) == [value >> 8 for value in key]).all(-1).any():
            raise ImageError("transparency", f"{name}: its transparent colour is told in 16 bits, of which 8 are read")


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep_gray(image, name)
    if image.mode == "LAB":
        return ImageCms.applyTransform(image, _lab_to_srgb())
    if not image.has_transparency_data:
        return image.convert("RGB")
    picture = image.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


@functools.cache
def _lab_to_srgb() -> ImageCms.ImageCmsTransform:
    """Without the table that littleCMS would look colours up in: it is wrong by up to 9 of 255."""
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, srgb, "LAB", "RGB", flags=ImageCms.Flags.NOOPTIMIZE)


def _from_deep_gray(image: Image.Image, name: str) -> Image.Image:
    """16-bit gray by its upper byte, as Pillow reads 16-bit colour; mode I it would clip to white."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise _unknown_brightness(image, name)
    gray = (values >> 8).astype(np.uint8)
    key = image.info.get("transparency")
    if isinstance(key, int):
        gray[values == key] = 255
    return Image.fromarray(gray).convert("RGB")


def _unknown_brightness(image: Image.Image, name: str) -> ImageError:
    return ImageError("brightness", f"{name} has mode {image.mode}: what is black and white in it is not known")


def image_grid(width: int, height: int, settings: ImageSettings) -> tuple[int, int, int]:
    """(frames, rows, columns) of patches that a picture of this size becomes; raises ImageError above 200 : 1."""
    if max(width, height) > _MOST_ASPECT * min(width, height):
        raise ImageError("aspect_ratio", f"{width} x {height}: above {_MOST_ASPECT} : 1")
    side = settings.patch_size * settings.merge_size
    rows, columns = _whole_blocks(height, width, side, settings.min_pixels, settings.max_pixels)
    return 1, rows * settings.merge_size, columns * settings.merge_size


def _whole_blocks(height: int, width: int, side: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Rows and columns of blocks: `smart_resize` of transformers' processor, written anew (and tested to be the same)
    because importing it takes two seconds and 140 MiB of every worker process.
    """
    rows, columns = round(height / side), round(width / side)
    if rows * columns * side**2 > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        return max(1, math.floor(height / shrink / side)), max(1, math.floor(width / shrink / side))
    if rows * columns * side**2 < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        return math.ceil(height * grow / side), math.ceil(width * grow / side)
    return rows, columns


def image_hash(data: bytes) -> str:
    """Identity of a picture file."""
    return hashlib.sha256(data).hexdigest()
