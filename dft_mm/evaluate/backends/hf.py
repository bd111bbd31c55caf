"""Batched generation with transformers: prompts exactly as in training, and a seed for every answer.

Axes: B answers of a batch, T positions, V vocabulary.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TextStreamer,
)

from dft_mm.batch import normalise
from dft_mm.data.patches import to_patches
from dft_mm.errors import InputError
from dft_mm.evaluate.backends.content import before_stop, load_picture
from dft_mm.evaluate.backends.prompts import Prompt, Prompts
from dft_mm.evaluate.requests import BackendOptions, Generation, Request
from dft_mm.model.lora import load_with_adapter

_BATCH_SIZE = 16


class HuggingFace:
    """The backend `hf`. The weights are loaded when the first batch is generated."""

    def __init__(self, options: BackendOptions) -> None:
        self.options = options
        self.device = _device()
        dtype = options.dtype or "auto"
        if dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise InputError(f"--dtype {dtype}: there are auto, float32, bfloat16, float16")
        if dtype == "auto":  # bfloat16 on a CPU is slower than float32
            dtype = "float32" if self.device.type == "cpu" else "bfloat16"
        self.prompts = Prompts(options.model, options.sampling.max_tokens)
        self.tokenizer = self.prompts.processing.tokenizer
        self.ends = sorted(self.prompts.ends)
        pad = self.tokenizer.pad_token_id
        self.pad = self.ends[0] if pad is None else pad
        self.batch_size = options.batch_size or _BATCH_SIZE
        self.model: PreTrainedModel | None = None
        self.settings: dict[str, Any] = {
            "name": "hf", "dtype": dtype, "device": self.device.type, "batch_size": self.batch_size,
        }  # fmt: skip

    def plan(self, wanted: Sequence[Request]) -> list[list[Request]]:
        """Longest prompts first: should memory be short, that shows at once."""
        self.prompts.prepare(wanted)
        self.settings |= self.prompts.settings
        ordered = sorted(wanted, key=lambda request: -len(self.prompts.of(request).ids))
        size = self.batch_size
        return [ordered[start : start + size] for start in range(0, len(ordered), size)]

    def generate(
        self, batches: Sequence[Sequence[Request]], halted: Callable[[], bool]
    ) -> Iterator[tuple[int, list[Generation]]]:
        """One batch after the other; one that is halted half-way is given up."""
        for number, batch in enumerate(batches):
            answers = None if halted() else self._answer(batch, halted)
            if answers is None:
                return
            yield number, answers

    def stream(self, request: Request, say: Callable[[str], None]) -> Generation:
        """One answer, which is also told piece by piece as it comes."""
        (answer,) = self._answer([request], lambda: False, _Pieces(self.tokenizer, say))
        return answer

    def _answer(
        self, batch: Sequence[Request], halted: Callable[[], bool], streamer: TextStreamer | None = None
    ) -> list[Generation] | None:
        model = self.load()
        sampling = self.options.sampling
        prompts = [self.prompts.of(request) for request in batch]
        inputs = self._inputs(batch, prompts)
        width = inputs["input_ids"].shape[1]
        processors = LogitsProcessorList()
        if sampling.temperature > 0:
            seeds = [request.seed for request in batch]
            processors.append(SeededSampler(seeds, sampling.temperature, sampling.top_p, self.device))
        ends = RowEnds(
            self.tokenizer, width, [self.prompts.room(prompt) for prompt in prompts],
            [request.question.stop for request in batch], halted,
        )  # fmt: skip
        with torch.inference_mode():
            output = model.generate(
                **inputs, generation_config=self._generation(), logits_processor=processors,
                stopping_criteria=StoppingCriteriaList([ends]), streamer=streamer,
            )  # fmt: skip
        if ends.halted:
            return None
        rows = [row[:most].tolist() for row, most in zip(output[:, width:], ends.most)]
        return [self._cut(*each) for each in zip(prompts, rows, (request.question.stop for request in batch))]

    def load(self) -> PreTrainedModel:
        """The weights, on the device."""
        self.model = self.model or self._load()
        return self.model

    def _load(self) -> PreTrainedModel:
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # kernels that ask for no device take this one
        model = load_with_adapter(self.options.model, self.settings["dtype"]).to(self.device)
        # transformers fills what a generation config leaves open from the model's own: a temperature or a repetition
        # penalty in the folder would silently be part of every score.
        model.generation_config = self._generation()
        return model

    def _generation(self) -> GenerationConfig:
        return GenerationConfig(
            do_sample=False,
            max_new_tokens=self.options.sampling.max_tokens,
            eos_token_id=self.ends,
            pad_token_id=self.pad,
            use_cache=True,
        )

    def _inputs(self, batch: Sequence[Request], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Left-padded model inputs, (B, T)."""
        width = max(len(prompt.ids) for prompt in prompts)
        padding = [width - len(prompt.ids) for prompt in prompts]
        ids = torch.tensor([[self.pad] * left + prompt.ids for left, prompt in zip(padding, prompts)])
        mask = torch.tensor([[0] * left + [1] * len(prompt.ids) for left, prompt in zip(padding, prompts)])
        inputs = {"input_ids": ids, "attention_mask": mask}
        images = self.prompts.images
        if images is not None:
            # Without it Qwen2.5-VL silently takes one-dimensional positions.
            inputs["mm_token_type_ids"] = ((ids == self.prompts.processing.image_token_id) & (mask == 1)).long()
            pictures = [load_picture(request.question, name) for request in batch for name in request.question.images]
            if pictures:
                patches, inputs["image_grid_thw"] = to_patches(pictures, images)
                inputs["pixel_values"] = normalise(
                    patches.to(self.device), images.image_mean, images.image_std, images.temporal_patch_size
                )
        return {name: value.to(self.device) for name, value in inputs.items()}

    def _cut(self, prompt: Prompt, ids: list[int], stops: Sequence[str]) -> Generation:
        """The answer up to the first token or text that ends it."""
        end = next((place for place, token in enumerate(ids) if token in self.prompts.ends), None)
        text = decode(self.tokenizer, ids[:end])
        before = before_stop(text, stops)
        reason = "length" if end is None and before is None else "stop"
        return Generation(prompt.text, text if before is None else before, reason, len(ids) if end is None else end + 1)


def _device() -> torch.device:
    """Under a launcher every rank has a GPU of its own."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    rank, there = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if rank >= there:
        raise InputError(f"rank {rank} of this machine has no GPU of its own: there are {there}; start as many ranks")
    return torch.device("cuda", rank)


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of an answer's tokens, as the model wrote it."""
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


class _Pieces(TextStreamer):
    """Hands an answer over in pieces of whole words."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, say: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        self._say = say

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._say(text)


class RowEnds(StoppingCriteria):
    """Ends each row by itself: at its own most tokens, or with the token that completes one of its stop texts."""

    most: list[int]
    """Tokens of each row's answer at most; with a stop text, those up to its end."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        start: int,
        most: Sequence[int],
        stops: Sequence[Sequence[str]],
        halted: Callable[[], bool],
    ) -> None:
        self.tokenizer, self.start, self.most, self.stops = tokenizer, start, list(most), stops
        self.halted_now, self.halted = halted, False
        # A token stands for a byte of text at least; a few more, should the first ones be half a character.
        self.tail = max((len(stop.encode()) for each in stops for stop in each), default=0) + 8

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """(B, T) → (B,): this row is done."""
        count = input_ids.shape[1] - self.start
        self.halted = self.halted or self.halted_now()
        if any(self.stops):
            tails = input_ids[:, max(self.start, input_ids.shape[1] - self.tail) :].tolist()
            for row, (tail, stops) in enumerate(zip(tails, self.stops)):
                # A tail can read otherwise than the same tokens within the whole, so that has the last word.
                found = count < self.most[row] and self._has(tail, stops)
                if found and self._has(input_ids[row, self.start :].tolist(), stops):
                    self.most[row] = count
        done = [self.halted or count >= most for most in self.most]
        return torch.tensor(done, device=input_ids.device)

    def _has(self, ids: Sequence[int], stops: Sequence[str]) -> bool:
        text = decode(self.tokenizer, ids) if stops else ""
        return any(stop in text for stop in stops)


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
