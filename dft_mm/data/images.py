"""Picture files → RGB pictures → patches: the one loader of training and evaluation. What cannot be shown to the model
exactly as it was meant raises ImageError with a reason; nothing is guessed and nothing is replaced.
"""

import functools
import hashlib
import io
import stat
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from dft_mm.errors import InputError

MAX_PIXELS = 178_956_970
"""More are refused before they are decoded: a file of a few bytes can claim billions (Pillow's own limit)."""
# Formats that are pictures and nothing else; Pillow hands some others, such as EPS, to outside programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF", "PPM", "TGA", "ICO")
_FIXED = {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3, "rescale_factor": 1 / 255}
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


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
    with warnings.catch_warnings():  # Pillow warns of what is refused, or healed, here
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data), formats=_formats()) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ImageError(
                        "too_many_pixels", f"{name} has {image.width} x {image.height}: above {MAX_PIXELS}"
                    )
                image.load()
                return _rgb(_upright(image), name)
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


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF takes no pixel away: the picture counts as it stands
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep_gray(image, name)
    if not image.has_transparency_data:
        return image.convert("RGB")
    picture = image.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def _from_deep_gray(image: Image.Image, name: str) -> Image.Image:
    """16-bit gray by its upper byte, as Pillow reads 16-bit colour; mode I it would clip to white."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ImageError("brightness", f"{name} has mode {image.mode}: what is black and white in it is not known")
    gray = (values >> 8).astype(np.uint8)
    key = image.info.get("transparency")
    if isinstance(key, int):
        gray[values == key] = 255
    return Image.fromarray(gray).convert("RGB")


def image_grid(width: int, height: int, settings: ImageSettings) -> tuple[int, int, int]:
    """(frames, rows, columns) of patches that a picture of this size becomes; raises ImageError above 200 : 1."""
    patch = settings.patch_size
    try:
        rows, columns = smart_resize(
            height, width, patch * settings.merge_size, settings.min_pixels, settings.max_pixels
        )
    except ValueError as error:
        raise ImageError("aspect_ratio", f"{width} x {height}: {error}") from error
    return 1, rows // patch, columns // patch


def to_patches(images: Sequence[Image.Image], settings: ImageSettings) -> tuple[Tensor, Tensor]:
    """(P, D) float32 patches and (I, 3) int64 grids of RGB pictures, by the image processor of transformers."""
    output = _processor(settings)(images=list(images), return_tensors="pt")
    return output["pixel_values"].to(torch.float32), output["image_grid_thw"]


@functools.lru_cache(maxsize=8)
def _processor(settings: ImageSettings) -> Qwen2VLImageProcessorPil:
    return Qwen2VLImageProcessorPil(
        patch_size=settings.patch_size,
        merge_size=settings.merge_size,
        temporal_patch_size=settings.temporal_patch_size,
        image_mean=list(settings.image_mean),
        image_std=list(settings.image_std),
        size={"shortest_edge": settings.min_pixels, "longest_edge": settings.max_pixels},
    )


def image_hash(data: bytes) -> str:
    """Identity of a picture file."""
    return hashlib.sha256(data).hexdigest()
