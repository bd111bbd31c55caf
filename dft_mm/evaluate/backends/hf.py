"""Batched generation with transformers: prompts exactly as in training, and a seed for every answer.

Axes: B answers of a batch, T positions, V vocabulary.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from dft_mm.batch import normalise
from dft_mm.config import read_text
from dft_mm.data.images import ImageError, ImageSettings, image_grid, load_image
from dft_mm.data.patches import to_patches
from dft_mm.data.render import Renderer, RenderError
from dft_mm.errors import InputError
from dft_mm.evaluate.requests import BackendOptions, Generation, Request
from dft_mm.evaluate.task import Question
from dft_mm.model.load import Processing, load_model, load_processing


@dataclass(frozen=True)
class Prompt:
    ids: list[int]
    text: str
    """What the model is shown, each picture as one placeholder."""


class HuggingFace:
    """The backend `hf`. The weights are loaded when the first batch is generated."""

    def __init__(self, options: BackendOptions) -> None:
        self.options = options
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = options.dtype
        if dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise InputError(f"dtype {dtype!r}: there are auto, float32, bfloat16, float16")
        if dtype == "auto":  # bfloat16 on a CPU is slower than float32
            dtype = "float32" if self.device.type == "cpu" else "bfloat16"
        self.processing = load_processing(options.model)
        self.images = _as_trained(self.processing)
        merge_size = self.images.merge_size if self.images else None
        self.renderer = Renderer(
            self.processing.tokenizer, self.processing.chat_template, self.processing.image_token, merge_size
        )
        self.model: PreTrainedModel | None = None
        self.pictures = hashlib.sha256()
        self.prompts: dict[tuple[str, str], Prompt] = {}
        self.ends: set[int] = set()
        self.settings = {
            "name": "hf", "dtype": dtype, "device": self.device.type, "batch_size": options.batch_size,
            "renderer": self.renderer.fingerprint,
            "min_pixels": self.images.min_pixels if self.images else None,
            "max_pixels": self.images.max_pixels if self.images else None,
        }  # fmt: skip

    def plan(self, requests: Sequence[Request]) -> list[list[Request]]:
        """Longest prompts first: should memory be short, that shows at once."""
        for request in requests:
            key = (request.benchmark, request.question.id)
            if key not in self.prompts:
                self.prompts[key] = self._prompt(request.question, f"{request.benchmark}, question {key[1]!r}")
        # Known only now that all pictures were read; they decide the answers as much as the questions' text does.
        self.settings["pictures_sha256"] = self.pictures.hexdigest()
        ordered = sorted(requests, key=lambda request: -len(self._prompt_of(request).ids))
        size = self.options.batch_size
        return [ordered[start : start + size] for start in range(0, len(ordered), size)]

    def _prompt_of(self, request: Request) -> Prompt:
        return self.prompts[request.benchmark, request.question.id]

    def _prompt(self, question: Question, where: str) -> Prompt:
        """What stands before an answer in training is what the model is asked with: render one and cut it off."""
        if question.images and self.images is None:
            raise InputError(f"{where} has a picture, and {self.processing.folder} is a text model")
        answer = {"role": "assistant", "content": [{"type": "text", "text": "-"}]}
        try:
            pictures = [_picture(question, name) for name in question.images]
            grids = [image_grid(*picture.size, self.images) for picture in pictures]
            rendered = self.renderer.render([*question.messages, answer], grids)
        except (ImageError, RenderError) as error:
            raise InputError(f"{where}: {error.reason}: {error.detail}") from error
        for picture in pictures:
            self.pictures.update(f"{picture.size}".encode() + picture.tobytes())
        supervised = rendered.supervised.nonzero()[0]
        self.ends.add(int(rendered.ids[supervised[-1]]))  # the token that ends a turn
        ids = rendered.ids[: supervised[0]].tolist()
        text = self.processing.tokenizer.decode(ids)
        if self.processing.image_token is not None:
            token = re.escape(self.processing.image_token)
            text = re.sub(f"(?:{token})+", lambda _: self.processing.image_token, text)
        return Prompt(ids, text)

    def generate(self, batch: Sequence[Request]) -> list[Generation]:
        model = self.model = self.model or self._load()
        sampling = self.options.sampling
        prompts = [self._prompt_of(request) for request in batch]
        inputs = self._inputs(batch, prompts)
        width = inputs["input_ids"].shape[1]
        processors = LogitsProcessorList()
        if sampling.temperature > 0:
            seeds = [request.seed for request in batch]
            processors.append(SeededSampler(seeds, sampling.temperature, sampling.top_p, self.device))
        with torch.inference_mode():
            output = model.generate(**inputs, generation_config=self._generation(), logits_processor=processors)
        return [self._cut(prompt, row.tolist()) for prompt, row in zip(prompts, output[:, width:])]

    def _load(self) -> PreTrainedModel:
        model = load_model(self.options.model, dtype=self.settings["dtype"]).to(self.device)
        ends = model.generation_config.eos_token_id
        self.ends.update([ends] if isinstance(ends, int) else ends or [])
        if (eos := self.processing.tokenizer.eos_token_id) is not None:
            self.ends.add(eos)
        # transformers fills what a generation config leaves open from the model's own: a temperature or a repetition
        # penalty in the folder would silently be part of every score.
        model.generation_config = self._generation()
        return model

    def _generation(self) -> GenerationConfig:
        return GenerationConfig(
            do_sample=False,
            max_new_tokens=self.options.sampling.max_tokens,
            eos_token_id=sorted(self.ends),
            pad_token_id=self._pad,
            use_cache=True,
        )

    @property
    def _pad(self) -> int:
        pad = self.processing.tokenizer.pad_token_id
        return min(self.ends) if pad is None else pad

    def _inputs(self, batch: Sequence[Request], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Left-padded model inputs, (B, T)."""
        width = max(len(prompt.ids) for prompt in prompts)
        padding = [width - len(prompt.ids) for prompt in prompts]
        ids = torch.tensor([[self._pad] * left + prompt.ids for left, prompt in zip(padding, prompts)])
        mask = torch.tensor([[0] * left + [1] * len(prompt.ids) for left, prompt in zip(padding, prompts)])
        inputs = {"input_ids": ids, "attention_mask": mask}
        if self.images is not None:
            # Without it Qwen2.5-VL silently takes one-dimensional positions.
            inputs["mm_token_type_ids"] = ((ids == self.processing.image_token_id) & (mask == 1)).long()
            pictures = [_picture(request.question, name) for request in batch for name in request.question.images]
            if pictures:
                patches, inputs["image_grid_thw"] = to_patches(pictures, self.images)
                inputs["pixel_values"] = normalise(
                    patches.to(self.device), self.images.image_mean, self.images.image_std,
                    self.images.temporal_patch_size,
                )  # fmt: skip
        return {name: value.to(self.device) for name, value in inputs.items()}

    def _cut(self, prompt: Prompt, ids: list[int]) -> Generation:
        """The answer up to the first token that ends it."""
        end = next((place for place, token in enumerate(ids) if token in self.ends), None)
        text = self.processing.tokenizer.decode(ids[:end], skip_special_tokens=True)
        if end is None:
            return Generation(prompt.text, text, "length", len(ids))
        return Generation(prompt.text, text, "stop", end + 1)


def _picture(question: Question, name: str) -> Any:
    return load_image(name, Path(question.image_root))


def _as_trained(processing: Processing) -> ImageSettings | None:
    """The processor's numbers. Pixel limits are those of training where the folder tells them (dft_mm.json).

    Raises InputError when they are no limits, or when the chat template is not the one of training: both decide scores.
    """
    path = processing.folder / "dft_mm.json"
    about: dict[str, Any] = {}
    if path.is_file():
        try:
            about = json.loads(read_text(path, "dft_mm.json"))
        except json.JSONDecodeError as error:
            raise InputError(f"{path}: not valid JSON: {error}") from error
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


class SeededSampler(LogitsProcessor):
    """Draws each row's next token with that row's own random numbers, whatever else is in the batch.

    The token of the greatest log p + Gumbel noise is a draw from p. Unlike a walk along the cumulated p, it does not
    change with the last digits of p, which differ with the rest of the batch. One finite logit is left in a row, so
    that greedy decoding takes the drawn token. Nucleus: arXiv:1904.09751.
    """

    def __init__(self, seeds: Sequence[int], temperature: float, top_p: float, device: torch.device) -> None:
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self.temperature, self.top_p = temperature, top_p

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores (B, V) → (B, V)."""
        logits = scores.float() / self.temperature
        if self.top_p < 1:
            logits = logits.masked_fill(~nucleus(logits.softmax(-1), self.top_p), -torch.inf)
        noise = torch.stack([self._gumbel(generator, logits) for generator in self.generators])
        chosen = (logits.double() + noise).argmax(-1, keepdim=True)
        return torch.full_like(scores, -torch.inf).scatter(-1, chosen, 0.0)

    @staticmethod
    def _gumbel(generator: torch.Generator, logits: Tensor) -> Tensor:
        # In float32 the noise would end at 16.6, which a vocabulary of 150,000 reaches.
        exponential = torch.empty(logits.shape[-1], dtype=torch.float64, device=logits.device)
        return -exponential.exponential_(generator=generator).log()


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """(…, V) bool: the fewest of the likeliest tokens that together reach `top_p`; the likeliest always is one."""
    ordered, tokens = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    kept = before < top_p
    return torch.zeros_like(kept).scatter(-1, tokens, kept)
