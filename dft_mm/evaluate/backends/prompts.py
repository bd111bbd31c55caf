"""Questions → what the model is shown: token ids exactly as in training, and pictures through its loader."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dft_mm.data.images import ImageError, ImageSettings, image_grid
from dft_mm.data.render import Renderer, RenderError
from dft_mm.dist import log
from dft_mm.errors import InputError
from dft_mm.evaluate.backends.content import completion_text, load_pictures
from dft_mm.evaluate.requests import Request
from dft_mm.evaluate.task import Question
from dft_mm.model.folder import read_config
from dft_mm.model.processing import Processing, load_processing
from dft_mm.sections import read_json


@dataclass(frozen=True)
class Prompt:
    ids: list[int]
    """Every picture as one placeholder a merged patch."""
    text: str
    """What the model is shown, each picture as one placeholder."""
    short: tuple[int, ...] = ()
    """The ids with each picture as one placeholder."""


class Prompts:
    """The prompts of one model folder."""

    def __init__(self, model: str, max_tokens: int) -> None:
        self.model = model
        self.processing: Processing = load_processing(model)
        self.images = _as_trained(self.processing)
        merge_size = self.images.merge_size if self.images else None
        self.renderer = Renderer(
            self.processing.tokenizer, self.processing.chat_template, self.processing.image_token, merge_size
        )
        self.max_tokens = max_tokens
        self.context = _context(self.processing.folder)
        self.ends = {self.renderer.end_id, *_end_tokens(self.processing)}
        """Tokens that end an answer."""
        self._prompts: dict[tuple[str, str], Prompt] = {}
        self.settings: dict[str, Any] = {
            "renderer": self.renderer.fingerprint,
            "min_pixels": self.images.min_pixels if self.images else None,
            "max_pixels": self.images.max_pixels if self.images else None,
        }

    def prepare(self, requests: Iterable[Request]) -> None:
        """Render them all, so that one which cannot be asked is known before anything is generated."""
        pictures = hashlib.sha256()
        cut = []
        for request in requests:
            key = (request.benchmark, request.question.id)
            if key not in self._prompts:
                self._prompts[key] = prompt = self._render(request.question, request.where, pictures)
                if self.room(prompt) < 1:
                    raise InputError(
                        f"{request.where} has {len(prompt.ids)} tokens, and the context of {self.processing.folder} "
                        f"ends at {self.context} (max_position_embeddings in config.json); ask it less, or leave the "
                        "question out"
                    )
                if self.room(prompt) < self.max_tokens:
                    cut.append(request.where)
        if cut:
            log.warning(
                "%d questions, such as %s, leave less than max_tokens %d in a context of %d tokens: their answers end "
                "with the context at the latest, and count as cut there",
                len(cut), cut[0], self.max_tokens, self.context,
            )  # fmt: skip
        # Known only now that all pictures were read; they decide the answers as much as the questions' text does.
        self.settings["pictures_sha256"] = pictures.hexdigest()

    def of(self, request: Request) -> Prompt:
        """Of a request that was prepared."""
        return self._prompts[request.benchmark, request.question.id]

    def room(self, prompt: Prompt) -> int:
        """Most tokens of its answer: max_tokens, or what the context has left."""
        return self.max_tokens if self.context is None else min(self.max_tokens, self.context - len(prompt.ids))

    def _render(self, question: Question, where: str, pictures: Any) -> Prompt:
        if question.completion:
            return self._completion(question, where)
        if question.images and self.images is None:
            raise InputError(
                f"{where} has a picture, and {self.model} is a text model: leave that benchmark out of the suite, or "
                "take a vision-language model"
            )
        images = load_pictures(question, where, pictures)
        # What stands before an answer in training is what the model is asked with: render one and cut it off.
        answer = {"role": "assistant", "content": [{"type": "text", "text": "-"}]}
        try:
            grids = [image_grid(*image.size, self.images) for image in images]
            rendered = self.renderer.render([*question.messages, answer], grids)
        except (ImageError, RenderError) as error:
            raise InputError(f"{where}: {error.reason}: {error.detail}") from error
        answers = np.flatnonzero(np.diff(rendered.supervised.astype(np.int8), prepend=0) == 1)  # where each begins
        ids = rendered.ids[: answers[-1]].tolist()
        merged = [rows * columns // self.images.merge_size**2 for _, rows, columns in grids]
        short = _one_placeholder_each(ids, self.processing.image_token_id, merged)
        return Prompt(ids, self.processing.tokenizer.decode(short), tuple(short))

    def _completion(self, question: Question, where: str) -> Prompt:
        """The text with what the tokenizer itself puts before any text, such as a BOS token."""
        text = completion_text(question, where)
        ids = list(self.processing.tokenizer(text).input_ids)
        if not ids:
            raise InputError(
                f"{where}: an empty text, and the tokenizer begins with no token: nothing can go on from it"
            )
        return Prompt(ids, text, tuple(ids))


def _one_placeholder_each(ids: Sequence[int], image: int | None, merged: Sequence[int]) -> list[int]:
    """Text cannot forge the placeholder, so each run of them is known by the pictures' own sizes."""
    short, counts, place = [], iter(merged), 0
    while place < len(ids):
        short.append(ids[place])
        place += next(counts) if ids[place] == image else 1
    return short


def _context(folder: Path) -> int | None:
    """Most tokens of prompt and answer together; None where the config tells none."""
    config = read_config(folder).get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None:
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    stretched = (rope.get("original_max_position_embeddings") or limit) * (rope.get("factor") or 1)
    return max(limit, int(stretched))


def _end_tokens(processing: Processing) -> set[int]:
    path = processing.folder / "generation_config.json"
    found = read_json(path, path.name).get("eos_token_id") if path.is_file() else None
    if found is None:
        found = read_config(processing.folder).get_text_config().eos_token_id
    ends = {found} if isinstance(found, int) else set(found or ())
    return ends | ({processing.tokenizer.eos_token_id} - {None})


def _as_trained(processing: Processing) -> ImageSettings | None:
    """The processor's numbers. Pixel limits are those of training where the folder tells them (dft_mm.json).

    Raises InputError when they are no limits, or when the chat template is not the one of training: both decide scores.
    """
    path = processing.folder / "dft_mm.json"
    about = read_json(path, path.name) if path.is_file() else {}
    template = hashlib.sha256((processing.chat_template or "").encode()).hexdigest()
    if about.get("chat_template_sha256", template) != template:
        raise InputError(
            f"{path}: the chat template in this folder is not the one of training; put that one back, or remove "
            "chat_template_sha256 from the file to evaluate with another"
        )
    if processing.image_config is None:
        return None
    limits = about.get("min_pixels"), about.get("max_pixels")
    known = [limit for limit in limits if limit is not None]
    if any(not isinstance(limit, int) or limit < 1 for limit in known) or known != sorted(known):
        raise InputError(f"{path}: min_pixels {limits[0]!r} and max_pixels {limits[1]!r} are no pixel limits")
    return ImageSettings.of(processing.image_config, *limits)
