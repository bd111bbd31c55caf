"""What a question consists of: its pictures as training sees them, its text, and what ends an answer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image

from dft_mm.data.images import ImageError, load_image
from dft_mm.errors import InputError
from dft_mm.evaluate.task import Question


def load_picture(question: Question, name: str) -> Image:
    """One of a question's pictures, RGB."""
    return load_image(name, Path(question.image_root))


def load_pictures(question: Question, where: str, digest: Any) -> list[Image]:
    """All of them; their pixels are added to the digest. Raises InputError for one that cannot be shown."""
    try:
        images = [load_picture(question, name) for name in question.images]
    except ImageError as error:
        raise InputError(f"{where}: {error.reason}: {error.detail}") from error
    for image in images:
        digest.update(f"{image.size}".encode() + image.tobytes())
    return images


def completion_text(question: Question, where: str) -> str:
    """The text that a model goes on with. Raises InputError where there is more than text."""
    parts = [part for message in question.messages for part in message["content"]]
    if len(question.messages) != 1 or any(part["type"] != "text" for part in parts):
        raise InputError(f"{where}: a completion is one message of text, without a system turn or pictures")
    return "".join(part["text"] for part in parts)


def before_stop(text: str, stops: Sequence[str]) -> str | None:
    """The text before the first stop text; None where it has none."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else None
